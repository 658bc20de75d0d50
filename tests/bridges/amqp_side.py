"""The other side of a bridge on RabbitMQ: a service in plain aio-pika, which counts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from tests.bridges.rabbitmq import RabbitServer
from tests.support import close_soon
from wsgateway.bridges.bus import Bus, Record, Target
from wsgateway.bridges.config import Bridge, bridge_of
from wsgateway.bridges.names import Names

__all__ = ["Hands", "ServiceSide", "amqp_bridge", "first_of_each", "service_side"]

SERVICE = "orders"
ROOM = 512


def amqp_bridge(server: RabbitServer, **options: Any) -> Bridge:
    """Return a bridge to a server, with names of its own."""
    prefix = options.pop("prefix", f"t{secrets.token_hex(6)}")
    return bridge_of("warehouse", {"url": server.url(), "services": [SERVICE], **options}, prefix)


class Hands:
    """What a bus has handed out, in order.

    Args:
        bus: The bus.
        acks: Whether it acknowledges each record at once.
        room: See `Bus.consume`.
        room_bytes: See `Bus.consume`.
    """

    def __init__(
        self, bus: Bus, *, acks: bool = True, room: int = ROOM, room_bytes: int = 2**30
    ) -> None:
        self.records: list[Record] = []
        self.lost: list[str] = []
        self._bus, self.acks = bus, acks
        bus.consume(self._on_record, self.lost.append, room, room_bytes)

    def _on_record(self, record: Record) -> None:
        self.records.append(record)
        if self.acks:
            self._bus.ack(record)

    @property
    def payloads(self) -> list[str]:
        return [record.payload.decode() for record in self.records]

    def ack_all(self) -> None:
        """Acknowledge what was handed out before, and from now on each record at once."""
        self.acks = True
        for record in self.records:
            self._bus.ack(record)


class ServiceSide:
    """A service: reads what clients send, and produces.

    Args:
        connection: Its own.
        channel: Of that, with confirms.
        names: The bridge's.
    """

    def __init__(
        self, connection: AbstractConnection, channel: AbstractChannel, names: Names
    ) -> None:
        self.connection, self.channel, self.names = connection, channel, names
        self.received: list[AbstractIncomingMessage] = []

    async def listen(self, service: str = SERVICE, **arguments: Any) -> str:
        """Bind a durable queue for what clients send; return its name."""
        name = f"{self.names.send}.{service}"
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        queue = await self.channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(self.names.send, f"{service}.*")
        return name

    async def read(self, service: str = SERVICE) -> None:
        """Listen, and read into `received` from now on."""
        queue = await self.channel.get_queue(await self.listen(service), ensure=False)
        await queue.consume(self.on_message)

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        self.received.append(message)
        await message.ack()

    async def produce(
        self,
        key: str,
        payloads: Iterable[str],
        *,
        target: Target = "inbox",
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """Publish to a user's inbox, or a topic: one after the other, each confirmed."""
        name = self.names.recv if target == "inbox" else self.names.topic
        exchange = await self.channel.get_exchange(name, ensure=False)
        for payload in payloads:
            message = aio_pika.Message(
                payload.encode(),
                headers=dict(headers or {}),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                **properties,
            )
            await exchange.publish(message, key)

    async def dead(self) -> AbstractIncomingMessage:
        """Return the next record that was set aside."""
        queue = await self.channel.get_queue(self.names.dead, ensure=False)
        message = await queue.get(timeout=5)
        assert message is not None
        await message.ack()
        return message


@asynccontextmanager
async def service_side(server: RabbitServer, bridge: Bridge) -> AsyncIterator[ServiceSide]:
    """Connect the other side of a bridge."""
    vhost = "" if bridge.vhost == "/" else bridge.vhost
    connection = await aio_pika.connect(server.url(vhost=vhost))
    try:
        yield ServiceSide(connection, await connection.channel(), Names(bridge.prefix))
    finally:
        await close_soon(connection.close)


def first_of_each(payloads: Iterable[str]) -> dict[str, list[int]]:
    """Return the numbers of payloads such as ``ann 17`` by their first word, each once.

    RabbitMQ hands out again what was not acknowledged, and NATS stores it once. The first time
    each comes, they are in order.
    """
    found: dict[str, list[int]] = {}
    for payload in payloads:
        name, number = payload.split()
        found.setdefault(name, []).append(int(number))
    for name, numbers in found.items():
        once = list(dict.fromkeys(numbers))
        assert once == sorted(once), f"{name}: {numbers}"
        found[name] = once
    return found
