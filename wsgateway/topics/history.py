"""What topics hold, page by page, for views and scripts."""

from __future__ import annotations

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action
from wsgateway.declared import TopicKind
from wsgateway.history import History, HistoryMessage, check_page, read_page
from wsgateway.topics.users import require_kind, require_topic

__all__ = ["History", "HistoryMessage", "ahistory", "history"]


async def ahistory(
    service: str,
    name: str,
    *,
    after: int | None = None,
    before: int | None = None,
    limit: int = 100,
) -> History:
    """Return messages that a durable topic holds, oldest first.

    Without *after* and *before*, these are the newest. It asks nobody for permission.

    Args:
        service: The service of the topic, for example ``room``.
        name: The topic's name within the service.
        after: Read forward from this offset, exclusive; 0: from the oldest message.
        before: Read backward from this offset, exclusive.
        limit: Messages of a page, from 1 to 1000. Fewer come if they are large.

    Raises:
        TopicsUnknown: No process declares topics of *service*.
        NameRefused: No topic can have this name.
        ValueError: *limit* or an offset is out of range, or the topics of *service* are
            ephemeral.
        TypeError: Both *after* and *before* are given.
        BrokerUnavailable: No answer in time.
    """
    return await runtime.call(_reading(service, name, after, before, limit))


def history(
    service: str,
    name: str,
    *,
    after: int | None = None,
    before: int | None = None,
    limit: int = 100,
) -> History:
    """Do what `ahistory` does, from synchronous code; it takes the same arguments.

    Raises:
        RuntimeError: In a running event loop; await `ahistory` there.
    """
    return runtime.call_sync(_reading(service, name, after, before, limit), name="history")


def _reading(
    service: str, name: str, after: int | None, before: int | None, limit: int
) -> Action[History]:
    """Check the arguments here, in the caller's thread; return what reads."""
    topic = require_topic(service, name)
    check_page(after, before, limit)

    async def read(broker: Broker) -> History:
        await _require_durable(broker, service)
        return await read_page(broker, topic, after, before, limit)

    return read


async def _require_durable(broker: Broker, service: str) -> None:
    if await require_kind(broker, service) is TopicKind.EPHEMERAL:
        raise ValueError(f"topics of {service!r} are ephemeral, so they have no history")
