"""Normal channels: kept in a work-queue stream until one reader, anywhere, has taken them."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from channels.exceptions import ChannelFull

from wsgateway.broker.base import Closable
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable, MessageTooBig, QueueFull
from wsgateway.layer import wire
from wsgateway.layer.blobs import ensure_stream
from wsgateway.layer.fetcher import Fetcher
from wsgateway.layer.forward import DataOf, Forward

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer
    from wsgateway.layer.node import Node

__all__ = ["NormalChannels"]

COUNT_VALID = 1.0
"""Seconds that a count of a channel's messages is used."""


class NormalChannels:
    """The normal channels of one layer.

    Capacity: the stream itself refuses what exceeds the largest capacity that any process
    configured; smaller ones are counted before sending, as channels_redis does.

    Args:
        layer: Whose.
    """

    def __init__(self, layer: NatsChannelLayer) -> None:
        self._layer = layer
        self._limits: dict[Node, int] = {}  # what the stream refuses, by node
        self._ensuring: dict[Node, asyncio.Lock] = {}
        self._room: dict[str, tuple[float, int]] = {}  # channel -> until when, how many more
        self.fetchers: dict[tuple[Node, str], Fetcher] = {}
        self._ended: list[Fetcher] = []  # whose readers still wait there

    # -- the stream ----------------------------------------------------------------------

    def _config(self, node: Node) -> dict[str, Any]:
        return {
            "name": node.subjects.stream("chan"),
            "subjects": [f"{node.subjects.prefix}.chan.*"],
            "retention": "workqueue",
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msgs_per_subject": self._layer.largest_capacity,
            "max_bytes": settings.CHANNEL_MAX_BYTES,
            "allow_msg_ttl": True,
            "allow_direct": True,
            "storage": settings.STORAGE,
            "num_replicas": settings.REPLICAS,
        }

    async def ensure(self, node: Node, *, again: bool = False) -> int:
        """Create the stream, or raise its limit; return how many messages a channel may hold.

        Args:
            node: Where.
            again: Also if that was done before: it may have been deleted.
        """
        if again:
            self.doubt(node)
        limit = self._limits.get(node)
        if limit is not None:
            return limit
        async with self._ensuring.setdefault(node, asyncio.Lock()):
            if node not in self._limits:
                self._limits[node] = await ensure_stream(
                    node.broker, self._config(node), "max_msgs_per_subject", "CHANNEL"
                )
        return self._limits[node]

    def doubt(self, node: Node) -> None:
        """Have the next `ensure` look again: the stream may have been deleted."""
        self._limits.pop(node, None)

    def resize(self) -> None:
        """Have the stream, and what is counted, follow the options that the layer has now."""
        self._limits.clear()
        self._room.clear()

    async def purge(self, node: Node) -> None:
        """Drop every message of every normal channel."""
        if not node.link.jetstream_offered:
            return
        self._room.clear()
        try:
            await node.broker.jetstream.api(
                f"STREAM.PURGE.{node.subjects.stream('chan')}",
                {"filter": f"{node.subjects.prefix}.chan.*"},
            )
        except ApiError as exc:
            if exc.err_code != NOT_FOUND:
                raise

    def flushed(self) -> None:
        """Drop what was fetched: the layer was flushed."""
        for fetcher in self.fetchers.values():
            fetcher.mailbox.queue.clear()

    # -- send ----------------------------------------------------------------------------

    async def send(self, node: Node, channel: str, data: bytes) -> None:
        """Store an envelope for one reader; return once it is stored.

        Raises:
            ChannelFull: The channel holds as much as it may.
        """
        limit = await self.ensure(node)
        try:
            await self._store(node, channel, data, limit)
        except QueueFull as exc:
            raise ChannelFull(channel) from exc
        except BrokerUnavailable:
            self.doubt(node)
            raise

    async def _store(self, node: Node, channel: str, data: bytes, limit: int) -> None:
        if self._layer.get_capacity(channel) < limit:
            await self._take_room(node, channel)
        ttl = max(1, math.ceil(self._layer.expiry))
        subject = node.subjects.channel(channel)
        headers = {"Nats-TTL": f"{ttl}s"}
        try:
            await node.broker.jetstream.publish(subject, data, headers)
        except MessageTooBig:
            claim = await node.blobs.store(data, ttl)
            await node.broker.jetstream.publish(subject, claim, headers)

    # -- room ----------------------------------------------------------------------------

    async def _take_room(self, node: Node, channel: str) -> None:
        until, room = self._room.get(channel, (0.0, 0))
        now = time.monotonic()
        if room <= 0 or now >= until:
            room = await self._count_room(node, channel)
            until = now + COUNT_VALID
        if room <= 0:
            self._room.pop(channel, None)
            raise ChannelFull(channel)
        self._room[channel] = (until, room - 1)

    async def _count_room(self, node: Node, channel: str) -> int:
        return self._layer.get_capacity(channel) - await self._count(node, channel)

    async def _count(self, node: Node, channel: str) -> int:
        subject = node.subjects.channel(channel)
        info = await node.broker.jetstream.patient.api(
            f"STREAM.INFO.{node.subjects.stream('chan')}", {"subjects_filter": subject}
        )
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    def forward(
        self, node: Node, subject: str, group: str, channel: str, data_of: DataOf
    ) -> Closable:
        """Store what comes on a group's *subject* in *channel*; see `Forward`."""
        return Forward(
            node,
            subject,
            group,
            channel,
            data_of,
            options=self._layer,
        )

    # -- receive -------------------------------------------------------------------------

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of a normal channel; wait for one."""
        envelopes = self._layer.envelopes
        while True:  # again if the layer is closed meanwhile
            node = await self._layer.ready_node()
            fetcher = self.fetchers.get((node, channel))
            if fetcher is None:
                fetcher = self.fetchers.setdefault((node, channel), Fetcher(self, node, channel))
            mailbox = fetcher.mailbox
            mailbox.reading += 1
            try:
                while not fetcher.closed:
                    item = mailbox.take()
                    if item is None:
                        fetcher.want()
                        await mailbox.wait()
                        continue
                    data, ack = item
                    envelope: bytes | None = data
                    if wire.is_claim(data):
                        envelope = await envelopes.redeem(mailbox, item, data)
                    fetcher.taken(ack)
                    message = None if envelope is None else envelopes.open(envelope)
                    if message is not None:
                        return message
            finally:
                mailbox.end_reading()

    def forget(self, fetcher: Fetcher) -> None:
        """Drop an idle fetcher."""
        key = fetcher.node, fetcher.channel
        if self.fetchers.get(key) is fetcher:
            del self.fetchers[key]

    async def close(self, node: Node | None = None) -> None:
        """End the fetchers, of one node or of all; what they have fetched goes to others."""
        for key, fetcher in list(self.fetchers.items()):
            if node is None or fetcher.node is node:
                self.fetchers.pop(key, None)
                self._ended.append(fetcher)
                await fetcher.close()
        if node is None:
            self._limits.clear()

    def move_readers(self) -> None:
        """Have those who wait on what is closed find another node."""
        for key, fetcher in list(self.fetchers.items()):
            if not fetcher.node.usable:  # begun while it was being closed
                del self.fetchers[key]
                fetcher.closed = True
                self._ended.append(fetcher)
        ended, self._ended = self._ended, []
        for fetcher in ended:
            fetcher.mailbox.wake_all()
