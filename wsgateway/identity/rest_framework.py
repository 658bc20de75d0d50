"""Asks Django REST framework who sent a token, with the project's own authentication classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from io import BytesIO
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.db.models import Model

from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import parameter
from wsgateway.hooks import call_hook
from wsgateway.identity.base import DEFAULT_DEVICE, Identity, Scope
from wsgateway.identity.paths import require_path, service_in
from wsgateway.identity.tokens import sent_token
from wsgateway.identity.users import NamesUsers
from wsgateway.logins import token_account
from wsgateway.protocol.codes import CloseCode

__all__ = ["DrfIdentity"]

ENDS = ("expires_at", "expiry", "expires")
"""Attributes in which tokens keep when they expire: knox says ``expiry``, OAuth Toolkit
``expires``."""


class DrfIdentity(NamesUsers):
    """The Django user whom REST framework's authentication classes find; the path has the service.

    They get the request's headers. A token from the list of subprotocols or the query is put into
    ``Authorization`` with each class's own keyword. Sessions are `SessionIdentity`'s business.
    """

    reads_tokens = True

    def authentication_classes(self) -> Iterable[Any]:
        """Return the classes to ask; override it for others than the project's default."""
        from rest_framework.settings import api_settings

        return api_settings.DEFAULT_AUTHENTICATION_CLASSES

    def issued_at(self, auth: Any) -> float | None:
        """Return the Unix time at which ``request.auth`` was issued; None if it does not say.

        Tokens in a table do not: a socket ends when its token is deleted.
        """
        return _claim(auth, "iat")

    def expires_at(self, auth: Any) -> float | None:
        """Return the Unix time at which ``request.auth`` expires; None if it does not say."""
        claimed = _claim(auth, "exp")
        if claimed is not None:
            return claimed
        for name in ENDS:
            value = getattr(auth, name, None)
            if isinstance(value, datetime):
                return value.timestamp()
        return None

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; credentials that a class refuses are refused."""
        found: Identity | None = await call_hook(self._resolve, scope)
        return found

    def _resolve(self, scope: Scope) -> Identity | None:
        found = self._authenticate(scope)
        if found is None:
            return None
        user, auth = found
        account = token_account(user)
        if account is None:
            raise IdentityRefused(CloseCode.NOT_AUTHENTICATED, "this account is not active")
        device = parameter(scope, "device") or DEFAULT_DEVICE
        identity = Identity(
            service_in(scope),
            self.require_name(user),
            device,
            credential=(auth._meta.label, str(auth.pk)) if isinstance(auth, Model) else None,
            issued_at=self.issued_at(auth),
            expires_at=self.expires_at(auth),
            **account,
        )
        return require_path(scope, identity)

    def _authenticate(self, scope: Scope) -> tuple[Any, Any] | None:
        """Return user and credentials, as the first class says that knows them."""
        from rest_framework.authentication import SessionAuthentication
        from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
        from rest_framework.request import Request

        token = sent_token(scope)
        for kind in self.authentication_classes():
            authenticator = kind()
            if isinstance(authenticator, SessionAuthentication):
                continue
            request = Request(_request(scope))
            if token is not None:
                keyword = (authenticator.authenticate_header(request) or "Bearer").split()[0]
                if keyword == "Basic":
                    continue
                request.META["HTTP_AUTHORIZATION"] = f"{keyword} {token}"
            try:
                found = authenticator.authenticate(request)
            except (AuthenticationFailed, NotAuthenticated) as exc:
                raise _refusal(exc) from exc
            if found is not None:
                user, auth = found
                return user, auth
        return None


def _claim(auth: Any, name: str) -> float | None:
    """Return a time among the claims of a JSON web token; None if *auth* is not one."""
    claims = getattr(auth, "payload", auth)
    value = claims.get(name) if isinstance(claims, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _request(scope: Scope) -> ASGIRequest:
    """Return the handshake as the request that it is: GET, with its headers and its query."""
    return ASGIRequest({**scope, "method": "GET", "path": scope.get("path", "/")}, BytesIO())


def _refusal(error: Any) -> IdentityRefused:
    """Return the refusal with what an API client reads too: a text, or one among other details."""
    detail = error.detail
    if isinstance(detail, Mapping):
        detail = detail.get("detail", "")
    reason = str(detail) if isinstance(detail, str) and detail else "the token is not valid"
    return IdentityRefused(CloseCode.NOT_AUTHENTICATED, reason)
