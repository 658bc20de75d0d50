"""The services' end of each bus, with a plain client: what the suites for both buses need."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, NamedTuple

import aio_pika
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.bridges.kafka_server import KafkaServer
from tests.bridges.rabbitmq import RabbitServer
from tests.support import close_soon
from wsgateway.bridges.bus import Bus, Record, Target
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import Bridge, bridge_flaws, bridge_of
from wsgateway.bridges.names import Names

__all__ = ["AmqpSide", "Enough", "KafkaSide", "Reader", "Seen", "Side", "opened", "told_without"]


class Seen(NamedTuple):
    """A record as a service, or an operator, reads it."""

    key: str
    payload: bytes
    headers: dict[str, str]


Enough = Callable[[list[Seen]], bool]
"""Says of what was read so far, with each record that is read, whether it is all."""
READ_WITHIN = 40.0


class Side(ABC):
    """Services on one bus, below a prefix of their own."""

    url: str
    several_lanes: ClassVar[dict[str, Any]]
    """Options with which a bridge has more than one lane for inboxes."""
    refused: tuple[str, bytes]
    """A user and a payload that the bus never takes."""

    def __init__(self) -> None:
        self.prefix = f"t{secrets.token_hex(4)}"
        self.names = Names(self.prefix)
        self._opened = AsyncExitStack()

    def options(self, **options: Any) -> dict[str, Any]:
        """Return an entry of ``WSGATEWAY_BRIDGES``."""
        return {"url": self.url, "services": ["orders"], **options}

    def bridge(self, **options: Any) -> Bridge:
        """Return a bridge to this bus."""
        given = self.options(**options)
        assert bridge_flaws({"warehouse": given}) == ""
        return bridge_of("warehouse", given, self.prefix)

    async def bus(self, *, ready: bool = True, **options: Any) -> Bus:
        """Return a bus that is open, and is closed at the end."""
        bus = make_bus(self.bridge(**options))
        self._opened.push_async_callback(close_soon, bus.close)
        if ready:
            await bus.set_up()
        await bus.open()
        if ready:
            async with asyncio.timeout(20):
                await bus.ready()
        return bus

    async def close(self) -> None:
        await self._opened.aclose()

    @abstractmethod
    async def restart(self) -> None:
        """Restart the server, with its data."""

    @abstractmethod
    async def serve(self, service: str) -> None:
        """Begin to read what clients send to a service; before the first message."""

    async def sent(self, service: str, count: int) -> list[Seen]:
        """Return the first *count* messages of clients."""
        return await self.sent_until(service, lambda seen: len(seen) >= count)

    @abstractmethod
    async def sent_until(
        self, service: str, enough: Enough, within: float = READ_WITHIN
    ) -> list[Seen]:
        """Return the first messages of clients that are *enough*, *within* seconds."""

    @abstractmethod
    async def dead(self, count: int) -> list[Seen]:
        """Return the first *count* records that were set aside."""

    async def produce(
        self,
        key: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        target: Target = "inbox",
        id: str | None = None,
    ) -> None:
        """Store a record as a service does."""
        where = self.names.recv if target == "inbox" else self.names.topic
        await self._store(where, key, payload, headers or {}, id)

    @abstractmethod
    async def _store(
        self, where: str, key: str, payload: bytes, headers: Mapping[str, str], id: str | None
    ) -> None:
        """Do that in the topic, or at the exchange, of this name; Kafka needs no *id*."""


class KafkaSide(Side):
    several_lanes: ClassVar = {"partitions": 4}
    refused = "ann", bytes(2_000_000)  # more than `setup_bridges` lets a topic take

    def __init__(self, server: KafkaServer) -> None:
        super().__init__()
        self.server = server
        self.url = f"kafka://{server.address()}"
        self._producer: AIOKafkaProducer | None = None

    def options(self, **options: Any) -> dict[str, Any]:
        return super().options(**{"partitions": 4, **options})

    async def restart(self) -> None:
        self.server.kill()
        await asyncio.to_thread(self.server.start)

    async def serve(self, service: str) -> None:
        pass

    async def sent_until(
        self, service: str, enough: Enough, within: float = READ_WITHIN
    ) -> list[Seen]:
        return await self._read(self.names.send_topic(service), enough, within)

    async def dead(self, count: int) -> list[Seen]:
        return await self._read(self.names.dead, lambda seen: len(seen) >= count)

    async def _read(self, topic: str, enough: Enough, within: float = READ_WITHIN) -> list[Seen]:
        found: list[Seen] = []
        options = {"auto_offset_reset": "earliest", "bootstrap_servers": self.server.address()}
        consumer = AIOKafkaConsumer(topic, **options)
        await consumer.start()
        try:
            async with asyncio.timeout(within):
                while not enough(found):
                    each = await consumer.getone()
                    headers = {name: value.decode() for name, value in each.headers}
                    found.append(Seen((each.key or b"").decode(), each.value, headers))
        finally:
            await close_soon(consumer.stop)
        return found

    async def _store(
        self, where: str, key: str, payload: bytes, headers: Mapping[str, str], id: str | None
    ) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self.server.address(),
                enable_idempotence=True,  # or what it has confirmed may be lost with a leader
                max_request_size=2**22,
            )
            self._opened.push_async_callback(close_soon, self._producer.stop)
            await self._producer.start()
        raw = [(name, value.encode()) for name, value in headers.items()]
        await self._producer.send_and_wait(where, payload, key=key.encode(), headers=raw)


class AmqpSide(Side):
    several_lanes: ClassVar = {"queues": 4}
    refused = "a" * 256, b""  # a routing key has 255 bytes

    def __init__(self, server: RabbitServer) -> None:
        super().__init__()
        self.server = server
        self.url = server.url()
        self._connection: Any = None
        self._queues: dict[str, Any] = {}

    async def _channel(self) -> Any:
        if self._connection is None:
            self._connection = await aio_pika.connect(self.server.url())
            self._opened.push_async_callback(close_soon, self._connection.close)
            self._made = await self._connection.channel()
        return self._made

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.pause)
        await asyncio.to_thread(self.server.resume)
        self._connection = None  # it is closed

    async def serve(self, service: str) -> None:
        channel = await self._channel()
        queue = await channel.declare_queue(f"{self.prefix}.services.{service}", auto_delete=True)
        await queue.bind(self.names.send, f"{service}.*")
        self._queues[service] = queue

    async def sent_until(
        self, service: str, enough: Enough, within: float = READ_WITHIN
    ) -> list[Seen]:
        return await self._read(self._queues[service], enough, within)

    async def dead(self, count: int) -> list[Seen]:
        channel = await self._channel()
        queue = await channel.get_queue(self.names.dead)
        return await self._read(queue, lambda seen: len(seen) >= count)

    async def _read(self, queue: Any, enough: Enough, within: float = READ_WITHIN) -> list[Seen]:
        found: list[Seen] = []
        async with asyncio.timeout(within):
            while not enough(found):
                each = await queue.get(no_ack=True, fail=False)
                if each is None:
                    await asyncio.sleep(0.02)
                    continue
                headers = {name: str(value) for name, value in each.headers.items()}
                found.append(Seen(each.routing_key, each.body, headers))
        return found

    async def _store(
        self, where: str, key: str, payload: bytes, headers: Mapping[str, str], id: str | None
    ) -> None:
        channel = await self._channel()
        exchange = await channel.get_exchange(where, ensure=False)
        message = aio_pika.Message(
            payload,
            headers=dict(headers),
            message_id=id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, key)


@asynccontextmanager
async def opened(bridge: Bridge, *, set_up: bool = True) -> AsyncIterator[Bus]:
    """Open the bus of a bridge, with all that it needs."""
    bus = make_bus(bridge)
    if set_up:
        await bus.set_up()
    await bus.open()
    try:
        if set_up:
            await bus.ready()
        yield bus
    finally:
        await close_soon(bus.close)


async def told_without(
    secrets: Iterable[str], attempt: Callable[[], Awaitable[object]], error: type[Exception]
) -> str:
    """Return what is said of a failure; its traceback with local variables shows no secret."""
    with pytest.raises(error) as info:
        await attempt()
    inner = info.value.with_traceback(info.tb.tb_next)  # without this function's own variables
    told = traceback.TracebackException.from_exception(inner, capture_locals=True)
    text = "".join(told.format())
    assert not [secret for secret in secrets if secret in text], text
    return str(inner)


class Reader:
    """Takes what a bus hands out.

    Args:
        bus: The bus.
        room: See `Bus.consume`.
        ack: Whether it acknowledges each record at once.
    """

    def __init__(self, bus: Bus, room: int = 100, *, ack: bool = False) -> None:
        self.bus = bus
        self._acks = ack
        self.records: list[Record] = []
        self.lost: list[str] = []
        self._changed = asyncio.Event()
        bus.consume(self._take, self.lost.append, room, 2**26)

    def _take(self, record: Record) -> None:
        self.records.append(record)
        if self._acks:
            self.bus.ack(record)
        self._changed.set()

    async def until(self, count: int, *, ack: bool = False, timeout: float = 20.0) -> list[Record]:
        """Return the records once there are *count*."""
        async with asyncio.timeout(timeout):
            while len(self.records) < count:
                self._changed.clear()
                await self._changed.wait()
        if ack:
            self.ack(*self.records)
        return self.records

    def ack(self, *records: Record) -> None:
        for record in records:
            self.bus.ack(record)

    @property
    def payloads(self) -> list[str]:
        return [record.payload.decode() for record in self.records]
