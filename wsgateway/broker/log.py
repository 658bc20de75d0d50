"""What is stored and read by offset: all inboxes, or the topics of one service.

All offsets of one log count together: they rise within an inbox or a topic, but have holes. All
methods that wait have a deadline of ``WSGATEWAY_BROKER_TIMEOUT`` seconds and may be cancelled at
any point, and may raise `BrokerUnavailable` or `BrokerClosed`.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Batch, Position, Stored
from wsgateway.protocol.subjects import Address

__all__ = ["Log"]


class Log(ABC):
    """One log. Each of its methods takes addresses that it holds, and no others."""

    name: str
    """What it is, for messages: the stream's name, where there are streams."""

    @abstractmethod
    async def read_after(
        self, address: Address, offset: int, *, limit: int, anchor: bool = False
    ) -> Batch:
        """Return the messages stored after *offset*, oldest first.

        May lag behind the leader; ask again until an announced offset is reached.

        Args:
            address: Whose messages.
            offset: Stream sequence, exclusive; 0 means from the first one kept.
            limit: 1-1000 messages.
            anchor: Look for the message at *offset* too, see `Batch.anchored`. One that lives
                for ever, or is older than the stream's age limit, proves nothing.
        """

    @abstractmethod
    async def read_last(self, address: Address, limit: int, *, before: int | None = None) -> Batch:
        """Return the newest messages of *address*, oldest first; `Batch.more`: it has older ones.

        To page backwards, pass the offset of a page's first message as *before* of the next. Only
        what nobody stores any more, below *before*, is sure to be complete; without it, the newest
        may be missing for a moment, as with `read_after`.

        Args:
            address: Whose messages.
            limit: 1-1000 messages. Fewer come, with `Batch.more`, if they are large.
            before: Stream sequence, exclusive; None: up to the newest one kept.

        Raises:
            BrokerUnavailable: No answer in time, or the replicas contradict each other.
        """

    @abstractmethod
    async def offset_at(self, address: Address, time: dt.datetime) -> int | None:
        """Return the offset of the oldest message kept of those stored at *time* or later.

        Args:
            address: Whose messages.
            time: With a time zone.

        Returns:
            None if there is none. May lag behind the leader.
        """

    @abstractmethod
    def watch(
        self, address: Address, on_message: Callable[[Stored], None], queue: str = ""
    ) -> Closable:
        """Call *on_message* for each message as it is stored. At most once: may miss some.

        *on_message* runs in the broker's read path: it must not wait and not raise. Of those who
        watch with the same *queue*, on whichever connection, one is called.
        """

    @abstractmethod
    async def last_offsets(self, addresses: Iterable[Address]) -> dict[Address, int]:
        """Return the newest offset of each of *addresses* that holds anything."""

    @abstractmethod
    async def position(self) -> Position:
        """Return where the log stands, according to its leader.

        Calls at the same time may share a request; none gets an answer from before its call.
        """

    @property
    @abstractmethod
    def epoch(self) -> str:
        """Names the log's life, as of the last connection or `position`; empty before."""

    @abstractmethod
    async def count(self, address: Address) -> int:
        """Return how many messages *address* holds, according to the log's leader."""
