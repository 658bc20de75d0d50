"""Normal channels and large messages within one process, for `MemoryBroker`."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsgateway.broker.channels import ACK_WAIT, BlobStore, ChannelConsumer, ChannelStore
from wsgateway.broker.memory.pull_consumer import MemoryPullConsumer, Waiting, taking
from wsgateway.broker.memory.sequence import Sequence
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import BrokerError, MessageTooBig, QueueFull

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBlobStore", "MemoryChannelStore", "MemoryChannels"]

MAX_SIZE = 1024 * 1024
"""Bytes of one message, as of a NATS server with its defaults."""


@dataclass(kw_only=True)
class Kept(Waiting):
    """A message of a channel.

    Attributes:
        until: Monotonic time at which it is gone.
    """

    until: float


@dataclass
class MemoryChannels:
    """What the channel stores of one process share.

    Attributes:
        limit: How many messages any channel may hold.
        messages: By channel's subject, then by sequence.
        sequence: Numbers the messages of all channels.
        consumers: By channel's subject, what has consumers look for messages.
        blobs: Large messages, with when they are gone.
    """

    limit: int = 0
    messages: dict[str, dict[int, Kept]] = field(default_factory=lambda: defaultdict(dict))
    sequence: Sequence = field(default_factory=Sequence)
    consumers: dict[str, dict[int, Callable[[], None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    blobs: dict[bytes, tuple[bytes, float]] = field(default_factory=dict)

    def kept(self, subject: str) -> dict[int, Kept]:
        """Return what a channel still holds; call it with `taking` held.

        A message behind one that lives longer goes with that one.
        """
        now, kept = time.monotonic(), self.messages[subject]
        while kept and kept[first := next(iter(kept))].until <= now:
            del kept[first]
        return kept

    def wake(self, subject: str) -> None:
        """Have a channel's consumers look for messages."""
        for look in list(self.consumers[subject].values()):
            look()


class MemoryChannelStore(ChannelStore):
    """See `ChannelStore`.

    Args:
        broker: Whose store they are in.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._channels = broker.store.channels

    @property
    def limit(self) -> int:
        return self._channels.limit

    async def ensure(self, capacity: int) -> None:
        await self._broker.wait_ready()
        self._channels.limit = max(self._channels.limit, capacity)

    async def put(self, channel: str, data: bytes, ttl: float, capacity: int) -> None:
        await self._broker.wait_ready()
        self._put(channel, data, ttl, min(capacity, self.limit), None)

    def offer(
        self, channel: str, data: bytes, ttl: float, msg_id: str | None = None
    ) -> asyncio.Future[Receipt]:
        self._broker.require_open()
        result: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        try:
            result.set_result(self._put(channel, data, ttl, self.limit, msg_id))
        except BrokerError as exc:
            result.set_exception(exc)
        return result

    def _put(
        self, channel: str, data: bytes, ttl: float, capacity: int, msg_id: str | None
    ) -> Receipt:
        if len(data) > MAX_SIZE:
            raise MessageTooBig(len(data), MAX_SIZE)
        store, subject = self._channels, self._broker.subjects.channel(channel)
        key = None if msg_id is None else f"{msg_id}.{subject}"
        with taking:
            if known := store.sequence.known(key):
                return known
            kept = store.kept(subject)
            if len(kept) >= capacity:
                raise QueueFull(f"channel {channel!r} already holds {len(kept)} messages")
            offset = store.sequence.next(key, self._broker.store.duplicate_window)
            kept[offset] = Kept(data, offset, until=time.monotonic() + max(1, math.ceil(ttl)))
        store.wake(subject)
        return Receipt(offset, False)

    @property
    def max_size(self) -> int:
        return MAX_SIZE

    async def count(self, channel: str) -> int:
        await self._broker.wait_ready()
        with taking:
            return len(self._channels.kept(self._broker.subjects.channel(channel)))

    async def purge(self) -> None:
        await self._broker.wait_ready()
        prefix = f"{self._broker.subjects.prefix}.chan."
        with taking:
            for subject, kept in self._channels.messages.items():
                if subject.startswith(prefix):
                    kept.clear()

    def take(
        self,
        channel: str,
        capacity: int,
        room: Callable[[], int],
        on_message: Callable[[bytes, str], None],
    ) -> ChannelConsumer:
        self._channels.limit = max(self._channels.limit, capacity)
        subject = self._broker.subjects.channel(channel)
        return _Consumer(self._broker, subject, room, on_message)


class _Consumer(MemoryPullConsumer[Kept], ChannelConsumer):
    """See `ChannelConsumer`."""

    asked = 0

    def __init__(
        self,
        broker: MemoryBroker,
        subject: str,
        room: Callable[[], int],
        on_message: Callable[[bytes, str], None],
    ) -> None:
        self._channels = broker.store.channels
        self._subject = subject
        super().__init__(
            lambda: self._channels.kept(subject).values(),
            room,
            lambda message: on_message(message.payload, str(message.sequence)),
            ACK_WAIT,
        )
        self._entry = broker.enter(self._channels.consumers[subject], self.look)
        self.look()

    def ack(self, receipt: str) -> None:
        with taking:
            self._channels.messages[self._subject].pop(int(receipt), None)

    def give_back(self, receipt: str) -> None:
        with taking:
            message = self._channels.messages[self._subject].get(int(receipt))
            if message is not None:
                message.due = 0.0
        self._channels.wake(self._subject)

    async def close(self) -> None:
        self._entry.close()
        self.stop()


class MemoryBlobStore(BlobStore):
    """See `BlobStore`.

    Args:
        broker: Whose store they are in.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def store(self, identity: bytes, data: bytes, lifetime: float | None = None) -> int:
        await self._broker.wait_ready()
        store, now = self._broker.store, time.monotonic()
        blobs = store.channels.blobs
        for known in [each for each, (_, until) in blobs.items() if until <= now]:
            del blobs[known]
        blobs[identity] = (data, now + (store.inboxes.max_age if lifetime is None else lifetime))
        return 1

    async def fetch(self, identity: bytes, count: int) -> bytes | None:
        await self._broker.wait_ready()
        data, until = self._broker.store.channels.blobs.get(identity, (None, 0.0))
        return data if until > time.monotonic() else None

    async def remove(self, identity: bytes) -> None:
        await self._broker.wait_ready()
        self._broker.store.channels.blobs.pop(identity, None)
