"""Who reads a topic: asked of the gateways at the moment of the call, see `wsgateway.presence`."""

from __future__ import annotations

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action
from wsgateway.presence.paging import MAX_PAGE
from wsgateway.presence.readers import find_readers
from wsgateway.presence.results import Readers
from wsgateway.protocol.subjects import Inbox
from wsgateway.topics.users import require_kind, require_topic

__all__ = ["Readers", "areaders", "readers"]


async def areaders(
    service: str, name: str, *, after: tuple[str, str] | None = None, limit: int = MAX_PAGE
) -> Readers:
    """Return a page of the users who read a topic, in the order of their services and names.

    Pass each page's ``after`` to get the next one. A user who goes on reading is on exactly one
    of them. It asks nobody for permission.

    Args:
        service: The service of the topic, for example ``room``.
        name: The topic's name within the service.
        after: A pair of service and user, who need not read it; None: begin with the first.
        limit: Users, 1 to 1000; a page may have fewer, although there are more pages.

    Raises:
        TopicsUnknown: No process declares topics of *service*.
        NameRefused: No topic can have this name.
        ValueError: *limit* is out of range.
        BrokerUnavailable: The broker cannot be reached.
    """
    return await runtime.call(_asking(service, name, after, limit))


def readers(
    service: str, name: str, *, after: tuple[str, str] | None = None, limit: int = MAX_PAGE
) -> Readers:
    """Do what `areaders` does, from synchronous code; it takes the same arguments.

    Raises:
        RuntimeError: In a running event loop; await `areaders` there.
    """
    return runtime.call_sync(_asking(service, name, after, limit), name="readers")


def _asking(service: str, name: str, after: tuple[str, str] | None, limit: int) -> Action[Readers]:
    """Check the arguments here, in the caller's thread; return what asks."""
    topic = require_topic(service, name)
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}, but must be 1 to {MAX_PAGE}")
    begin = None if after is None else Inbox(*after)

    async def ask(broker: Broker) -> Readers:
        await require_kind(broker, service)
        return await find_readers(broker, topic, begin, limit)

    return ask
