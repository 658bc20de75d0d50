"""RabbitMQ as a bus: AMQP 0.9.1, with RabbitMQ's confirms, quorum queues and single consumers."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pamqp.commands import Basic

from wsgateway.bridges.amqp.connection import Link, connect
from wsgateway.bridges.amqp.consuming import Consumer, Receipt
from wsgateway.bridges.amqp.publishing import Outgoing, Publisher
from wsgateway.bridges.amqp.tolerance import MARK
from wsgateway.bridges.amqp.topology import Topology
from wsgateway.bridges.bus import Bus, Record
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.headers import (
    CUT_HEADER,
    ID_HEADER,
    PART_HEADER,
    PLACE_HEADER,
    REASON_HEADER,
)
from wsgateway.bridges.names import MAX_ROUTING_KEY, key_of
from wsgateway.conf import settings
from wsgateway.exceptions import BusUnavailable, RecordRefused

__all__ = ["AmqpBus"]

PERSISTENT = 2
CHECK_PAUSE = 0.2
DEAD_HEADERS = (CUT_HEADER, PART_HEADER, PLACE_HEADER, REASON_HEADER)
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
                f"routing key of {len(key)} bytes exceeds AMQP's {MAX_ROUTING_KEY} bytes; use a "
                "shorter user name (each byte besides A-Z a-z 0-9 _ - counts as three)"
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

    async def set_aside(self, record: Record, reason: str) -> str:
        assert isinstance(record.receipt, Receipt)
        receipt, outlet = record.receipt, self._publisher.dead
        properties, unfit = _set_aside(record, receipt, reason)
        message = Outgoing(self._topology.names.dead, receipt.key, record.payload, properties)
        # Services choose what is in message_id, so only one is on its way
        try:
            await outlet.publish(message, turn=None, id=receipt)
            return unfit
        except RecordRefused:
            assert outlet.max_size is not None  # which the payload exceeds
        # Once it is acknowledged, RabbitMQ has it nowhere else
        size, payload = outlet.max_size, record.payload
        parts = [payload[at : at + size] for at in range(0, len(payload), size)]
        for number, part in enumerate(parts, 1):
            which = {PART_HEADER: f"{number}/{len(parts)}"}
            headers: dict[str, Any] = {**(properties.headers or {}), **which}
            said = _with_headers(properties, headers)
            message = message._replace(payload=part, properties=said)
            try:
                await outlet.publish(message, turn=None, id=(receipt, number))
            except RecordRefused as exc:  # the limit is lower now
                raise BusUnavailable(str(exc)) from exc
        split = f"it is in {len(parts)} parts, because RabbitMQ takes {size} bytes at most"
        return f"{split}; {unfit}" if unfit else split


def _set_aside(record: Record, receipt: Receipt, reason: str) -> tuple[Basic.Properties, str]:
    """Return the properties of a record that is set aside: its own, and why it is.

    Returns:
        The properties, and what of the record's own they lack, for people.
    """
    ours: dict[str, Any] = {PLACE_HEADER: record.place, REASON_HEADER: reason[:MAX_REASON]}
    found = receipt.properties
    own = {name: each for name, each in (found.headers or {}).items() if name not in DEAD_HEADERS}
    if MARK not in own and _size(whole := _with_headers(found, {**own, **ours})) <= MAX_HEADERS:
        return whole, ""
    headers, room = {**ours, CUT_HEADER: "headers"}, float(MAX_HEADERS)
    for name, value in own.items():
        size = _size(Basic.Properties(headers={name: value}))
        if name != MARK and size <= room:
            headers[name] = value
            room -= size
    bare = Basic.Properties(headers=headers, message_id=found.message_id, delivery_mode=PERSISTENT)
    return bare, "some of its headers are lost: too large for AMQP, or aio-pika cannot write them"


def _with_headers(found: Basic.Properties, headers: dict[str, Any]) -> Basic.Properties:
    return Basic.Properties(
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


def _size(properties: Basic.Properties) -> float:
    """Return their bytes; infinity for what a service may write, and this library only reads."""
    try:
        return len(properties.marshal())
    except (TypeError, ValueError, OverflowError, struct.error):
        return math.inf
