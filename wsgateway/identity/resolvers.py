"""The resolvers that come with the package; ``WSGATEWAY_IDENTITY`` lists some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.core import signing
from django.core.exceptions import ObjectDoesNotExist

from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import cookie, parameter, route
from wsgateway.hooks import call_hook
from wsgateway.identity.base import ANONYMOUS, DEFAULT_DEVICE, Identity, Scope
from wsgateway.identity.paths import require_path, service_in
from wsgateway.identity.tokens import (
    COOKIE_SALT,
    TOKEN_SALT,
    is_jwt,
    read_token,
    token_in,
    with_account,
)
from wsgateway.identity.users import NamesUsers
from wsgateway.logins import account_of, logged_in_user, session_store
from wsgateway.protocol.codes import CloseCode

if TYPE_CHECKING:
    pass

__all__ = [
    "AnonymousIdentity",
    "CookieIdentity",
    "SessionIdentity",
    "SignedCookieIdentity",
    "TokenIdentity",
]


class SessionIdentity(NamesUsers):
    """The user who is logged in to Django; the service comes from the path.

    Works with and without Channels' ``AuthMiddlewareStack``. Without it, the session is read only
    if the client sends a session cookie, and only during the handshake.
    """

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; None when nobody is logged in."""
        session = scope["session"] if "session" in scope else self._session(scope)
        if session is None:
            return None
        login = await self._find_login(scope, session)
        if login is None:
            return None
        name, account = login
        service = service_in(scope)
        device = parameter(scope, "device") or DEFAULT_DEVICE
        return require_path(scope, Identity(service, name, device, session.session_key, **account))

    async def _find_login(self, scope: Scope, session: Any) -> tuple[str, dict[str, Any]] | None:
        """Return the user's name and account; None if nobody is logged in.

        Visits the thread for the database once, whatever `user_name` and the user's own methods
        ask there.
        """
        is_async = iscoroutinefunction(self.user_name)
        try:
            user_name = None if is_async else self.user_name
            found = await call_hook(_read_login, scope, session, user_name)
            if found is None:
                return None
            user, name, account = found
            name = await call_hook(self.user_name, user) if is_async else name
        except ObjectDoesNotExist as exc:
            raise self.no_name(exc) from exc
        return self.usable_name(name), account

    def _session(self, scope: Scope) -> Any:
        key = cookie(scope, settings.session_cookie_name)
        if not key or not key.isascii() or not key.isprintable():  # databases choke on such keys
            return None
        return session_store()(key)


def _read_login(
    scope: Scope, session: Any, user_name: Callable[[Any], Any] | None
) -> tuple[Any, Any, dict[str, Any]] | None:
    """Return the user, their name and what `Identity` remembers; None if nobody is logged in.

    Args:
        scope: Has the user if middleware looked for one, perhaps not loaded yet.
        session: The session.
        user_name: Returns the name; None if that has to be awaited.
    """
    user = scope["user"] if "user" in scope else logged_in_user(session)
    if user is None or not user.is_authenticated:
        return None
    return user, user_name(user) if user_name else None, account_of(user, session)


class SignedCookieIdentity:
    """A cookie that `set_identity_cookie` made; an invalid or expired one is ignored."""

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`."""
        value = cookie(scope, settings.COOKIE_NAME)
        if not value:
            return None
        try:
            identity = read_token(value, COOKIE_SALT, parameter(scope, "device"))
        except signing.BadSignature:
            return None
        return require_path(scope, identity)


class TokenIdentity:
    """A token that `make_token` made; `token_in` says where clients put it.

    For clients without a cookie of this site: mobile programs, other origins, other languages.
    """

    reads_tokens = True

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; an invalid or expired token is refused, a JSON web token ignored."""
        token = token_in(scope)
        if not token or is_jwt(token):
            return None
        try:
            identity = read_token(token, TOKEN_SALT, parameter(scope, "device"))
        except signing.SignatureExpired as exc:
            raise IdentityRefused(
                CloseCode.NOT_AUTHENTICATED, "the token has expired; get a new one"
            ) from exc
        except signing.BadSignature as exc:
            raise IdentityRefused(
                CloseCode.NOT_AUTHENTICATED,
                "the token is not valid",
                "make it with make_token and the gateway's SECRET_KEY, and send all of it",
            ) from exc
        require_path(scope, identity)
        if identity.user_id is None:
            return identity
        found: Identity = await call_hook(with_account, identity)
        return found


class AnonymousIdentity:
    """Everyone else, as a reader of topics by server-sent events. List it last.

    The service comes from the path. Your ``@topic`` functions decide what these readers may read:
    `Identity.is_anonymous` tells them apart.
    """

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; None for a websocket, and for a path that names a user."""
        if scope.get("type") != "http" or "user" in route(scope):
            return None
        return Identity(service_in(scope), ANONYMOUS)


class CookieIdentity:
    """Plain ``service`` and ``user`` cookies, which anybody can write: never in production.

    The cookies win over the path. Without a ``service`` cookie the path names the service; the
    path alone identifies nobody.
    """

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`."""
        user = cookie(scope, "user")
        service = cookie(scope, "service") or route(scope).get("service")
        if not user or not service:
            return None
        return Identity(service, user, parameter(scope, "device") or DEFAULT_DEVICE)
