"""A service on Kafka, as others would write it with aiokafka; and bridges that lead to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.bridges.kafka_server import KafkaServer
from tests.support import close_soon, until
from wsgateway.bridges.bus import Bus, Record
from wsgateway.bridges.config import Bridge, Server

__all__ = ["Service", "Taken", "bridge_to", "service_on"]


def bridge_to(
    *servers: KafkaServer, prefix: str, listener: str = "PLAINTEXT", **options: Any
) -> Bridge:
    """Return a bridge to these brokers, for the service ``orders``."""
    options.setdefault("services", ("orders",))
    options.setdefault("partitions", 3)
    options.setdefault("group", f"{prefix}.bridge")
    return Bridge(
        name="warehouse",
        prefix=prefix,
        bus="kafka",
        servers=tuple(Server("127.0.0.1", server.ports[listener]) for server in servers),
        is_encrypted=listener.endswith("SSL"),
        **options,
    )


class Service:
    """What a service does: reads what clients sent, and produces.

    Args:
        producer: Of aiokafka, started.
        address: Of a broker.
        prefix: How the topics' names begin.
    """

    def __init__(self, producer: Any, address: str, prefix: str) -> None:
        self.producer = producer
        self._address = address
        self._prefix = prefix

    async def produce(
        self, key: str | bytes | None, value: bytes | None, to: str = "recv", **headers: str
    ) -> None:
        raw = key.encode() if isinstance(key, str) else key
        pairs = [(name.replace("_", "-"), text.encode()) for name, text in headers.items()]
        await self.producer.send_and_wait(f"{self._prefix}.{to}", value, raw, headers=pairs)

    async def read(self, topic: str, count: int) -> list[Any]:
        """Return all records of a topic once there are *count*."""
        return await self.read_until(topic, lambda found: len(found) >= count, 30.0)

    async def read_until(
        self, topic: str, enough: Callable[[list[Any]], bool], timeout: float = 60.0
    ) -> list[Any]:
        """Return all records of a topic once they are *enough*."""
        name = f"{self._prefix}.{topic}"
        consumer = AIOKafkaConsumer(
            name, bootstrap_servers=self._address, auto_offset_reset="earliest"
        )
        await consumer.start()
        found: list[Any] = []

        async def more() -> bool:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found.extend(records)
            return enough(found)

        try:
            async with asyncio.timeout(timeout):
                while not await more():
                    pass
        finally:
            await close_soon(consumer.stop)
        return found


@asynccontextmanager
async def service_on(server: KafkaServer, prefix: str) -> AsyncIterator[Service]:
    """Run a service."""
    producer = AIOKafkaProducer(bootstrap_servers=server.address(), enable_idempotence=True)
    await producer.start()
    try:
        yield Service(producer, server.address(), prefix)
    finally:
        await close_soon(producer.stop)


class Taken:
    """Takes the records of a bus, as a bridge does.

    Args:
        bus: Whose.
        room: See `Bus.consume`.
        room_bytes: The same.
        ack: Acknowledge each at once.
    """

    def __init__(
        self, bus: Bus, *, room: int = 512, room_bytes: int = 1 << 26, ack: bool = True
    ) -> None:
        self.records: list[Record] = []
        self.lost: list[str] = []
        self.bus = bus
        self._ack = ack
        bus.consume(self._on_record, self.lost.append, room, room_bytes)

    def _on_record(self, record: Record) -> None:
        self.records.append(record)
        if self._ack:
            self.bus.ack(record)

    @property
    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.records]

    async def wait(self, count: int, timeout: float = 30.0) -> list[Record]:
        """Return all records once there are *count*."""
        await until(lambda: len(self.records) >= count, timeout, f"{count} records")
        return self.records
