"""Consuming from RabbitMQ: records are handed out in order, and acknowledged when told to."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from wsgateway.bridges.amqp.connection import Link, until_closed
from wsgateway.bridges.amqp.tolerance import MARK
from wsgateway.bridges.amqp.topology import Lane
from wsgateway.bridges.bus import Record
from wsgateway.bridges.config import Bridge
from wsgateway.broker.messages import ERROR_HEADER, REPLY_TO_HEADER
from wsgateway.exceptions import BusUnavailable
from wsgateway.protocol.frames import FRAME_HEADER
from wsgateway.supervision import share

__all__ = ["Consumer", "Receipt"]

MEANING = frozenset(name.lower() for name in (FRAME_HEADER, REPLY_TO_HEADER, ERROR_HEADER))
"""Headers that make another message of the same body."""

SUBSCRIBE_TIMEOUT = 10.0
"""Seconds in which RabbitMQ must let a bridge read its queues."""
FLUSH_TIMEOUT = 1.0
"""Seconds for sending the last acknowledgements."""


@dataclass(slots=True, eq=False)
class Receipt:
    """What acknowledges a record.

    Attributes:
        acks: Those of the channel that delivered it.
        tag: RabbitMQ's number of the delivery there.
        key: With which routing key.
        properties: As they were published.
    """

    acks: Acks
    tag: int
    key: str
    properties: Basic.Properties


class Acks:
    """What a channel has delivered, and what of it is to be acknowledged."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._open: dict[int, None] = {}  # delivered and not acknowledged; in order
        self._done: set[int] = set()  # of these, what may be acknowledged
        self._news = asyncio.Event()
        self._sending = asyncio.Lock()
        self.is_over = False  # the channel is lost, or about to be closed

    def add(self, tag: int) -> None:
        """Record a delivery."""
        self._open[tag] = None

    def done(self, tag: int) -> None:
        """Acknowledge a delivery soon; nothing happens if the channel is lost."""
        if not self.is_over and tag in self._open:
            self._done.add(tag)
            self._news.set()

    async def run(self) -> None:
        """Send acknowledgements for as long as there is a channel."""
        while True:
            await self._news.wait()
            await self.flush()

    async def flush(self) -> None:
        """Send them now: one for all up to the first that is still open, then one for each.

        What is behind a record that takes long is acknowledged, too, or it would use up the room.
        """
        async with self._sending:
            self._news.clear()
            done, self._done = self._done, set()
            upto = 0
            for tag in self._open:
                if tag not in done:
                    break
                upto = tag
            for tag in done:
                del self._open[tag]
            if upto:
                await self._channel.basic_ack(upto, multiple=True)
            for tag in sorted(tag for tag in done if tag > upto):
                await self._channel.basic_ack(tag)


