"""Normal channels: kept in a work-queue stream until one reader, anywhere, has taken them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from channels.exceptions import ChannelFull

from wsgateway.broker.base import Closable
from wsgateway.broker.nats import fast_batch
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.broker.nats.link import Backoff, new_inbox
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, BrokerUnavailable, MessageTooBig, QueueFull
from wsgateway.layer import wire
from wsgateway.layer.blobs import ensure_stream
from wsgateway.layer.forward import DataOf, Forward
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.pipeline import LARGE, Pipeline
from wsgateway.subjects import encode_token

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer
    from wsgateway.layer.loops import Node

__all__ = ["NormalChannels"]

logger = logging.getLogger("wsgateway.layer")

NANO = 1_000_000_000
ACK_WAIT = 30.0
"""Seconds after which a message that a dead process fetched goes to another."""
PULL_EXPIRES = 2.0
"""Seconds that one request for messages stays open at the server."""
LINGER = 0.25
"""Seconds that fetched messages wait for a reader here before others may have them."""
MAX_BATCH = 64
COUNT_VALID = 1.0
"""Seconds that a count of a channel's messages is used."""
HASTE = 0.005
"""Seconds between sends to the same channel below which the sender is in a hurry."""
HASTY_AFTER = 3
"""How many such pauses in a row begin a pipeline."""
HOLD_OFF = 64
"""Sends after which a pipeline is tried again, when the channel had no room for one."""
CHANNELS_NOTED = 10_000
"""Channels whose senders are watched for that."""
Redeem = Callable[[Mailbox[Any], Any, bytes], Awaitable[bytes | None]]
REMEMBERED = 4096
"""Taken messages that are remembered, to see a second delivery."""


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
        self._readers: dict[tuple[Node, str], _Reader] = {}
        self.pipelines: dict[tuple[Node, str], Pipeline] = {}
        """What may not be stored yet."""
        self._haste: dict[str, tuple[float, int]] = {}  # channel -> last send, how many in a row

    # -- the stream ----------------------------------------------------------------------

    def _config(self, node: Node) -> dict[str, Any]:
        return {
            "name": node.subjects.stream("chan"),
            "subjects": [f"{node.subjects.prefix}.chan.*"],
            "retention": "workqueue",
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msgs_per_subject": self._layer.capacities[-1],
            "allow_msg_ttl": True,
            "allow_direct": True,
            "storage": settings.STORAGE,
            "num_replicas": settings.REPLICAS,
        }

    async def ensure(self, node: Node) -> int:
        """Create the stream, or raise its limit; return how many messages a channel may hold."""
        limit = self._limits.get(node)
        if limit is not None:
            return limit
        async with self._ensuring.setdefault(node, asyncio.Lock()):
            if node not in self._limits:
                self._limits[node] = await self._ensure(node, self._config(node))
        return self._limits[node]

    async def _ensure(self, node: Node, config: dict[str, Any]) -> int:
        if node.link.server_version >= fast_batch.SINCE:
            with contextlib.suppress(ApiError):  # of an older server in the same cluster
                batched = {**config, "allow_batched": True}
                return await ensure_stream(node.broker, batched, "max_msgs_per_subject")
        return await ensure_stream(node.broker, config, "max_msgs_per_subject")

    async def purge(self, node: Node) -> None:
        """Drop every message of every normal channel."""
        if not node.link.jetstream_offered:
            return
        await self.settle()
        for key, pipeline in list(self.pipelines.items()):
            if key[0].usable:
                await key[0].call(pipeline.discard)
        self._room.clear()
        try:
            await node.broker.jetstream.api(f"STREAM.PURGE.{node.subjects.stream('chan')}")
        except ApiError as exc:
            if exc.err_code != NOT_FOUND:
                raise

    def flushed(self) -> None:
        """Drop what was fetched: the layer was flushed."""
        for reader in self._readers.values():
            reader.mailbox.queue.clear()

    # -- send ----------------------------------------------------------------------------

    async def send(self, node: Node, channel: str, data: bytes) -> None:
        """Store an envelope for one reader; in a hurry, it is only on its way: see `Pipeline`.

        Raises:
            ChannelFull: The channel holds as much as it may.
        """
        limit = await self.ensure(node)
        try:
            if not await self._send_on(node, channel, data):
                await self._store(node, channel, data, limit)
        except QueueFull as exc:
            raise ChannelFull(channel) from exc
        except BrokerUnavailable:
            self._limits.pop(node, None)  # the stream may have been deleted
            raise

    async def _store(self, node: Node, channel: str, data: bytes, limit: int) -> None:
        if self._layer.get_capacity(channel) < limit:
            await self._take_room(node, channel)
        ttl = self._ttl
        subject = node.subjects.channel(channel)
        headers = {"Nats-TTL": f"{ttl}s"}
        try:
            await node.broker.jetstream.publish(subject, data, headers)
        except MessageTooBig:
            claim = await node.blobs.store(data, ttl)
            await node.broker.jetstream.publish(subject, claim, headers)
        _, count = self._haste.get(channel, (0.0, 0))
        self._haste[channel] = (time.monotonic(), count)

    @property
    def _ttl(self) -> int:
        return max(1, math.ceil(self._layer.expiry))

    # -- send, in a hurry ----------------------------------------------------------------

    async def _send_on(self, node: Node, channel: str, data: bytes) -> bool:
        """Send without waiting; return False if that is not to be."""
        pipeline = self.pipelines.get((node, channel))
        if pipeline is not None:
            return await pipeline.send(data)
        if len(data) > LARGE or not self._is_hasty(channel):
            return False
        self._room.pop(channel, None)
        pipeline = self.pipelines[node, channel] = Pipeline(
            node,
            node.subjects.channel(channel),
            self._ttl,
            count_room=lambda: self._count_room(node, channel),
            restore=lambda: self._restore(node),
            on_end=lambda: self.pipelines.pop((node, channel), None),
        )
        begun = await pipeline.begin(data)
        self._haste[channel] = (0.0, 0) if begun else (time.monotonic(), -HOLD_OFF)
        return begun

    async def _restore(self, node: Node) -> None:
        self._limits.pop(node, None)
        await self.ensure(node)

    def _is_hasty(self, channel: str) -> bool:
        ended, count = self._haste.get(channel, (0.0, 0))
        count = count + 1 if time.monotonic() - ended < HASTE else 0
        if len(self._haste) >= CHANNELS_NOTED:
            self._haste.clear()
        self._haste[channel] = (ended, count)
        return count >= HASTY_AFTER

    async def settle(self, node: Node | None = None) -> None:
        """Wait until all that was sent, on one node or on all, is stored, if that is possible."""
        pipelines = [
            (where, pipeline)
            for (where, _), pipeline in list(self.pipelines.items())
            if (node is None or where is node) and where.usable
        ]
        await asyncio.gather(*(where.call(each.finish) for where, each in pipelines))

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
        info = await node.broker.jetstream.api(
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
            lifetime=self._layer.expiry,
            capacity=self._layer.get_capacity(channel),
        )

    # -- receive -------------------------------------------------------------------------

    async def receive(
        self, node: Node, channel: str, open_: Callable[[bytes], Any], redeem: Redeem
    ) -> Any:
        """Return the next message that *open_* makes something of.

        Args:
            node: Where.
            channel: A normal channel.
            open_: Makes a message of an envelope; None: it is none.
            redeem: Fetches the envelope that a claim stands for; None: it is gone.
        """
        if not node.link.is_open:
            await node.call(node.ready)
        reader = self._readers.get((node, channel))
        if reader is None:
            reader = self._readers.setdefault((node, channel), _Reader(self, node, channel))
        mailbox = reader.mailbox
        mailbox.reading += 1
        try:
            while True:
                if not mailbox.queue:
                    reader.want()
                item = await mailbox.get()
                data, ack = item
                envelope = await redeem(mailbox, item, data) if wire.is_claim(data) else data
                reader.taken(ack)
                message = None if envelope is None else open_(envelope)
                if message is not None:
                    return message
        finally:
            mailbox.reading -= 1
            mailbox.used = time.monotonic()

    def forget(self, reader: _Reader) -> None:
        """Drop an idle reader."""
        self._readers.pop((reader.node, reader.channel), None)

    async def close(self, node: Node | None = None) -> None:
        """End the readers, of one node or of all; what they have fetched goes to others."""
        await self.settle(node)
        for key, reader in list(self._readers.items()):
            if node is None or reader.node is node:
                self._readers.pop(key, None)
                await reader.close()
        if node is None:
            self._limits.clear()


