"""Whom a caller means: a user's name, a Django user, or a pair of service and name."""

from __future__ import annotations

from typing import Any, NamedTuple

from wsgateway.identity.naming import name_of
from wsgateway.protocol.subjects import Topic, encode_token

__all__ = ["User", "Whom", "parse_user", "require_topic"]

User = str | tuple[str, str] | Any
"""A user's name; a pair of service and name, such as an `Inbox`; or a Django user."""


class Whom(NamedTuple):
    """A user, by the sockets that are theirs.

    Attributes:
        name: The user's name.
        service: The service of the sockets; None: any.
    """

    name: str
    service: str | None


def parse_user(user: User) -> Whom:
    """Return whom *user* means.

    Raises:
        NameRefused: No user can have this name.
        TypeError: It is nothing of the kind.
    """
    if isinstance(user, tuple):
        if len(user) != 2:
            raise TypeError(f"user is a tuple of {len(user)}; give (service, user's name)")
        service, name = user
        encode_token(service)
    else:
        service, name = None, user if isinstance(user, str) else name_of(user)
    encode_token(name)
    return Whom(name, service)


def require_topic(service: str, name: str) -> Topic:
    """Return a topic's address.

    Raises:
        NameRefused: No topic can have it.
    """
    encode_token(service)
    encode_token(name)
    return Topic(service, name)
