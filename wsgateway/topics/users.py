"""What a caller means: which topic, and which user, by name, by pair, or as a Django user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wsgateway.exceptions import TopicsUnknown
from wsgateway.identity.naming import name_of
from wsgateway.protocol.subjects import Topic, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.declared import TopicKind

__all__ = ["User", "Whom", "parse_user", "require_kind", "require_topic"]

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
        TypeError: It is nothing of the kind, or a visitor who is not logged in.
    """
    if getattr(user, "is_anonymous", False):
        raise TypeError("user is a visitor who is not logged in, so no socket is theirs")
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


async def require_kind(broker: Broker, service: str) -> TopicKind:
    """Return what kind of topics *service* has.

    Raises:
        TopicsUnknown: No process declares topics of it.
        BrokerUnavailable: No answer in time.
    """
    known = broker.known_topics(service)
    kind = await broker.topics_of(service) if known is None else known
    if not kind:
        raise TopicsUnknown(service, broker.topic_names, service in broker.service_names)
    return kind
