"""Normal channels: kept in a work-queue stream until one reader, anywhere, has taken them."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from channels.exceptions import ChannelFull

from wsgateway.broker.bus import Closable
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable, MessageTooBig, QueueFull
from wsgateway.layer import wire
from wsgateway.layer.blobs import ensure_stream
from wsgateway.layer.fetcher import Fetcher
from wsgateway.layer.forward import DataOf, Forward

if TYPE_CHECKING:
    from wsgateway.layer.connection import LayerConnection
    from wsgateway.layer.core import NatsChannelLayer

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
        self._limits: dict[LayerConnection, int] = {}  # what the stream refuses, by connection
        self._ensuring: dict[LayerConnection, asyncio.Lock] = {}
        self._room: dict[str, tuple[float, int]] = {}  # channel -> until when, how many more
        self.fetchers: dict[tuple[LayerConnection, str], Fetcher] = {}
        self._ended: list[Fetcher] = []  # whose readers still wait there

    # -- the stream ----------------------------------------------------------------------

    def _config(self, connection: LayerConnection) -> dict[str, Any]:
        return {
            "name": connection.subjects.stream("chan"),
            "subjects": [f"{connection.subjects.prefix}.chan.*"],
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

    async def ensure(self, connection: LayerConnection, *, again: bool = False) -> int:
        """Create the stream, or raise its limit; return how many messages a channel may hold.

        Args:
            connection: Where.
            again: Also if that was done before: it may have been deleted.
        """
        if again:
            self.doubt(connection)
        limit = self._limits.get(connection)
        if limit is not None:
            return limit
        async with self._ensuring.setdefault(connection, asyncio.Lock()):
            if connection not in self._limits:
                self._limits[connection] = await ensure_stream(
                    connection.broker, self._config(connection), "max_msgs_per_subject", "CHANNEL"
                )
        return self._limits[connection]

    def doubt(self, connection: LayerConnection) -> None:
        """Have the next `ensure` look again: the stream may have been deleted."""
        self._limits.pop(connection, None)

    def resize(self) -> None:
        """Have the stream, and what is counted, follow the options that the layer has now."""
        self._limits.clear()
        self._room.clear()

    async def purge(self, connection: LayerConnection) -> None:
        """Drop every message of every normal channel."""
        if not connection.broker.connection.server.has_jetstream:
            return
        self._room.clear()
        try:
            await connection.broker.jetstream.api(
                f"STREAM.PURGE.{connection.subjects.stream('chan')}",
                {"filter": f"{connection.subjects.prefix}.chan.*"},
            )
        except ApiError as exc:
            if exc.err_code != NOT_FOUND:
                raise

    def flushed(self) -> None:
        """Drop what was fetched: the layer was flushed."""
        for fetcher in self.fetchers.values():
            fetcher.mailbox.queue.clear()

    # -- send ----------------------------------------------------------------------------

    async def send(self, connection: LayerConnection, channel: str, data: bytes) -> None:
        """Store an envelope for one reader; return once it is stored.

        Raises:
            ChannelFull: The channel holds as much as it may.
        """
        limit = await self.ensure(connection)
        try:
            await self._store(connection, channel, data, limit)
        except QueueFull as exc:
            raise ChannelFull(channel) from exc
        except BrokerUnavailable:
            self.doubt(connection)
            raise

    async def _store(
        self, connection: LayerConnection, channel: str, data: bytes, limit: int
    ) -> None:
        if self._layer.get_capacity(channel) < limit:
            await self._take_room(connection, channel)
        ttl = max(1, math.ceil(self._layer.expiry))
        subject = connection.subjects.channel(channel)
        headers = {"Nats-TTL": f"{ttl}s"}
        try:
            await connection.broker.jetstream.publish(subject, data, headers)
        except MessageTooBig:
            claim = await connection.blobs.store(data, ttl)
            await connection.broker.jetstream.publish(subject, claim, headers)

    # -- room ----------------------------------------------------------------------------

    async def _take_room(self, connection: LayerConnection, channel: str) -> None:
        until, room = self._room.get(channel, (0.0, 0))
        now = time.monotonic()
        if room <= 0 or now >= until:
            room = await self._count_room(connection, channel)
            until = now + COUNT_VALID
        if room <= 0:
            self._room.pop(channel, None)
            raise ChannelFull(channel)
        self._room[channel] = (until, room - 1)

    async def _count_room(self, connection: LayerConnection, channel: str) -> int:
        return self._layer.get_capacity(channel) - await self._count(connection, channel)

    async def _count(self, connection: LayerConnection, channel: str) -> int:
        subject = connection.subjects.channel(channel)
        info = await connection.broker.jetstream.patient.api(
            f"STREAM.INFO.{connection.subjects.stream('chan')}", {"subjects_filter": subject}
        )
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    def forward(
        self, connection: LayerConnection, subject: str, group: str, channel: str, data_of: DataOf
    ) -> Closable:
        """Store what comes on a group's *subject* in *channel*; see `Forward`."""
        return Forward(
            connection,
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
            connection = await self._layer.connections.ready()
            fetcher = self.fetchers.get((connection, channel))
            if fetcher is None:
                fetcher = self.fetchers.setdefault(
                    (connection, channel), Fetcher(self, connection, channel)
                )
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
                    message = None if envelope is None else envelopes.decode(envelope)
                    if message is not None:
                        return message
            finally:
                mailbox.end_reading()

    def forget(self, fetcher: Fetcher) -> None:
        """Drop an idle fetcher."""
        key = fetcher.connection, fetcher.channel
        if self.fetchers.get(key) is fetcher:
            del self.fetchers[key]

    async def close(self, connection: LayerConnection | None = None) -> None:
        """End the fetchers, of one connection or of all; what they have fetched goes to others."""
        for key, fetcher in list(self.fetchers.items()):
            if connection is None or fetcher.connection is connection:
                self.fetchers.pop(key, None)
                self._ended.append(fetcher)
                await fetcher.close()
        if connection is None:
            self._limits.clear()

    def move_readers(self) -> None:
        """Have those who wait on what is closed find another connection."""
        for key, fetcher in list(self.fetchers.items()):
            if not fetcher.connection.usable:  # begun while it was being closed
                del self.fetchers[key]
                fetcher.closed = True
                self._ended.append(fetcher)
        ended, self._ended = self._ended, []
        for fetcher in ended:
            fetcher.mailbox.wake_all()
