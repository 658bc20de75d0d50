"""The buses that bridges lead to, with their own client alone, and JetStream with nats-py."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import nats
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from tests.bridges import kafka_server, rabbitmq
from tests.bridges.kafka_server import KafkaServer
from tests.bridges.rabbitmq import RabbitServer
from wsgateway.bridges.names import Names, key_of

__all__ = [
    "PEERS",
    "SERVICE",
    "Peer",
    "each_in_turn",
    "jetstream_publishes",
    "jetstream_reads",
    "user",
]

SERVICE = "bench"
USERS = 64
"""As many as a bridge sends for at once, so that the clients alone have the same in flight."""
HEADERS = {
    "Ws-Frame": "text",
    "Ws-Service": SERVICE,
    "Ws-User": "user00",
    "Ws-Sender": f"{SERVICE}.user00",
    "Ws-Id": "0123456789abcdef0123",
    "Ws-Offset": "12345",
    "Ws-Attempt": "1",
}
"""Those that a bridge adds; the clients alone send them as well."""
AHEAD = 512
"""Records that a consumer may take ahead."""

Speed = TypeVar("Speed")
Timed = Callable[[Coroutine[Any, Any, None], int], Awaitable[Speed]]
"""Runs something that handles so many messages, and returns how fast it was."""


def user(number: int) -> str:
    """Return whose message it is."""
    return f"user{number % USERS:02}"


async def each_in_turn(count: int, send: Callable[[int], Awaitable[object]]) -> None:
    """Send numbers 0 to *count*: a user's next only once the last is confirmed."""

    async def one(first: int) -> None:
        for number in range(first, count, USERS):
            await send(number)

    await asyncio.gather(*(one(first) for first in range(USERS)))


