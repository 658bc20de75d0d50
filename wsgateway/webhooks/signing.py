"""Signatures as Standard Webhooks has them (https://www.standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable

__all__ = ["PREFIX", "key_of", "signed_headers"]

PREFIX = "whsec_"
LEAST, MOST = 24, 64
"""Bytes of a key, as the specification has them."""


def key_of(secret: str) -> bytes:
    """Return the key that *secret* holds.

    Raises:
        ValueError: It is not a secret as Standard Webhooks has them. The text does not show it.
    """
    if not secret.startswith(PREFIX):
        raise ValueError(f"does not begin with {PREFIX!r}")
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValueError(f"is not base64 after {PREFIX!r}") from exc
    if not LEAST <= len(key) <= MOST:
        raise ValueError(f"holds {len(key)} bytes, but must hold {LEAST} to {MOST}")
    return key


def signed_headers(id: str, timestamp: int, body: bytes, keys: Iterable[bytes]) -> dict[str, str]:
    """Return the headers that prove who sent *body*, and when.

    Args:
        id: Names the message, the same at each try; without a full stop.
        timestamp: Unix time of this try.
        body: What is sent.
        keys: Each signs: while a secret is replaced, receivers know one or the other.
    """
    content = b".".join((id.encode(), str(timestamp).encode(), body))
    signatures = (base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
