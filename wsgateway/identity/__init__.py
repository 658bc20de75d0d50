"""Whose socket is this? ``Identity`` and the resolvers that find it in an ASGI scope.

``WSGATEWAY_IDENTITY`` lists resolvers, tried in order: one returns an `Identity`, or None to let
the next try, or raises `IdentityRefused` to end the search. What a client sends is never trusted
to be well-formed: junk is refused. Everything here runs once per connection.
"""

from __future__ import annotations

from wsgateway.hooks import get_resolver
from wsgateway.identity.base import DEFAULT_DEVICE, Identity, Resolver, Scope
from wsgateway.identity.json_web_tokens import JwtIdentity, JwtUserIdentity
from wsgateway.identity.jwt_config import JwtConfig
from wsgateway.identity.resolvers import (
    AnonymousIdentity,
    CookieIdentity,
    SessionIdentity,
    SignedCookieIdentity,
    TokenIdentity,
)
from wsgateway.identity.resolving import (
    renew_identity,
    require_service,
    resolve_identity,
    with_cause,
)
from wsgateway.identity.rest_framework import DrfIdentity
from wsgateway.identity.tokens import make_token, set_identity_cookie, token_in
from wsgateway.identity.voiding import require_valid_token
from wsgateway.identity.webhooks import WebhookIdentity

__all__ = [
    "DEFAULT_DEVICE",
    "AnonymousIdentity",
    "CookieIdentity",
    "DrfIdentity",
    "Identity",
    "JwtConfig",
    "JwtIdentity",
    "JwtUserIdentity",
    "Resolver",
    "Scope",
    "SessionIdentity",
    "SignedCookieIdentity",
    "TokenIdentity",
    "WebhookIdentity",
    "get_resolver",
    "make_token",
    "renew_identity",
    "require_service",
    "require_valid_token",
    "resolve_identity",
    "set_identity_cookie",
    "token_in",
    "with_cause",
]
