"""Whose socket is this? ``Identity`` and the resolvers that find it in an ASGI scope.

WSGATEWAY_IDENTITY lists resolvers, tried in order: one returns an `Identity`, or None to let the
next try, or raises `IdentityRefused` to end the search. What a client sends is never trusted to be
well-formed: junk is refused. Everything here runs once per connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from asgiref.sync import iscoroutinefunction
from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.core import signing
from django.core.exceptions import ObjectDoesNotExist
from django.http import HttpResponseBase

from wsgateway.broker.base import Broker
from wsgateway.conf import settings
from wsgateway.declared import ANY
from wsgateway.exceptions import BrokerError, IdentityRefused, NameRefused, ServiceUnknown
from wsgateway.handshake import bearer_token, cookie, parameter, route
from wsgateway.hooks import call_hook, get_resolver
from wsgateway.logins import account_of, logged_in_user, session_store, user_id_of
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Inbox, encode_token

__all__ = [
    "CookieIdentity",
    "Identity",
    "Resolver",
    "SessionIdentity",
    "SignedCookieIdentity",
    "TokenIdentity",
    "get_resolver",
    "make_token",
    "require_service",
    "resolve_identity",
    "set_identity_cookie",
    "with_cause",
]

Scope = Mapping[str, Any]

DEFAULT_DEVICE = "default"
TOKEN_SALT = "wsgateway.token"  # noqa: S105 - public: it keeps tokens and cookies apart
COOKIE_SALT = "wsgateway.cookie"
OWN_ROUTE = "if this is your own consumer's URL, list its route before the gateway's"
OTHER_NAME = {
    "service": "correct the path, or make a token or cookie for that service",
    "user": "connect as that user, or without a user in the path",
}
"""What to do if the path names another one than the log-in, cookie or token."""
NO_NAME = "this log-in has no usable name"
"""What a client reads whose name a resolver cannot tell."""
MAX_SHOWN = 80
"""Characters of a wrong value that are logged."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end of a socket.

    Attributes:
        service: The service that the socket talks to.
        user: The user's name within it.
        device: Which of the user's devices; each has its own cursor.
        session_key: The Django session behind it, whose end ends the socket; None without.
        user_id: Primary key, as text, of the Django user whose deactivation or deletion ends the
            socket; None if it is not a Django user.
        auth_hash: The user's session auth hash: a new password ends the socket. None: it does not.
        backend: Dotted path of the backend that the user logged in with; None: not known.
        expires: Unix time at which the token or signed cookie behind it expires; None: never.
        resolver: Dotted path of the resolver that made it, set by `resolve_identity`.

    Raises:
        IdentityRefused: A name is empty, too long, or no Unicode text.
    """

    service: str
    user: str
    device: str = DEFAULT_DEVICE
    session_key: str | None = field(default=None, compare=False, repr=False)
    user_id: str | None = field(default=None, compare=False, repr=False)
    auth_hash: str | None = field(default=None, compare=False, repr=False)
    backend: str | None = field(default=None, compare=False, repr=False)
    expires: float | None = field(default=None, compare=False, repr=False)
    resolver: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for part in ("service", "user", "device"):
            try:
                encode_token(getattr(self, part))
            except NameRefused as exc:
                raise IdentityRefused(
                    CloseCode.BAD_REQUEST, f"{part} is not a usable name: {exc}"
                ) from exc

    @property
    def inbox(self) -> Inbox:
        """The address of the user's messages."""
        return Inbox(self.service, self.user)


class Resolver(Protocol):
    """What WSGATEWAY_IDENTITY lists: classes without arguments that have this method.

    One whose identities are Django users also has ``get_user(name)``, which returns the user whom
    it named, for handlers of services (`Message.user`).

    Methods may use the database: synchronous ones run in a thread, ``async def`` is awaited.
    """

    def resolve(self, scope: Scope) -> Identity | Awaitable[Identity | None] | None:
        """Return whose socket *scope* is; None if this resolver cannot tell.

        Raises:
            IdentityRefused: The socket may not connect; no other resolver is asked.
        """


async def resolve_identity(scope: Scope) -> Identity:
    """Return whose socket *scope* is, as the first resolver says that knows it.

    Raises:
        IdentityRefused: Nobody knows, a resolver refuses, or the service is not allowed.
    """
    for path in settings.IDENTITY:
        identity = await _ask(path, scope)
        if identity is not None:
            _require_allowed(identity.service)
            return identity
    raise _nobody(scope)


async def _ask(path: str, scope: Scope) -> Identity | None:
    """Return what the resolver at *path* says.

    Raises:
        IdentityRefused: It refuses, or it fails.
    """
    try:
        resolver = get_resolver(path)
        found: Any = await call_hook(resolver.resolve, scope)
        if isinstance(found, Identity):
            return replace(await _bound(found, resolver), resolver=path)
    except (IdentityRefused, BrokerError):
        raise
    except Exception as exc:
        raise _failed(f"the resolver {path} raised {type(exc).__name__}") from exc
    if found is not None:
        raise _failed(f"{path}.resolve returned {_shown(found)}, not an Identity or None")
    return None


