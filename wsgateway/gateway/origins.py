"""Which web pages may open sockets here: the defence against cross-site socket hijacking."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any
from urllib.parse import urlparse

from channels.security.websocket import OriginValidator
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest

from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import header
from wsgateway.protocol.codes import CloseCode

__all__ = ["cors_headers", "require_host", "require_origin"]

ELSEWHERE = ([b"cross-site"], [b"same-site"])
"""What browsers say of a request that another site's page makes."""
LOCAL_HOSTS = [".localhost", "localhost", "127.0.0.1", "[::1]"]
MAX_SHOWN = 100
"""Characters of foreign origins that the client and the log are told."""
MAX_HOST = 60
"""The same for foreign hosts."""


def require_origin(scope: Mapping[str, Any]) -> None:
    """Refuse a handshake that comes from a page which may not connect.

    Browsers send ``Origin`` with each handshake of a websocket, and with what a script of another
    page requests. With an image or a link they do not, but say that it is another site's. A client
    that says nothing is not a browser, carries nobody's cookies by accident, and may connect.

    Raises:
        IdentityRefused: The page's origin is not one of those allowed.
    """
    origins = [value.decode("latin-1") for value in header(scope, b"origin")]
    allowed = _allowed_origins()
    if "*" in allowed:
        return
    if not origins and header(scope, b"sec-fetch-site") in ELSEWHERE:
        reason = "a page of another site may not open this"
        raise IdentityRefused(CloseCode.FORBIDDEN, reason, "request it from a page of your own")
    if all(_matches(origin, allowed) for origin in origins):
        return
    sent = ", ".join(map(repr, origins))[:MAX_SHOWN]
    raise IdentityRefused(
        CloseCode.FORBIDDEN,
        f"origin {sent} may not connect",
        f"allowed are {allowed}; add it to WSGATEWAY_ALLOWED_ORIGINS (without that setting, "
        "ALLOWED_HOSTS counts) if the page is yours",
    )


def require_host(scope: Mapping[str, Any]) -> None:
    """Refuse an HTTP request for a host that is not this site's, by Django's own rules.

    Browsers send no ``Origin`` with what a page requests from its own site. A foreign page can
    have its own site's name lead here (DNS rebinding), and would then read what anybody may.

    Raises:
        IdentityRefused: ALLOWED_HOSTS does not have the request's host.
    """
    try:
        ASGIRequest({"method": "GET", **scope}, BytesIO()).get_host()
    except DisallowedHost as exc:
        sent = ", ".join(repr(value.decode("latin-1")) for value in header(scope, b"host"))
        reason = f"host {sent[:MAX_HOST] or 'missing'} may not be used here; see ALLOWED_HOSTS"
        cure = "add it to ALLOWED_HOSTS if this site has that name"
        raise IdentityRefused(CloseCode.BAD_REQUEST, reason, cure) from exc


def cors_headers(scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers that let a page of another origin read a response, if it may.

    Where every origin may connect, a page reads only what it can without anybody's cookies.
    Source: WHATWG Fetch, "CORS protocol".
    """
    origins, allowed = header(scope, b"origin"), _allowed_origins()
    varies = [(b"vary", b"Origin")]
    if len(origins) != 1:
        return varies
    if "*" in allowed:
        return [*varies, (b"access-control-allow-origin", b"*")]
    if not _matches(origins[0].decode("latin-1"), allowed):
        return varies
    return [
        *varies,
        (b"access-control-allow-origin", origins[0]),
        (b"access-control-allow-credentials", b"true"),
    ]


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
