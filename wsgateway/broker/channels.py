"""What the channel layer stores in a broker: normal channels, and what is too big for a message."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgateway.broker.messages import Receipt

__all__ = ["ACK_WAIT", "BlobStore", "ChannelConsumer", "ChannelStore"]

ACK_WAIT = 30.0
"""Seconds after which a message that a dead process took goes to another."""


class ChannelConsumer(ABC):
    """Takes one channel's messages; other consumers, in whichever process, take others.

    A message stays in the channel until it is acknowledged; after `ACK_WAIT` it comes again, here
    or elsewhere. What was acknowledged here does not come again here.
    """

    @property
    @abstractmethod
    def asked(self) -> int:
        """Messages that may still come, although there is no room any more."""

    @abstractmethod
    def look(self) -> None:
        """Take messages: there may be room."""

    @abstractmethod
    def ack(self, receipt: str) -> None:
        """Say that somebody has the message: it leaves the channel."""

    @abstractmethod
    def give_back(self, receipt: str) -> None:
        """Let the message go to another consumer at once."""

    @abstractmethod
    async def close(self) -> None:
        """Take no more. What is on its way still comes, and may be answered. Idempotent."""


class ChannelStore(ABC):
    """Normal channels: each message is kept until one reader has taken it.

    Call it in the broker's loop.
    """

    @property
    @abstractmethod
    def limit(self) -> int:
        """How many messages any channel may hold; 0: not known."""

    @abstractmethod
    async def ensure(self, capacity: int) -> None:
        """See to it that channels can hold *capacity* messages. Idempotent, and never lowers it.

        Raises:
            BrokerError: They cannot.
        """

    @abstractmethod
    async def put(self, channel: str, data: bytes, ttl: float, capacity: int) -> None:
        """Store a message; return once it is stored. Call `ensure` first.

        Args:
            channel: Its name.
            data: Bytes.
            ttl: Seconds after which it is gone if nobody took it; rounded up to whole ones.
            capacity: How many messages the channel may hold, what is being read included.
                Exact for one process, approximate for several unless it is `limit`.

        Raises:
            QueueFull: The channel, or the store of all channels, is at its limit.
            MessageTooBig: More than one message can hold: put it into `BlobStore`.
            BrokerUnavailable: Perhaps it is not stored.
        """

    @abstractmethod
    def offer(
        self, channel: str, data: bytes, ttl: float, msg_id: str | None = None
    ) -> asyncio.Future[Receipt]:
        """Try once to store a message, in the order of the calls; do not wait.

        *msg_id* makes that idempotent for the channel. The future may get, besides a receipt,
        what `put` raises.

        Raises:
            BrokerUnavailable: Not connected; nothing was sent.
        """

    @property
    @abstractmethod
    def max_size(self) -> int:
        """Bytes that a message may have without `MessageTooBig`."""

    @abstractmethod
    async def count(self, channel: str) -> int:
        """Return how many messages *channel* holds, those included that consumers have taken."""

    @abstractmethod
    async def purge(self) -> None:
        """Remove every message of every channel."""

    @abstractmethod
    def take(
        self,
        channel: str,
        capacity: int,
        room: Callable[[], int],
        on_message: Callable[[bytes, str], None],
    ) -> ChannelConsumer:
        """Return what takes a channel's messages, from now on until it is closed.

        It outlives lost connections, and makes what it reads from if that is missing.

        Args:
            channel: Its name.
            capacity: As for `ensure`.
            room: Says how many messages may come now.
            on_message: Called with data and receipt, in the broker's read path: must not wait.
        """


class BlobStore(ABC):
    """Data that is too big for one message, under 16 bytes that name it.

    Call it in the broker's loop.
    """

    @abstractmethod
    async def store(self, identity: bytes, data: bytes, lifetime: float | None = None) -> int:
        """Store *data*; return in how many parts.

        Args:
            identity: 16 bytes; storing it again under the same ones changes nothing.
            data: Bytes.
            lifetime: Seconds that somebody may want it; None: as long as inboxes are kept.

        Raises:
            BrokerError: It is not stored, or nobody knows.
        """

    @abstractmethod
    def fetch(self, identity: bytes, count: int) -> Awaitable[bytes | None]:
        """Return what is stored under *identity* in *count* parts; None if it is gone.

        Raises:
            BrokerError: It cannot be read now.
        """

    @abstractmethod
    async def remove(self, identity: bytes) -> None:
        """Delete what is stored under *identity*. Idempotent.

        Raises:
            BrokerError: It may still be there.
        """
