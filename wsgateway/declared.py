"""Which services this process declares, and who may talk to them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from django.utils.module_loading import autodiscover_modules

from wsgateway.bridges.config import Bridge, bridges_of
from wsgateway.conf import settings

if TYPE_CHECKING:
    from wsgateway.topics.registry import TopicService

__all__ = [
    "ANY",
    "EVERYTHING",
    "NOTHING",
    "Declared",
    "TopicKind",
    "bridges",
    "declared_services",
    "discover",
    "handled_services",
    "registered",
    "source_of",
    "topics",
]

ANY = "*"
"""In ``WSGATEWAY_SERVICES``: clients may name any service."""


class TopicKind(StrEnum):
    """What topics a service has."""

    NONE = ""
    DURABLE = "durable"
    EPHEMERAL = "ephemeral"


class Declared(NamedTuple):
    """The services that a process declares.

    Attributes:
        services: The names of those of users; it makes their streams.
        is_open: Whether clients may name any of them; then all share one stream.
        topics: The names of those of durable topics; it makes their streams.
        casts: The names of those of ephemeral topics, which have no stream.
        queues: The names of those of topics that get what clients send; it makes their streams.
    """

    services: frozenset[str] = frozenset()
    is_open: bool = False
    topics: frozenset[str] = frozenset()
    casts: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()

    def topic_kind(self, service: str) -> TopicKind | None:
        """Return what topics *service* is declared to have; None: it is not declared to have any.

        That says nothing about what other processes declare.
        """
        if service in self.topics:
            return TopicKind.DURABLE
        return TopicKind.EPHEMERAL if service in self.casts else None


NOTHING = Declared()
EVERYTHING = Declared(is_open=True)


registered: dict[str, Any] = {}
"""What `wsgateway.service` has registered, by name: `wsgateway.services.registry.Service`."""

topics: dict[str, TopicService] = {}
"""What `wsgateway.topic` has registered, by name. A service has users or topics, never both."""


def discover() -> dict[str, Any]:
    """Import ``ws_services`` of every installed app; return what is registered then."""
    autodiscover_modules(settings.SERVICES_MODULE)
    return dict(registered)


def bridges() -> dict[str, Bridge]:
    """Return what ``WSGATEWAY_BRIDGES`` names, by name."""
    return bridges_of(settings.BRIDGES, settings.PREFIX)


def handled_services() -> set[str]:
    """Return the services of users that a handler, a webhook or a bridge makes exist."""
    bridged = {service for bridge in bridges().values() for service in bridge.services}
    return discover().keys() | ((settings.WEBHOOKS.keys() | bridged) - topics.keys())


def declared_services() -> Declared:
    """Return what ``@service``, ``@topic`` and the settings declare.

    ``WSGATEWAY_SERVICES``, if it is set, replaces ``@service``, ``WSGATEWAY_WEBHOOKS`` and
    ``WSGATEWAY_BRIDGES``.
    """
    handled = handled_services()
    found = Declared(
        topics=frozenset(name for name, topic in topics.items() if topic.durable),
        casts=frozenset(name for name, topic in topics.items() if not topic.durable),
        queues=frozenset(name for name, topic in topics.items() if topic.queue),
    )
    listed = settings.SERVICES
    if listed is None:
        return found._replace(services=frozenset(handled))
    if ANY in listed:
        return found._replace(is_open=True)
    return found._replace(services=frozenset(listed))


def source_of(function: Any) -> str:
    """Return the dotted path of a function, or of the class of an instance that can be called."""
    kind = type(function)
    module = getattr(function, "__module__", None) or kind.__module__
    return f"{module}.{getattr(function, '__qualname__', kind.__qualname__)}"