class Peer(ABC):
    """A bus, and what services on it do.

    Args:
        prefix: How its names begin.
    """

    name: str

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.names = Names(prefix)

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The entry of ``WSGATEWAY_BRIDGES``."""

    @abstractmethod
    async def open(self) -> None:
        """Connect; the topics or exchanges are there."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def send(self, key: str, payload: bytes) -> None:
        """Store what a client sent, as a bridge does; return once it is confirmed."""

    @abstractmethod
    async def produce(self, number: int, payload: bytes) -> None:
        """Store what a service produces; return once it is confirmed."""

    @abstractmethod
    async def consume(self, count: int) -> None:
        """Take *count* records that services produced, and acknowledge each."""

    @abstractmethod
    async def arrived(self) -> int:
        """Return how many records of clients there are."""

    @abstractmethod
    def listen(
        self, on_payload: Callable[[bytes], None]
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Call *on_payload* with each record of clients from now on."""


class KafkaPeer(Peer):
    """Kafka, with aiokafka."""

    name = "kafka"
    why_not = staticmethod(kafka_server.why_not)

    def __init__(self, server: KafkaServer, prefix: str) -> None:
        super().__init__(prefix)
        self._address = server.address()
        self._topic = self.names.send_topic(SERVICE)

    @staticmethod
    @contextlib.contextmanager
    def server(folder: Path) -> Iterator[KafkaServer]:
        """Run a broker."""
        with kafka_server.kafka_cluster(folder) as servers:
            yield servers[0]

    @property
    def options(self) -> dict[str, Any]:
        return {"url": f"kafka://{self._address}", "services": [SERVICE], "partitions": 6}

    async def open(self) -> None:
        from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._address, acks="all", enable_idempotence=True
        )
        await self._producer.start()
        self._reader = AIOKafkaConsumer(self._topic, bootstrap_servers=self._address)
        await self._reader.start()

    async def close(self) -> None:
        await self._producer.stop()
        await self._reader.stop()

    async def send(self, key: str, payload: bytes) -> None:
        headers = [(name, value.encode()) for name, value in HEADERS.items()]
        await self._producer.send_and_wait(self._topic, payload, key.encode(), headers=headers)

    async def produce(self, number: int, payload: bytes) -> None:
        key = key_of(SERVICE, user(number)).encode()
        await self._producer.send_and_wait(self.names.recv, payload, key)

    async def consume(self, count: int) -> None:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(
            self.names.recv,
            bootstrap_servers=self._address,
            group_id=f"{self.prefix}-floor",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        seen = 0
        loop = asyncio.get_running_loop()
        committed = loop.time()
        while seen < count:
            found = await consumer.getmany(timeout_ms=1000, max_records=AHEAD)
            seen += sum(map(len, found.values()))
            if loop.time() > committed + 0.2:
                await consumer.commit()
                committed = loop.time()
        await consumer.commit()
        await consumer.stop()

    async def arrived(self) -> int:
        ends = await self._reader.end_offsets(self._reader.assignment())
        return sum(ends.values())

    @contextlib.asynccontextmanager
    async def listen(self, on_payload: Callable[[bytes], None]) -> AsyncIterator[None]:
        await self._reader.seek_to_end()

        async def read() -> None:
            async for record in self._reader:
                on_payload(record.value)

        task = asyncio.create_task(read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class AmqpPeer(Peer):
    """RabbitMQ, with aio-pika."""

    name = "amqp"
    why_not = staticmethod(rabbitmq.why_not)

    def __init__(self, server: RabbitServer, prefix: str) -> None:
        super().__init__(prefix)
        self._url = server.url()
        self._queue_name = f"{prefix}-service"

    @staticmethod
    @contextlib.contextmanager
    def server(folder: Path) -> Iterator[RabbitServer]:
        """Run a broker."""
        server = RabbitServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.close()

    @property
    def options(self) -> dict[str, Any]:
        return {"url": self._url, "services": [SERVICE]}

    async def open(self) -> None:
        import aio_pika

        self._pika = aio_pika
        self._connection = await aio_pika.connect(self._url)
        self._channel = channel = await self._connection.channel(publisher_confirms=True)
        self._send = await channel.get_exchange(self.names.send)
        self._recv = await channel.get_exchange(self.names.recv)
        self._queue = await channel.declare_queue(self._queue_name, durable=True)
        await self._queue.bind(self._send, f"{SERVICE}.#")
        floor = await self._floor(channel)
        await floor.bind(self._recv, "#")

    async def close(self) -> None:
        await self._connection.close()

    async def _floor(self, channel: Any) -> Any:
        """Return the queue for the client alone, of the kind that a bridge reads."""
        return await channel.declare_queue(
            f"{self.prefix}-floor", durable=True, arguments={"x-queue-type": "quorum"}
        )

    async def send(self, key: str, payload: bytes) -> None:
        message = self._pika.Message(
            payload, headers=dict(HEADERS), delivery_mode=self._pika.DeliveryMode.PERSISTENT
        )
        await self._send.publish(message, key_of(SERVICE, key), mandatory=True)

    async def produce(self, number: int, payload: bytes) -> None:
        message = self._pika.Message(
            payload,
            message_id=f"{self.prefix}.{payload[:31].decode()}",
            delivery_mode=self._pika.DeliveryMode.PERSISTENT,
        )
        await self._recv.publish(message, key_of(SERVICE, user(number)), mandatory=True)

    async def consume(self, count: int) -> None:
        channel = await self._connection.channel()
        await channel.set_qos(prefetch_count=AHEAD)
        queue = await self._floor(channel)
        done = asyncio.Event()
        acked = 0

        async def take(message: Any) -> None:
            nonlocal acked
            if acked < count:  # there are those of the latency, too
                await message.ack()
                acked += 1
            if acked >= count:
                done.set()

        await queue.consume(take)
        await done.wait()
        await channel.close()

    async def arrived(self) -> int:
        found = await self._channel.declare_queue(self._queue_name, durable=True, passive=True)
        return int(found.declaration_result.message_count or 0)

    @contextlib.asynccontextmanager
    async def listen(self, on_payload: Callable[[bytes], None]) -> AsyncIterator[None]:
        await self._queue.purge()
        tag = await self._queue.consume(lambda message: on_payload(message.body), no_ack=True)
        try:
            yield
        finally:
            await self._queue.cancel(tag)


PEERS: dict[str, type[KafkaPeer] | type[AmqpPeer]] = {"kafka": KafkaPeer, "amqp": AmqpPeer}


# -- JetStream with nats-py, alone -----------------------------------------------------------


@contextlib.asynccontextmanager
async def _stream(url: str, retention: RetentionPolicy) -> AsyncIterator[Any]:
    connection = await nats.connect(url)
    stream = connection.jetstream()
    await stream.add_stream(
        StreamConfig("FLOOR", subjects=["floor.*"], retention=retention, storage=StorageType.FILE)
    )
    try:
        yield stream
    finally:
        await stream.delete_stream("FLOOR")
        await connection.close()


async def jetstream_publishes(
    url: str, count: int, payload: Callable[[int], bytes], timed: Timed[Speed]
) -> Speed:
    """Publish messages, each confirmed before the same user's next; return how many a second."""
    async with _stream(url, RetentionPolicy.LIMITS) as stream:

        async def publish(number: int) -> None:
            headers = {"Nats-Msg-Id": f"{number}", "Ws-Frame": "text"}
            await stream.publish(f"floor.{user(number)}", payload(number), headers=headers)

        return await timed(each_in_turn(count, publish), count)


async def jetstream_reads(
    url: str, count: int, payload: Callable[[int], bytes], timed: Timed[Speed]
) -> Speed:
    """Read messages of a work queue, each acknowledged before the same user's next."""
    async with _stream(url, RetentionPolicy.WORK_QUEUE) as stream:
        await each_in_turn(
            count,
            lambda n: stream.publish(f"floor.{user(n)}", payload(n), headers=dict(HEADERS)),
        )
        config = ConsumerConfig(max_ack_pending=10_000)
        pull = await stream.pull_subscribe("floor.*", durable="floor", config=config)
        return await timed(_read(pull, count), count)


async def _read(pull: Any, count: int) -> None:
    queues: dict[str, deque[Any]] = defaultdict(deque)
    working: set[str] = set()
    room = asyncio.Semaphore(AHEAD)
    tasks = set()

    async def work(subject: str) -> None:
        queue = queues[subject]
        while queue:
            await queue.popleft().ack_sync()
            room.release()
        working.discard(subject)

    seen = 0
    while seen < count:
        messages = await pull.fetch(min(64, count - seen))
        seen += len(messages)
        for message in messages:
            await room.acquire()
            queues[message.subject].append(message)
            if message.subject not in working:
                working.add(message.subject)
                task = asyncio.create_task(work(message.subject))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
