"""Which web pages may open sockets here: the defence against cross-site socket hijacking."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

from channels.security.websocket import OriginValidator

from wsgateway.conf import settings
from wsgateway.handshake import header

__all__ = ["origin_allowed"]

logger = logging.getLogger("wsgateway")

LOCAL_HOSTS = [".localhost", "localhost", "127.0.0.1", "[::1]"]


def origin_allowed(scope: Mapping[str, Any]) -> bool:
    """Say whether the page behind a handshake may connect; log it if not.

    Browsers always send ``Origin``. A client without it is no browser, carries nobody's cookies by
    accident, and may connect.
    """
    origins = [value.decode("latin-1") for value in header(scope, b"origin")]
    allowed = _allowed_origins()
    if "*" in allowed or all(_matches(origin, allowed) for origin in origins):
        return True
    logger.warning(
        "refused a websocket from origin %s; allowed are %s (WSGATEWAY_ALLOWED_ORIGINS, or else "
        "ALLOWED_HOSTS)",
        ", ".join(map(repr, origins))[:200],
        allowed,
    )
    return False


def _allowed_origins() -> list[str]:
    allowed = settings.ALLOWED_ORIGINS
    if allowed is None:
        allowed = settings.allowed_hosts or (LOCAL_HOSTS if settings.debug else [])
    return list(allowed)


def _matches(origin: str, allowed: list[str]) -> bool:
    """Say whether *origin* is one of *allowed*, which Channels' `OriginValidator` describes."""
    try:
        parts = urlparse(origin)
        if not parts.hostname:  # "null", as sandboxed frames and local files send
            return False
        _ = parts.port  # raises for a malformed one
        validator = OriginValidator(_no_application, allowed)
        return bool(validator.validate_origin(parts))
    except ValueError:
        return False


async def _no_application(scope: object, receive: object, send: object) -> None:
    """Stand in for the application: only the validator's rules are used."""
