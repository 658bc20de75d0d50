"""Asks the resolvers of ``WSGATEWAY_IDENTITY``, and whether the service exists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import ObjectDoesNotExist

from wsgateway import declared
from wsgateway.broker.base import Broker
from wsgateway.conf import settings
from wsgateway.declared import ANY
from wsgateway.exceptions import BrokerError, IdentityRefused, NameRefused, ServiceUnknown
from wsgateway.handshake import cookie, route
from wsgateway.hooks import call_hook, get_resolver
from wsgateway.identity.base import Identity, Resolver, Scope, shown
from wsgateway.identity.resolvers import AnonymousIdentity, SessionIdentity
from wsgateway.identity.tokens import token_in
from wsgateway.logins import user_id_of
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import encode_token_protocol

__all__ = ["renew_identity", "require_service", "resolve_identity", "with_cause"]

OWN_ROUTE = "If this is your own consumer's URL, list its route before the gateway's"


async def resolve_identity(scope: Scope) -> Identity:
    """Return whose socket *scope* is: the first resolver that returns an identity wins.

    Raises:
        IdentityRefused: No resolver knows, one refuses, or the service is not allowed.
    """
    for path in settings.IDENTITY:
        identity = await _ask(path, scope)
        if identity is not None:
            _require_allowed(identity.service)
            return identity
    raise _nobody(scope)


async def renew_identity(scope: Scope, identity: Identity, token: str) -> Identity:
    """Return what an open socket of *identity* lives by from now on, if *token* is for it.

    Args:
        scope: The socket's. Only its path counts: what its cookies, headers and query say may not
            let a socket live on whose token is not accepted.
        identity: Whose socket it is.
        token: The new one.

    Raises:
        IdentityRefused: The token is not accepted, or is for somebody else.
    """
    request = {
        **{name: value for name, value in scope.items() if name not in ("session", "user")},
        "headers": [(b"authorization", b"Bearer " + token.encode())],
        "query_string": urlencode({"device": identity.device}).encode(),
        "subprotocols": [encode_token_protocol(token)],
    }
    found = await resolve_identity(request)
    for part in ("service", "user", "device"):
        if getattr(found, part) != getattr(identity, part):
            raise IdentityRefused(CloseCode.FORBIDDEN, f"the new token is for another {part}")
    return found


async def _ask(path: str, scope: Scope) -> Identity | None:
    """Return what the resolver at *path* says.

    Raises:
        IdentityRefused: It refuses, or it fails.
    """
    try:
        resolver = get_resolver(path)
        found: Any = await call_hook(resolver.resolve, scope)
        if isinstance(found, Identity):
            _require_own_name(found, resolver)
            return replace(await _bound(found, resolver), resolver=path)
    except (IdentityRefused, BrokerError):
        raise
    except Exception as exc:
        raise _failed(f"the resolver {path} raised {type(exc).__name__}") from exc
    if found is not None:
        raise _failed(f"{path}.resolve returned {shown(found)}, not an Identity or None")
    return None


def _require_own_name(identity: Identity, resolver: Resolver) -> None:
    """Refuse a user whose name stands for everyone who is not logged in."""
    if identity.is_anonymous and not isinstance(resolver, AnonymousIdentity):
        raise IdentityRefused(
            CloseCode.FORBIDDEN,
            f"no user may be called {identity.user!r}",
            "rename the user: AnonymousIdentity gives this name to readers without a login",
        )


def _failed(cause: str) -> IdentityRefused:
    code = CloseCode.INTERNAL_ERROR
    return IdentityRefused(code, code.reason, "correct the resolver", cause)


def _nobody(scope: Scope) -> IdentityRefused:
    """Return the refusal of a socket that no resolver knows, with what it lacks."""
    resolvers = [get_resolver(path) for path in settings.IDENTITY]
    takes_tokens = any(getattr(resolver, "reads_tokens", False) for resolver in resolvers)
    takes_sessions = any(isinstance(resolver, SessionIdentity) for resolver in resolvers)
    if not takes_tokens and token_in(scope):
        reason = "nothing reads the token; add TokenIdentity to WSGATEWAY_IDENTITY"
    elif token_in(scope):
        reason = "no resolver in WSGATEWAY_IDENTITY reads this kind of token"
    elif takes_sessions and cookie(scope, settings.session_cookie_name):
        reason = "this session is not logged in, or has ended; log in again"
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
    if service in declared.topics:
        raise _unknown(service, has_topics=True)
    allowed = settings.SERVICES
    if allowed is not None and ANY not in allowed and service not in allowed:
        raise IdentityRefused(
            CloseCode.FORBIDDEN,
            f"service {service!r} is not in WSGATEWAY_SERVICES",
            f"add it there, or correct the client's path. {OWN_ROUTE}",
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
        raise _unknown(service, has_topics=service in broker.topic_names)


def _unknown(service: str, *, has_topics: bool) -> IdentityRefused:
    """Return the refusal of a socket for a service that has no users."""
    unknown = ServiceUnknown(service, is_other=has_topics)
    cure = f"{unknown.cure}. {OWN_ROUTE}"
    if has_topics:
        cure = "connect to a service of users, and subscribe to the topics on that socket"
    return IdentityRefused(CloseCode.FORBIDDEN, unknown.reason, cure)


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