def _failed(cause: str) -> IdentityRefused:
    code = CloseCode.INTERNAL_ERROR
    return IdentityRefused(code, code.reason, "correct the resolver", cause)


def _shown(value: object) -> str:
    """Return *value* for a log line; objects whose text may cost a query only by their type."""
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)[:MAX_SHOWN]
    return f"a value of type {type(value).__qualname__}"


def _nobody(scope: Scope) -> IdentityRefused:
    """Return what a socket that no resolver knows lacks, and what to do."""
    resolvers = [get_resolver(path) for path in settings.IDENTITY]
    takes_tokens = any(isinstance(resolver, TokenIdentity) for resolver in resolvers)
    takes_sessions = any(isinstance(resolver, SessionIdentity) for resolver in resolvers)
    if not takes_tokens and _token(scope):
        reason = "nothing reads the token; add TokenIdentity to WSGATEWAY_IDENTITY"
    elif takes_sessions and cookie(scope, settings.session_cookie_name):
        reason = "nobody is logged in with this session cookie, or no longer; log in again"
    elif takes_tokens:
        reason = "not logged in; log in first, or send a token"
    else:
        reason = "not logged in; log in first, or add TokenIdentity to WSGATEWAY_IDENTITY"
        reason += " and send a token"
    asked = ", ".join(settings.IDENTITY)
    return IdentityRefused(CloseCode.NOT_AUTHENTICATED, reason, f"WSGATEWAY_IDENTITY lists {asked}")


async def _bound(identity: Identity, resolver: Resolver) -> Identity:
    """Return *identity* with the Django user behind it, whose end ends the socket."""
    get_user = getattr(resolver, "get_user", None)
    if get_user is None or identity.user_id is not None or identity.session_key is not None:
        return identity
    try:
        user = await call_hook(get_user, identity.user)
    except ObjectDoesNotExist:
        return identity
    return replace(identity, user_id=user_id_of(user))


def _require_allowed(service: str) -> None:
    allowed = settings.SERVICES
    if allowed is not None and ANY not in allowed and service not in allowed:
        raise IdentityRefused(
            CloseCode.FORBIDDEN,
            f"service {service!r} is not in WSGATEWAY_SERVICES",
            f"add it there, or correct the client's path; {OWN_ROUTE}",
        )


async def require_service(broker: Broker, service: str) -> None:
    """Refuse a socket for a service that does not exist.

    Raises:
        IdentityRefused: There is no such service, or none can have this name.
        BrokerUnavailable: Not known now.
    """
    _require_allowed(service)
    try:
        broker.subjects.require_service(service)
    except NameRefused as exc:
        raise IdentityRefused(CloseCode.BAD_REQUEST, str(exc)) from exc
    if not await broker.service_exists(service):
        unknown = ServiceUnknown(service)
        raise IdentityRefused(CloseCode.FORBIDDEN, unknown.reason, f"{unknown.cure}; {OWN_ROUTE}")


async def with_cause(refusal: IdentityRefused, scope: Scope, broker: Broker) -> IdentityRefused:
    """Return *refusal* with its cause for the log, if the path's service does not exist.

    Often the path is then that of a consumer of the project's own. The client's answer stays the
    same: it must not tell a stranger which services exist.
    """
    service = route(scope).get("service")
    if refusal.cause or service is None or not broker.connected:
        return refusal
    try:
        await require_service(broker, service)
    except IdentityRefused as exc:
        if exc.reason != refusal.reason:
            return IdentityRefused(refusal.code, refusal.reason, exc.cure, exc.reason)
    except BrokerError:
        pass  # not known now
    return refusal


def _require_path(scope: Scope, identity: Identity) -> Identity:
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