class Consumer:
    """Reads a bridge's queues over a connection of its own: RabbitMQ's alarms must not stop it.

    Args:
        bridge: Its configuration.
        lanes: Its queues.
        on_record: See `Bus.consume`.
        on_lost: See `Bus.consume`.
        room: Records that may be handed out and not acknowledged.
    """

    def __init__(
        self,
        bridge: Bridge,
        lanes: Sequence[Lane],
        on_record: Callable[[Record], None],
        on_lost: Callable[[str], None],
        room: int,
    ) -> None:
        self._bridge = bridge
        self._lanes = lanes
        # Each bridge prefers other queues. Until RabbitMQ 4.0, a queue belongs to who was first;
        # from then on, to who asks with the highest priority.
        self._priorities = random.sample(range(1, len(lanes) + 1), len(lanes))
        self._on_record, self._on_lost = on_record, on_lost
        # RabbitMQ counts for each queue, and one bridge may read all of them. The next reader must
        # not take fewer: if it dies before it had all that the one before returned, a quorum queue
        # puts its part behind the rest. Source: rabbitmq-server#6804.
        self._prefetch = max(1, min(65535, room // len(lanes)))
        self.link = Link(bridge, "consuming", self._use)

    async def _use(self, connection: AbstractConnection) -> None:
        pika = connection.channel(publisher_confirms=False)
        await pika.initialize()
        # What is below aio-pika's channel acknowledges many deliveries at once, by their numbers
        channel = await pika.get_underlay_channel()
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.on_consumer_cancel_callbacks.add(partial(_settle, cancelled))
        acks = Acks(channel)
        acking = share(acks.run(), "acknowledge to RabbitMQ")
        try:
            await self._subscribe(channel, acks)
            self.link.established()
            await asyncio.wait(
                {channel.closing, cancelled, acking}, return_when=asyncio.FIRST_COMPLETED
            )
            if cancelled.done():
                raise BusUnavailable(
                    f"RabbitMQ stopped handing out records of bridge {self._bridge.name!r}: a "
                    "queue was deleted, or a record waited longer than consumer_timeout"
                )
            if not channel.is_closed:
                acking.result()  # raises why it ended
            await until_closed(channel)
        finally:
            await self._leave(channel, acks, acking)

    async def _subscribe(self, channel: AbstractChannel, acks: Acks) -> None:
        # Bridges that connect together share the queues of an older RabbitMQ, too
        lanes = list(zip(self._lanes, self._priorities, strict=True))
        random.shuffle(lanes)
        lane = lanes[0][0]
        try:
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                await channel.basic_qos(prefetch_count=self._prefetch)
                for lane, priority in lanes:
                    await channel.basic_consume(
                        lane.name,
                        partial(self._deliver, lane, acks),
                        arguments={"x-priority": priority},
                    )
        except TimeoutError:
            raise BusUnavailable(
                f"RabbitMQ did not let bridge {self._bridge.name!r} read queue {lane.name!r} "
                f'within {SUBSCRIBE_TIMEOUT:g} s; "rabbitmq-queues quorum_status {lane.name}" says '
                "whether it has a leader"
            ) from None

    async def _leave(
        self, channel: AbstractChannel, acks: Acks, acking: asyncio.Task[None]
    ) -> None:
        """Give back what is not acknowledged."""
        try:
            if not channel.is_closed:
                with contextlib.suppress(*amqp.CONNECTION_EXCEPTIONS, TimeoutError):
                    async with asyncio.timeout(FLUSH_TIMEOUT):
                        await acks.flush()
        finally:
            acks.is_over = True
            acking.cancel()
            for lane in self._lanes:
                self._on_lost(lane.name)

    async def _deliver(self, lane: Lane, acks: Acks, message: DeliveredMessage) -> None:
        """Hand out a record; without an await, so that its task cannot overtake another."""
        delivery, properties = message.delivery, message.header.properties
        if acks.is_over or not isinstance(delivery, Basic.Deliver):
            return
        tag = delivery.delivery_tag or 0
        acks.add(tag)
        headers, key = properties.headers or {}, delivery.routing_key or ""
        texts = {name: value for name, value in headers.items() if isinstance(value, str)}
        if MARK in headers:
            key += " (its headers cannot be decoded)"  # no inbox: the record is set aside
        self._on_record(
            Record(
                key=key,
                target=lane.target,
                service=None,
                payload=message.body,
                headers=texts,
                id=_id_of(properties.message_id, message.body, texts),
                lane=lane.name,
                place=f"exchange {delivery.exchange!r}, queue {lane.name!r}, delivery {tag}",
                receipt=Receipt(acks, tag, delivery.routing_key or "", properties),
            )
        )


def _settle(future: asyncio.Future[None], _: object) -> None:
    if not future.done():
        future.set_result(None)


def _id_of(message_id: str | None, body: bytes, headers: Mapping[str, str]) -> str | None:
    """Return what only the same message has when it comes again.

    Services put into ``message_id`` what they like, such as an order's number in each of its
    messages. What else a message says makes the difference. Headers that a second attempt of the
    service may change, such as ``traceparent``, do not.
    """
    if not message_id:
        return None
    digest = blake2b(body, digest_size=8)
    for name in sorted(headers):
        if name.lower() in MEANING:
            digest.update(f"\n{name.lower()}: {headers[name]}".encode())
    return f"{message_id}/{digest.hexdigest()}"