class _Reader:
    """Fetches one channel's messages for the receivers on one node."""

    def __init__(self, channels: NormalChannels, node: Node, channel: str) -> None:
        self.node = node
        self.channel = channel
        self.mailbox: Mailbox[tuple[bytes, bytes]] = Mailbox(1, lambda _: False)
        self._channels = channels
        self._stream = node.subjects.stream("chan")
        self._consumer = encode_token(channel)
        # Of its own: what a pull brings carries the channel's subject, not the request's
        self._inbox = new_inbox()
        self._batch = 1
        self._task: asyncio.Task[None] | None = None
        self._interest: Closable | None = None  # in the answers, while the task runs
        self._taken: OrderedDict[bytes, None] = OrderedDict()  # sequences of what was given out
        self._open = 0  # messages that the server may still send for the last request
        self._changed = asyncio.Event()  # something came, or the request has ended
        self._lost = False  # the consumer is gone
        self._backoff = Backoff(0.05, 2.0, 1.0)

    # From any thread

    def want(self) -> None:
        """See to it that messages are fetched."""
        if asyncio._get_running_loop() is self.node.loop:
            self._want()
        else:
            self.node.loop.call_soon_threadsafe(self._want)

    def taken(self, ack: bytes) -> None:
        """Tell the server that a receiver has the message."""
        if asyncio._get_running_loop() is self.node.loop:
            self._acknowledge(ack)
        else:
            self.node.loop.call_soon_threadsafe(self._acknowledge, ack)

    async def close(self) -> None:
        """Stop fetching; give back what nobody took, before the node disconnects."""

        async def close() -> None:
            if self._task is not None:
                self._task.cancel()
            if self._interest is not None:
                self._interest.close()  # or our own request gets back what is given back
            self._give_back()

        if self.node.usable:  # otherwise others get it after `ACK_WAIT`
            await self.node.call(close)

    # In the node's loop

    def _want(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"wsgateway-read-{self.channel}")
        self._changed.set()

    def _acknowledge(self, ack: bytes) -> None:
        self._taken[_sequence(ack)] = None
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)
        with contextlib.suppress(BrokerUnavailable):  # it is seen again, and then known
            self.node.publish(ack.decode(), b"+ACK")
        if not self._open:
            self._changed.set()

    def _give_back(self) -> None:
        while self.mailbox.queue:
            with contextlib.suppress(IndexError, BrokerError):
                _, ack = self.mailbox.queue.popleft()
                self.node.publish(ack.decode(), b"-NAK")

    async def _run(self) -> None:
        self._interest = interest = self.node.link.subscribe(self._inbox, self._on_answer)
        unhook = self.node.link.on_lost(self._on_lost)
        try:
            await self._serve()
        finally:
            interest.close()
            unhook()
            self._channels.forget(self)

    async def _serve(self) -> None:
        attempt = 0
        while True:
            try:
                await self._prepare()
                attempt = 0
                if await self._fetch():
                    return
            except BrokerError as exc:
                log = logger.warning if attempt == 3 else logger.debug
                log("cannot read channel %s: %s; trying on", self.channel, exc)
                await asyncio.sleep(self._backoff.delay(attempt))
                attempt += 1
                if not self.mailbox.reading:
                    return

    async def _prepare(self) -> None:
        await self.node.ready()
        await self._channels.ensure(self.node)
        subject = self.node.subjects.channel(self.channel)
        name = f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{subject}"
        config = {
            "durable_name": self._consumer,
            "name": self._consumer,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * NANO),
            "filter_subject": subject,
            "max_ack_pending": 10_000,
            "inactive_threshold": int(86400 * NANO),
        }
        try:
            await self.node.broker.jetstream.api(
                name, {"stream_name": self._stream, "config": config}
            )
        except ApiError:
            self._channels._limits.pop(self.node, None)
            raise
        self._lost = False

    async def _fetch(self) -> bool:
        """Ask for messages while somebody reads; return True once nobody does."""
        while not self._lost:
            self._changed.clear()
            mailbox = self.mailbox
            if mailbox.reading and not self._open and len(mailbox.queue) <= self._batch // 2:
                self._request()
            try:
                async with asyncio.timeout(LINGER):
                    await self._changed.wait()
                continue
            except TimeoutError:
                pass
            if mailbox.reading:
                continue
            if mailbox.queue and time.monotonic() - mailbox.used > LINGER:
                self._batch = 1
                self._give_back()
            if not self._open and not mailbox.queue:
                return True
        self._open = 0
        return False

    def _request(self) -> None:
        self._open = max(self._batch, self.mailbox.reading)
        request = {"batch": self._open, "expires": int(PULL_EXPIRES * NANO)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        self.node.publish(subject, json.dumps(request).encode(), reply=self._inbox)

    def _on_answer(self, _s: bytes, reply: bytes, data: bytes, raw: bytes | None) -> None:
        status = hdrs.status(raw)
        if status is None:
            self._on_message(data, reply)
            self._open -= 1
            if self._open == 0:
                self._batch = min(MAX_BATCH, 2 * self._batch)
                self._changed.set()
        elif status != 100:  # a heartbeat
            self._lost = status not in (404, 408)
            self._open = 0
            self._changed.set()

    def _on_lost(self) -> None:
        self._lost = True
        self._changed.set()

    def _on_message(self, data: bytes, ack: bytes) -> None:
        if _sequence(ack) in self._taken:  # our acknowledgement was lost
            self._acknowledge(ack)
        else:
            self.mailbox.put_always((wire.framed(data), ack))


def _sequence(ack: bytes) -> bytes:
    """Return the stream sequence in an acknowledgement's subject, of the old or new layout."""
    tokens = ack.split(b".")
    return tokens[5] if len(tokens) == 9 else tokens[7]
