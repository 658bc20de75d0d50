"""Keys that verify JSON web tokens, and which algorithms each is for.

A key is used for an algorithm of its own kind only. So a public key never verifies as an HMAC
secret, whatever algorithm a token names. Needs PyJWT and cryptography.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

__all__ = ["ALGORITHMS", "Key", "is_public", "key_of", "keys_of_jwks"]

HMAC, RSA, EDWARDS = "HMAC secret", "RSA key", "Ed25519 or Ed448 key"
P256, P384, P521, K256 = (
    f"EC key on {curve}" for curve in ("secp256r1", "secp384r1", "secp521r1", "secp256k1")
)
ALGORITHMS = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), HMAC),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
    "ES256": P256,
    "ES384": P384,
    "ES512": P521,
    "ES256K": K256,
    "EdDSA": EDWARDS,
}
"""The kind of key that each algorithm takes. ``none`` is not among them."""
LEAST_BITS = 2048
"""Of an RSA key. Source: RFC 7518, 3.3."""
LEAST_BYTES = 32
"""Of an HMAC secret. Source: RFC 7518, 3.2, for HS256."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies.

    Attributes:
        kind: What it is, one of the values of `ALGORITHMS`.
        value: What PyJWT takes.
        id: Its ``kid``; None without.
        algorithm: The only algorithm that it is for; None: every one of its kind.
    """

    kind: str
    value: Any = field(repr=False)
    id: str | None = None
    algorithm: str | None = None

    def fits(self, algorithm: str) -> bool:
        """Say whether it may verify a token of *algorithm*."""
        return ALGORITHMS.get(algorithm) == self.kind and self.algorithm in (None, algorithm)


def is_public(text: str) -> bool:
    """Say whether *text* is in PEM, and so not an HMAC secret."""
    return "-----BEGIN" in text


@lru_cache(maxsize=32)
def key_of(text: str) -> Key:
    """Return the key that a setting holds: a PEM public key or certificate, or a secret.

    Raises:
        ValueError: It is not one, or too weak. The text says what to do, and holds no key.
    """
    if is_public(text):
        public = _load_pem(text.encode())
        return Key(_kind_of(public), public)
    if len(text.encode()) < LEAST_BYTES:
        raise ValueError(f"the secret has {len(text.encode())} bytes; use {LEAST_BYTES} or more")
    return Key(HMAC, text)


def _load_pem(pem: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    if b"PRIVATE KEY-----" in pem:
        raise ValueError("it is a private key; give the public key, which is all that this needs")
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            return load_pem_x509_certificate(pem).public_key()
        return load_pem_public_key(pem)
    except Exception as exc:
        raise ValueError("it begins like PEM, but is not a public key or certificate") from exc


def _kind_of(public: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(public, RSAPublicKey):
        if public.key_size < LEAST_BITS:
            raise ValueError(f"the RSA key has {public.key_size} bits; use {LEAST_BITS} or more")
        return RSA
    if isinstance(public, EllipticCurvePublicKey):
        kind = f"EC key on {public.curve.name}"
        if kind in ALGORITHMS.values():
            return kind
    if isinstance(public, Ed25519PublicKey | Ed448PublicKey):
        return EDWARDS
    raise ValueError("no algorithm takes a key of this type")


def keys_of_jwks(payload: bytes) -> list[Key]:
    """Return the usable keys of a JSON web key set. Source: RFC 7517, 5.

    Secrets, private keys and keys for encryption are left out, and so is what cannot be read:
    providers publish keys of new types beside those in use.

    Raises:
        ValueError: It is not a key set.
    """
    try:
        keys = json.loads(payload)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ValueError('it is not a JSON object with "keys"') from exc
    if not isinstance(keys, list):
        raise ValueError('"keys" is not a list')
    return list(_usable(keys))


def _usable(keys: Iterable[Any]) -> Iterable[Key]:
    for fields in keys:
        if not isinstance(fields, dict) or "d" in fields or fields.get("use", "sig") != "sig":
            continue
        if fields.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        kid, algorithm = fields.get("kid"), fields.get("alg")
        if not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
            continue
        try:
            public = _load_jwk(fields)
            yield Key(_kind_of(public), public, kid, algorithm)
        except Exception:  # noqa: S112 - a key of another type, or one that is too weak
            continue


def _load_jwk(fields: dict[str, Any]) -> Any:
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    loaders: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    return loaders[fields["kty"]].from_jwk(fields)
