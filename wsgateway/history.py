"""What an inbox or a topic holds, page by page."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Batch, Stored
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.subjects import Address, Inbox

__all__ = ["MAX_OFFSET", "MAX_PAGE", "History", "HistoryMessage", "check_page", "read_page"]

MAX_PAGE = 1000
"""Messages that the broker reads at once."""
MAX_OFFSET = 2**63 - 1


class HistoryMessage(NamedTuple):
    """A message of an inbox or a topic.

    Attributes:
        offset: Its position in the inbox or topic.
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
    """One page of the messages of an inbox or a topic.

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


def check_page(after: int | None, before: int | None, limit: int) -> None:
    """Refuse what cannot be a page.

    Raises:
        TypeError: Both *after* and *before* are given.
        ValueError: *limit* or an offset is out of range.
    """
    if after is not None and before is not None:
        raise TypeError("pass after, to read forward, or before, to read backward, but not both")
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit {limit!r} is not between 1 and {MAX_PAGE}")
    for offset in (after, before):
        if offset is not None and not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"offset {offset!r} is not between 0 and {MAX_OFFSET}")


async def read_page(
    broker: Broker, address: Address, after: int | None, before: int | None, limit: int
) -> History:
    """Return a page of what *address* holds; see `check_page` for the arguments.

    Raises:
        BrokerUnavailable: No answer in time.
    """
    log = broker.log(address)
    epoch = (await log.position()).epoch  # first: a page of a later life must not have this one
    if before == 0:
        batch = Batch([], False)
    elif after is not None:
        batch = await log.read_after(address, after, limit=limit)
    else:
        batch = await log.read_last(address, limit, before=before)
    return _page(batch, {"epoch": epoch, "offset": after or 0})


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
