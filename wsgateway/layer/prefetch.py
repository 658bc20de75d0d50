"""The readers' side of a normal channel: fetched ahead, and given back if nobody comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from wsgateway.broker.channels import ChannelConsumer
from wsgateway.layer import wire
from wsgateway.layer.mailbox import Mailbox
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection

__all__ = ["Prefetch"]

LINGER = 0.25
"""Seconds that fetched messages wait for a reader here before others may have them."""
MAX_BATCH = 64


class Prefetch:
    """Fetches one channel's messages for the receivers on one connection.

    Asks for one message at first, and for twice as many each time that all have come.

    Args:
        connection: Where.
        channel: A normal channel.
        capacity: As for `ChannelStore.take`.
        on_idle: Called once nobody reads and nothing more can come.
    """

    def __init__(
        self,
        connection: Connection,
        channel: str,
        capacity: int,
        on_idle: Callable[[Prefetch], None],
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.mailbox: Mailbox[tuple[bytes, str]] = Mailbox(1, lambda _: False)
        self.closed = False
        """Whether readers have to find another one."""
        self._capacity = capacity
        self._on_idle = on_idle
        self._batch = 1
        self._consumer: ChannelConsumer | None = None
        self._lingering: asyncio.Task[None] | None = None  # while the consumer is open

    # From any thread

    @property
    def asked(self) -> bool:
        """Whether a request for messages is open."""
        return self._consumer is not None and self._consumer.asked > 0

    def want(self) -> None:
        """See to it that messages are fetched."""
        if asyncio._get_running_loop() is self.connection.loop:
            self._want()
        else:
            self.connection.loop.call_soon_threadsafe(self._want)

    def taken(self, receipt: str) -> None:
        """Tell the broker that a receiver has the message."""
        if asyncio._get_running_loop() is self.connection.loop:
            self._ack(receipt)
        else:
            self.connection.loop.call_soon_threadsafe(self._ack, receipt)

    async def close(self) -> None:
        """Stop fetching; give back what nobody took, before the connection disconnects."""
        self.closed = True

        async def close() -> None:
            if self._lingering is not None:
                self._lingering.cancel()
            if self._consumer is not None:
                await self._end(self._consumer)

        if self.connection.usable:  # otherwise others get it after `ACK_WAIT`
            await self.connection.call(close)

    # In the connection's loop

    def _want(self) -> None:
        if self.closed:
            return
        if self._lingering is None:
            self._consumer = self.connection.broker.channels.take(
                self.channel, self._capacity, self._room, self._on_message
            )
            self._lingering = supervise(self._linger, f"wsgateway-read-{self.channel}")
        elif self._consumer is not None:
            self._consumer.look()

    def _room(self) -> int:
        mailbox, consumer = self.mailbox, self._consumer
        if not mailbox.reading or len(mailbox.queue) > self._batch // 2:
            return 0
        if consumer is None or consumer.asked:  # one request after the other
            return 0
        return max(self._batch, mailbox.reading)

    def _on_message(self, data: bytes, receipt: str) -> None:
        if self._consumer is not None and not self._consumer.asked:
            self._batch = min(MAX_BATCH, 2 * self._batch)
        self.mailbox.put_always((wire.framed(data), receipt))

    def _ack(self, receipt: str) -> None:
        consumer = self._consumer
        if consumer is not None:
            consumer.ack(receipt)
            if not consumer.asked:
                consumer.look()

    async def _linger(self) -> None:
        """Give back what nobody takes; close the consumer once nobody reads."""
        mailbox, consumer = self.mailbox, self._consumer
        while consumer is not None:
            await asyncio.sleep(LINGER)
            if mailbox.reading or time.monotonic() - mailbox.used < LINGER:
                continue
            if mailbox.queue:
                self._batch = 1
                self._give_back(consumer)
            elif not consumer.asked:
                self._lingering = None  # a reader who comes now begins again
                self._on_idle(self)
                await self._end(consumer)
                return

    async def _end(self, consumer: ChannelConsumer) -> None:
        await consumer.close()  # first, or it would get what is given back
        if not self.mailbox.reading or self.closed:
            self._give_back(consumer)

    def _give_back(self, consumer: ChannelConsumer) -> None:
        while (item := self.mailbox.take()) is not None:
            consumer.give_back(item[1])