class SessionIdentity:
    """The user who is logged in to Django; the service comes from the path.

    Works with and without Channels' ``AuthMiddlewareStack``. Without, the session is read only
    when there is a session cookie, and nothing of it costs anything after the handshake.
    """

    def user_name(self, user: Any) -> str | Awaitable[str]:
        """Return the name that *user*'s inbox has; override it, and `get_user`, for another field.

        A name must belong to one user only, and should never pass to another one.

        Raises:
            ObjectDoesNotExist: The user has no name, so that the socket is refused.
        """
        return str(user.get_username())

    def get_user(self, name: str) -> Any:
        """Return the user whom `user_name` calls *name*.

        Raises:
            ObjectDoesNotExist: There is no such user.
        """
        return get_user_model()._default_manager.get_by_natural_key(name)

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; None when nobody is logged in."""
        session = scope["session"] if "session" in scope else self._session(scope)
        if session is None:
            return None
        login = await self._find_login(scope, session)
        if login is None:
            return None
        name, account = login
        service = route(scope).get("service")
        if not service:
            raise IdentityRefused(
                CloseCode.BAD_REQUEST,
                "the path names no service",
                "its route lacks <service>; use wsgateway.routing.gateway_router",
            )
        device = parameter(scope, "device") or DEFAULT_DEVICE
        return _require_path(scope, Identity(service, name, device, session.session_key, **account))

    async def _find_login(self, scope: Scope, session: Any) -> tuple[str, dict[str, Any]] | None:
        """Return the user's name and account; None if nobody is logged in.

        Visits the thread for the database once, whatever `user_name` and the user's own methods
        ask there.
        """
        is_async = iscoroutinefunction(self.user_name)
        try:
            found = await _read_login(scope, session, None if is_async else self.user_name)
            if found is None:
                return None
            user, name, account = found
            name = await call_hook(self.user_name, user) if is_async else name
        except ObjectDoesNotExist as exc:
            raise self._no_name(
                f"raised {type(exc).__qualname__}: {str(exc).rstrip('.')}",
                "create the row that names this user, or name users by a field that all have",
            ) from exc
        if not isinstance(name, str):
            raise self._no_name(f"returned {_shown(name)}, not a string", "return str(…) there")
        return name, account

    def _no_name(self, cause: str, cure: str) -> IdentityRefused:
        method = f"{type(self).__module__}.{type(self).__qualname__}.user_name"
        return IdentityRefused(CloseCode.FORBIDDEN, NO_NAME, cure, f"{method} {cause}")

    def _session(self, scope: Scope) -> Any:
        key = cookie(scope, settings.session_cookie_name)
        if not key or not key.isascii() or not key.isprintable():  # databases choke on such keys
            return None
        return session_store()(key)


@database_sync_to_async
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
    """A cookie that `set_identity_cookie` made. One that is invalid or expired counts as none."""

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`."""
        value = cookie(scope, settings.COOKIE_NAME)
        if not value:
            return None
        try:
            identity = _read_token(value, COOKIE_SALT, parameter(scope, "device"))
        except signing.BadSignature:
            return None
        return _require_path(scope, identity)


class TokenIdentity:
    """A token that `make_token` made, in ``?token=…`` or ``Authorization: Bearer …``.

    For clients without a cookie of this site: mobile programs, other origins, other languages.
    """

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`; an invalid or expired token is refused."""
        token = _token(scope)
        if not token:
            return None
        try:
            identity = _read_token(token, TOKEN_SALT, parameter(scope, "device"))
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
        return _require_path(scope, identity)


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


# -- signed tokens ---------------------------------------------------------------------------


def make_token(
    service: str, user: str, device: str | None = None, *, max_age: float | None = None
) -> str:
    """Return a token that lets its holder connect as *user*; see `TokenIdentity`.

    Args:
        service: The only service that it is good for.
        user: The user's name.
        device: The only device that it is good for; None leaves the choice to the client.
        max_age: Seconds that it is valid; None means WSGATEWAY_TOKEN_MAX_AGE.

    Raises:
        IdentityRefused: A name cannot be used.
    """
    return _make_token(TOKEN_SALT, service, user, device, max_age)


def set_identity_cookie(
    response: HttpResponseBase,
    service: str,
    user: str,
    device: str | None = None,
    *,
    max_age: float | None = None,
    **options: Any,
) -> None:
    """Set the cookie that `SignedCookieIdentity` reads.

    Args:
        response: Gets the cookie: HttpOnly, SameSite=Lax, Secure unless DEBUG is on, and for the
            path of session cookies, SESSION_COOKIE_PATH.
        service: See `make_token`, as for the other arguments.
        user: The user's name.
        device: The device's name.
        max_age: Seconds that it is valid.
        **options: For ``response.set_cookie``, for example ``domain``.
    """
    age = settings.TOKEN_MAX_AGE if max_age is None else max_age
    value = _make_token(COOKIE_SALT, service, user, device, age)
    defaults: MutableMapping[str, Any] = {
        "path": settings.session_cookie_path,
        "httponly": True,
        "samesite": "Lax",
        "secure": not settings.debug,
    }
    response.set_cookie(settings.COOKIE_NAME, value, max_age=int(age), **{**defaults, **options})


def _make_token(
    salt: str, service: str, user: str, device: str | None, max_age: float | None
) -> str:
    Identity(service, user, device or DEFAULT_DEVICE)
    age = settings.TOKEN_MAX_AGE if max_age is None else max_age
    return signing.dumps([service, user, device, time.time() + age], salt=salt)


def _token(scope: Scope) -> str | None:
    """Return the token that a client sent; None without."""
    return parameter(scope, settings.TOKEN_PARAMETER) or bearer_token(scope)


def _read_token(token: str, salt: str, device: str | None) -> Identity:
    """Return whom *token* names.

    Raises:
        BadSignature: It is not ours; `SignatureExpired`: it was.
        IdentityRefused: It is good for another device only.
    """
    try:
        service, user, bound, expires = signing.loads(token, salt=salt)
    except signing.BadSignature:
        raise
    except Exception as exc:  # base64, zlib, JSON: whatever a forged token trips over
        raise signing.BadSignature("malformed") from exc
    if time.time() >= expires:
        raise signing.SignatureExpired("expired")
    if bound and device not in (None, bound):
        raise IdentityRefused(
            CloseCode.FORBIDDEN,
            "the token names another device",
            "connect without ?device=, or make a token for that device",
        )
    return Identity(service, user, bound or device or DEFAULT_DEVICE, expires=expires)
