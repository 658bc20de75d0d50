"""RabbitMQ as a bus: AMQP 0.9.1, with RabbitMQ's confirms, quorum queues and single consumers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pamqp.commands import Basic

from wsgateway.bridges.amqp.connection import Link, connect
from wsgateway.bridges.amqp.consuming import Consumer, Receipt
from wsgateway.bridges.amqp.publishing import Outgoing, Publisher
from wsgateway.bridges.amqp.topology import Topology
from wsgateway.bridges.bus import Bus, Record
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.headers import ID_HEADER, PLACE_HEADER, REASON_HEADER
from wsgateway.bridges.names import MAX_ROUTING_KEY, key_of
from wsgateway.conf import settings
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused

__all__ = ["AmqpBus"]

PERSISTENT = 2
CHECK_PAUSE = 0.2
LEFT_OUT = b"payload of %d bytes left out: larger than RabbitMQ's max_message_size"
MAX_REASON = 2000
MAX_HEADERS = 100_000
"""Bytes of a message's properties, which AMQP sends in one frame of 128 KiB at most."""


class AmqpBus(Bus):
    """RabbitMQ.

    Args:
        bridge: The bridge's configuration.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._topology = Topology(bridge)
        self._publisher = Publisher(bridge)
        self._consumer: Consumer | None = None
        self._is_open = False

    @property
    def _links(self) -> list[Link]:
        links = [self._publisher.link]
        return links if self._consumer is None else [*links, self._consumer.link]

    async def open(self) -> None:
        self._is_open = True
        for link in self._links:
            link.open()

    async def close(self) -> None:
        self._is_open = False
        await asyncio.gather(*(link.close() for link in self._links))

    @property
    def connected(self) -> bool:
        return all(link.is_up for link in self._links)

    @property
    def trouble(self) -> str:
        down = (link for link in self._links if not link.is_up)
        return next((str(link.error or "not connected yet") for link in down), "")

    async def ready(self) -> None:
        while True:
            for link in self._links:
                await link.wait(for_ever=True)
            try:
                # Its own: an alarm stops the one that publishes
                async with connect(self._bridge, "checking") as connection:
                    return await self._topology.check(connection)
            except BusUnavailable:
                await asyncio.sleep(CHECK_PAUSE)  # lost again

    async def set_up(self) -> list[str]:
        async with connect(self._bridge, "setting up") as connection:
            return await self._topology.set_up(connection)

    async def produce(
        self, service: str, user: str, payload: bytes, headers: Mapping[str, str]
    ) -> None:
        key = key_of(service, user)
        if len(key) > MAX_ROUTING_KEY:
            raise RecordRefused(
                f"routing key of {len(key)} bytes exceeds AMQP's {MAX_ROUTING_KEY} bytes; the name "
                f"of the user is too long, or has too many characters that need an escape"
            )
        table: dict[str, Any] = {**headers}
        id = headers.get(ID_HEADER)
        properties = Basic.Properties(headers=table, message_id=id, delivery_mode=PERSISTENT)
        message = Outgoing(self._topology.names.send, key, payload, properties)
        await self._publisher.messages.publish(message, turn=key, id=id)

    def consume(
        self,
        on_record: Callable[[Record], None],
        on_lost: Callable[[str], None],
        room: int,
        room_bytes: int,
    ) -> None:
        lanes = self._topology.lanes
        # RabbitMQ counts records only; none that can be delivered is larger
        room = min(room, room_bytes // settings.MAX_MESSAGE_SIZE)
        self._consumer = Consumer(self._bridge, lanes, on_record, on_lost, room)
        if self._is_open:
            self._consumer.link.open()

    def ack(self, record: Record) -> None:
        assert isinstance(record.receipt, Receipt)
        record.receipt.acks.done(record.receipt.tag)

    async def set_aside(self, record: Record, reason: str) -> None:
        assert isinstance(record.receipt, Receipt)
        receipt, publish = record.receipt, self._publisher.dead.publish
        properties = _set_aside(record, receipt, reason)
        message = Outgoing(self._topology.names.dead, receipt.key, record.payload, properties)
        # Services choose what is in message_id, so only one is on its way
        try:
            await publish(message, turn=None, id=receipt)
        except RecordRefused:
            bare = message._replace(payload=LEFT_OUT % len(record.payload))
            try:
                await publish(bare, turn=None, id=receipt)
            except RecordRefused as exc:
                raise BusMisconfigured(str(exc)) from exc


def _set_aside(record: Record, receipt: Receipt, reason: str) -> Basic.Properties:
    """Return the properties of a record that is set aside: its own, and why it is."""
    ours = {PLACE_HEADER: record.place, REASON_HEADER: reason[:MAX_REASON]}
    found = receipt.properties
    headers: dict[str, Any] = {**(found.headers or {}), **ours}
    whole = Basic.Properties(
        content_type=found.content_type,
        content_encoding=found.content_encoding,
        headers=headers,
        delivery_mode=PERSISTENT,
        correlation_id=found.correlation_id,
        reply_to=found.reply_to,
        message_id=found.message_id,
        timestamp=found.timestamp,
        message_type=found.message_type,
        app_id=found.app_id,
    )
    try:
        if len(whole.marshal()) <= MAX_HEADERS:
            return whole
    except (TypeError, ValueError, OverflowError, struct.error):
        pass  # what a service may write, and this library reads but cannot write
    bare: dict[str, Any] = {**ours}
    return Basic.Properties(headers=bare, message_id=found.message_id, delivery_mode=PERSISTENT)
