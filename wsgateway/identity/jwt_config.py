"""Whose JSON web tokens are accepted, and why a configuration accepts none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import urlsplit

from wsgateway.conf import settings
from wsgateway.identity.jwt_keys import ALGORITHMS, Key, key_of

__all__ = ["JwtConfig"]


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """Whose tokens are accepted, and what their claims mean.

    Each attribute is the setting ``WSGATEWAY_JWT_…`` of its name.
    """

    algorithms: Sequence[str]
    keys: Sequence[str] = field(default=(), repr=False)
    jwks_url: str = ""
    audience: Sequence[str] = ()
    issuer: str = ""
    leeway: float = 10.0
    user_claim: str = "sub"
    service_claim: str = ""
    device_claim: str = ""

    @classmethod
    def from_settings(cls) -> JwtConfig:
        """Return what the project's settings say."""
        return cls(
            tuple(settings.JWT_ALGORITHMS),
            tuple(settings.JWT_KEYS),
            settings.JWT_JWKS_URL,
            tuple(settings.JWT_AUDIENCE),
            settings.JWT_ISSUER,
            settings.JWT_LEEWAY,
            settings.JWT_USER_CLAIM,
            settings.JWT_SERVICE_CLAIM,
            settings.JWT_DEVICE_CLAIM,
        )

    def flaws(self) -> list[str]:
        """Return why no token can be accepted as configured, each with what to do."""
        if find_spec("jwt") is None or find_spec("cryptography") is None:
            return ["PyJWT is not installed; run: pip install 'wsgateway[jwt]'"]
        found = self._algorithm_flaws()
        if not self.keys and not self.jwks_url:
            found.append("set WSGATEWAY_JWT_KEYS or WSGATEWAY_JWT_JWKS_URL")
        if self.jwks_url and not _is_http(self.jwks_url):
            found.append(
                f"WSGATEWAY_JWT_JWKS_URL is {self.jwks_url!r}; write a URL of http or https"
            )
        if not self.user_claim:
            found.append("WSGATEWAY_JWT_USER_CLAIM is empty; name a claim, for example 'sub'")
        return found + self._key_flaws()

    def _algorithm_flaws(self) -> list[str]:
        if not self.algorithms:
            return ["set WSGATEWAY_JWT_ALGORITHMS, for example to ['RS256']"]
        unknown = [repr(each) for each in self.algorithms if each not in ALGORITHMS]
        names = ", ".join(ALGORITHMS)
        return [f"WSGATEWAY_JWT_ALGORITHMS holds {each}; use some of {names}" for each in unknown]

    def _key_flaws(self) -> list[str]:
        found = []
        for number, text in enumerate(self.keys):
            where = f"WSGATEWAY_JWT_KEYS[{number}]"
            try:
                key = key_of(text)
            except ValueError as exc:
                found.append(f"{where}: {exc}")
                continue
            usable = [each for each in self.algorithms if each in ALGORITHMS]
            if usable and not any(map(key.fits, usable)):
                names = ", ".join(name for name, kind in ALGORITHMS.items() if kind == key.kind)
                found.append(
                    f"{where} is an {key.kind}, which none of WSGATEWAY_JWT_ALGORITHMS takes; add "
                    f"one of {names}, or give another key"
                )
        if self.jwks_url and not self.keys:
            found += [
                f"{each!r} in WSGATEWAY_JWT_ALGORITHMS takes a secret, which no key set holds; "
                "remove it, or add the secret to WSGATEWAY_JWT_KEYS"
                for each in self.algorithms
                if each.startswith("HS")
            ]
        return found

    def own_keys(self, algorithm: str) -> list[Key]:
        """Return those of `keys` that may verify a token of *algorithm*."""
        return [key for key in map(key_of, self.keys) if key.fits(algorithm)]


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
