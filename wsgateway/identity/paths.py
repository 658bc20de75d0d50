"""What a socket's path says about whose it is: it may name the service, and never decides alone."""

from __future__ import annotations

from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import route
from wsgateway.identity.base import Identity, Scope
from wsgateway.protocol.codes import CloseCode

__all__ = ["require_path", "service_in"]

OTHER_NAME = {
    "service": "correct the path, or make a token or cookie for that service",
    "user": "connect as that user, or without a user in the path",
}
"""What to do if the path contradicts the login, cookie or token."""


def require_path(scope: Scope, identity: Identity) -> Identity:
    """Return *identity* if the path names it, or less.

    Raises:
        IdentityRefused: The path names another service or user.
    """
    named = route(scope)
    for part in ("service", "user"):
        if named.get(part) not in (None, getattr(identity, part)):
            raise IdentityRefused(
                CloseCode.FORBIDDEN,
                f"the path names another {part}",
                OTHER_NAME[part],
            )
    return identity


def service_in(scope: Scope) -> str:
    """Return the service that the path names.

    Raises:
        IdentityRefused: It names none.
    """
    service = route(scope).get("service")
    if service:
        return service
    raise IdentityRefused(
        CloseCode.BAD_REQUEST,
        "the path names no service",
        "its route lacks <service>; use wsgateway.routing.gateway_router",
    )
