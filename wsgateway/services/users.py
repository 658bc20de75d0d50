"""Which Django user sent a message: the resolver that made the name finds the user."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ObjectDoesNotExist

from wsgateway.conf import settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.hooks import call_hook_in_thread
from wsgateway.identity import (
    CookieIdentity,
    SessionIdentity,
    SignedCookieIdentity,
    TokenIdentity,
    get_resolver,
)

__all__ = ["UserNotFound", "find_user", "naming_path", "naming_resolver"]

NAMED_BY_THE_PROJECT = (TokenIdentity, SignedCookieIdentity, CookieIdentity)
"""They carry names that the project's own code chose."""


class UserNotFound(WsGatewayError, ObjectDoesNotExist):
    """The sender of a message is not a Django user, as far as can be said."""


def find_user(name: str, resolver: str | None) -> Any:
    """Return the Django user who sends as *name*; asks the database.

    Args:
        name: The user's name in the address of the message.
        resolver: The entry of ``WSGATEWAY_IDENTITY`` that made it, as the gateway noted; None if
            the message does not say so.

    Raises:
        ObjectDoesNotExist: There is no such user, or several resolvers could have named them.
    """
    found = _named_by(resolver)
    try:
        user = call_hook_in_thread(found.get_user, name)
    except ValueError as exc:  # a key that is not a number, for example
        raise UserNotFound(f"{type(found).__name__} cannot have named {name!r}: {exc}") from exc
    user_name = getattr(found, "user_name", None)
    if user_name is not None and call_hook_in_thread(user_name, user) != name:
        raise UserNotFound(
            f"{type(found).__name__}.get_user({name!r}) returns a user to whom user_name "
            "gives another name; override both"
        )
    return user


def _named_by(path: str | None) -> Any:
    listed = settings.IDENTITY
    if path is None:
        found = {id(f): f for entry in listed if (f := _finder(entry)) is not None}
        if len(found) == 1:
            return found.popitem()[1]
        raise UserNotFound(
            f"{len(found)} resolvers of WSGATEWAY_IDENTITY find users, but the message does not "
            "say which of them named its sender; only messages from a gateway do"
        )
    if path not in listed:
        raise UserNotFound(f"{path!r}, which named the sender, is not in WSGATEWAY_IDENTITY")
    finder = _finder(path)
    if finder is None:
        raise UserNotFound(f"{path!r} named the sender, but has no method get_user(name)")
    return finder


def _finder(path: str) -> Any:
    """Return the resolver whose ``get_user`` finds whom *path* names; None without one."""
    resolver: Any = get_resolver(path)
    if hasattr(resolver, "get_user"):
        return resolver
    if not isinstance(resolver, NAMED_BY_THE_PROJECT):
        return None
    return naming_resolver()


def naming_path() -> str | None:
    """Return the entry of ``WSGATEWAY_IDENTITY`` that names users for tokens and cookies.

    Those do not say how their names were made. It is the first that has ``get_user``; None without.
    """
    return next(
        (path for path in settings.IDENTITY if hasattr(get_resolver(path), "get_user")), None
    )


def naming_resolver() -> Any:
    """Return the resolver that names Django users: that of `naming_path`, or else by username."""
    path = naming_path()
    return get_resolver(path) if path else _by_username


_by_username = SessionIdentity()
