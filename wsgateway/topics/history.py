"""What topics hold, page by page, for views and scripts."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action
from wsgateway.broker.messages import Batch, Stored
from wsgateway.declared import TopicKind
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.subjects import Inbox
from wsgateway.topics.users import require_kind, require_topic

__all__ = ["History", "HistoryMessage", "ahistory", "history"]

MAX_PAGE = 1000
"""Messages that the broker reads at once."""
MAX_OFFSET = 2**63 - 1


class HistoryMessage(NamedTuple):
    """A message of a topic.

    Attributes:
        offset: Its position in the topic.
        time: When it was stored.
        data: Its content: str for a text frame, bytes for a binary one.
        sender: Who sent it, as a pair of service and user, if a client did and the gateway stored
            it at once; None for what a program published.
    """

    offset: int
    time: dt.datetime
    data: str | bytes
    sender: Inbox | None

    def json(self) -> Any:
        """Return what its content means as JSON.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.data)


class History(NamedTuple):
    """One page of a topic's messages.

    Attributes:
        messages: The messages, oldest first. Channels events are left out, as sockets do not get
            them either.
        more: Whether there are more in the direction in which you read.
        first: What to pass as *before* for the page before this one; None: the page is empty.
        last: What to pass as *after* for the page after this one; None: the page is empty.
        position: Where a client goes on after this page: what the clients' ``topic()`` takes as
            *position*, a dictionary of ``epoch`` and ``offset``.
    """

    messages: list[HistoryMessage]
    more: bool
    first: int | None
    last: int | None
    position: dict[str, Any]


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
    if after is not None and before is not None:
        raise TypeError("pass after, to read forward, or before, to read backward, but not both")
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit {limit!r} is not between 1 and {MAX_PAGE}")
    for offset in (after, before):
        if offset is not None and not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"offset {offset!r} is not between 0 and {MAX_OFFSET}")

    async def read(broker: Broker) -> History:
        await _require_durable(broker, service)
        log = broker.log(topic)
        epoch = (await log.position()).epoch  # first: a page of a later life must not have this one
        if before == 0:
            batch = Batch([], False)
        elif after is not None:
            batch = await log.read_after(topic, after, limit=limit)
        else:
            batch = await log.read_last(topic, limit, before=before)
        return _page(batch, {"epoch": epoch, "offset": after or 0})

    return read


async def _require_durable(broker: Broker, service: str) -> None:
    if await require_kind(broker, service) is TopicKind.EPHEMERAL:
        raise ValueError(f"topics of {service!r} are ephemeral, so they have no history")


def _page(batch: Batch, position: dict[str, Any]) -> History:
    """Return the page that *batch* is; *position* is where an empty one ends."""
    offsets = [stored.offset for stored in batch.messages]
    first, last = (offsets[0], offsets[-1]) if offsets else (None, None)
    if last is not None:
        position["offset"] = last
    return History(list(_messages(batch.messages)), batch.more, first, last, position)


def _messages(batch: list[Stored]) -> Iterator[HistoryMessage]:
    for stored in batch:
        try:
            data = stored.frame.data
        except MalformedMessage:
            continue
        yield HistoryMessage(
            stored.offset, dt.datetime.fromisoformat(stored.time), data, stored.sender
        )
