"""What a client offers as ``Sec-WebSocket-Protocol`` besides ``wsgateway.v1``. Pure.

A browser can set no other header. The token in it is never selected, so no answer repeats it.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

__all__ = ["RAW_SUBPROTOCOL", "TOKEN_PREFIX", "encode_token_protocol", "tokens_in"]

RAW_SUBPROTOCOL = "wsgateway.raw"
"""A raw socket, for browsers that offer a token: they fail unless the gateway selects something."""
TOKEN_PREFIX = "wsgateway.token."  # noqa: S105 - a name, not a secret


_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}\Z")


def encode_token_protocol(token: str) -> str:
    """Return the subprotocol that carries *token*."""
    return TOKEN_PREFIX + urlsafe_b64encode(token.encode()).decode().rstrip("=")


def tokens_in(offered: Iterable[str]) -> list[str]:
    """Return the tokens that a client offers, with or without base64's padding.

    Raises:
        ValueError: One is not base64url of UTF-8.
    """
    return [_decode(name[len(TOKEN_PREFIX) :]) for name in offered if name.startswith(TOKEN_PREFIX)]


def _decode(text: str) -> str:
    if not _BASE64URL.match(text):
        raise ValueError("not base64url")
    text = text.rstrip("=")
    return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
