"""Normal channels: kept in the broker until one reader, anywhere, has taken them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from channels.exceptions import ChannelFull

from wsgateway import counters
from wsgateway.exceptions import MessageTooBig, QueueFull
from wsgateway.layer import blobs, wire
from wsgateway.layer.prefetch import Prefetch

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["NormalChannels", "channel_full"]


def channel_full(channel: str) -> ChannelFull:
    """Return the error of a send to a full channel, and count it."""
    counters.layer.refused_full += 1
    return ChannelFull(channel)


class NormalChannels:
    """The normal channels of one layer.

    Args:
        layer: Whose.
    """

    def __init__(self, layer: NatsChannelLayer) -> None:
        self._layer = layer
        self.prefetches: dict[tuple[Connection, str], Prefetch] = {}
        self._ended: list[Prefetch] = []  # whose readers still wait there

    def flushed(self) -> None:
        """Drop what was fetched: the layer was flushed."""
        for prefetch in list(self.prefetches.values()):
            prefetch.mailbox.queue.clear()

    async def send(self, connection: Connection, channel: str, data: bytes) -> None:
        """Store an envelope for one reader; return once it is stored.

        Raises:
            ChannelFull: The channel holds as much as it may.
        """
        layer, store = self._layer, connection.broker.channels
        capacity, expiry = layer.get_capacity(channel), layer.expiry
        if store.limit < capacity:
            await store.ensure(layer.largest_capacity)
        try:
            try:
                await store.put(channel, data, expiry, capacity)
            except MessageTooBig:
                claim = await blobs.store(connection.broker.blobs, data, expiry)
                await store.put(channel, claim, expiry, capacity)
        except QueueFull as exc:
            raise channel_full(channel) from exc
        counters.layer.sent_normal += 1

    # -- receive -------------------------------------------------------------------------

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of a normal channel; wait for one."""
        layer, envelopes = self._layer, self._layer.envelopes
        while True:  # again if the layer was closed while it waited
            connection = await layer.connections.ready()
            prefetch = self.prefetches.get((connection, channel))
            if prefetch is None:
                prefetch = self.prefetches.setdefault(
                    (connection, channel),
                    Prefetch(connection, channel, layer.largest_capacity, self._forget),
                )
            mailbox = prefetch.mailbox
            mailbox.reading += 1
            try:
                while not prefetch.closed:
                    item = mailbox.take()
                    if item is None:
                        prefetch.want()
                        await mailbox.wait()
                        continue
                    data, receipt = item
                    envelope: bytes | None = data
                    if wire.is_claim(data):
                        envelope = await envelopes.redeem(mailbox, item, data)
                    prefetch.taken(receipt)
                    message = None if envelope is None else envelopes.decode(envelope)
                    if message is not None:
                        counters.layer.received += 1
                        return message
            finally:
                mailbox.end_reading()

    def _forget(self, prefetch: Prefetch) -> None:
        key = prefetch.connection, prefetch.channel
        if self.prefetches.get(key) is prefetch:
            del self.prefetches[key]

    async def close(self, connection: Connection | None = None) -> None:
        """Stop reading, on one connection or on all; what was fetched goes to others."""
        ending = [
            prefetch
            for prefetch in list(self.prefetches.values())
            if connection is None or prefetch.connection is connection
        ]
        for prefetch in ending:
            self._forget(prefetch)
        self._ended += ending
        await asyncio.gather(*(prefetch.close() for prefetch in ending))

    def move_readers(self) -> None:
        """Have those who wait on what is closed find another connection."""
        for prefetch in list(self.prefetches.values()):
            if not prefetch.connection.usable:  # begun while it was being closed
                self._forget(prefetch)
                prefetch.closed = True
                self._ended.append(prefetch)
        ended, self._ended = self._ended, []
        for prefetch in ended:
            prefetch.mailbox.wake_all()
