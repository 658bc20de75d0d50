"""``manage.py runbridge`` between NATS and Kafka: killed, and while one of both is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.bridges.counting import all_of, came, in_order
from tests.bridges.kafka_server import KafkaServer
from tests.bridges.processes import Bridges, offer_all, produce_all, read_inbox
from tests.bridges.sides import KafkaSide
from tests.support import Process, close_soon
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import CONCURRENCY
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings

MEGABYTE = 1024 * 1024


@pytest.fixture
async def side(kafka: KafkaServer) -> AsyncIterator[KafkaSide]:
    side = KafkaSide(kafka)
    await make_bus(side.bridge()).set_up()
    yield side
    await side.close()


@pytest.fixture
async def broker(
    own_server: EmbeddedServer, side: KafkaSide, settings: Any
) -> AsyncIterator[NatsBroker]:
    """A broker that may be stopped under the bridge."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_PREFIX = side.prefix
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    yield broker
    await close_soon(broker.close)


class Arrived:
    """Counts what clients sent, as far as it is in Kafka, without reading it."""

    def __init__(self, side: KafkaSide) -> None:
        topic = side.names.send_topic("orders")
        self._places = [TopicPartition(topic, n) for n in range(4)]
        self._consumer = AIOKafkaConsumer(bootstrap_servers=side.server.address())

    async def __aenter__(self) -> Arrived:
        await self._consumer.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await close_soon(self._consumer.stop)

    async def wait(self, count: int, timeout: float) -> int:
        async with asyncio.timeout(timeout):
            while True:
                ends = await self._consumer.end_offsets(self._places)
                found = sum(map(int, ends.values()))
                if found >= count:
                    return found
                await asyncio.sleep(0.05)


async def all_stored(broker: NatsBroker, users: int, count: int, timeout: float) -> None:
    """Wait until each inbox holds exactly its user's numbers, in order."""
    async with asyncio.timeout(timeout):
        await broker.wait_ready()
        for user in range(users):
            wanted = list(range(user, count, users))
            while (found := await read_inbox(broker, f"u{user}")) != wanted:
                assert found == wanted[: len(found)]
                await asyncio.sleep(0.1)


async def test_killed_bridge_loses_nothing_and_another_goes_on(
    side: KafkaSide, broker: NatsBroker, own_server: EmbeddedServer, tmp_path: Path
) -> None:
    """A client's message may come twice to the service, but a record only once to the client."""
    with Bridges.running(tmp_path, side, own_server.url) as bridges:
        first = await bridges.start()
        async with Arrived(side) as arrived:
            producing = asyncio.create_task(produce_all(side, 20, 1000))
            offering = asyncio.create_task(offer_all(broker, 20, 1000))
            await arrived.wait(100, 20)
            first.kill()
            await asyncio.gather(producing, offering)
            await bridges.start()
            await side.sent_until("orders", all_of(1000))
            count = await arrived.wait(1000, 20)
        await all_stored(broker, 20, 1000, 40)
        # One message of each user was on its way when the bridge was killed
        sent = in_order(came(await side.sent("orders", count)), repeats=20)
        assert sent == {f"u{user}": list(range(user, 1000, 20)) for user in range(20)}


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
async def test_backlog_waits_for_the_other_side_and_takes_no_memory(
    side: KafkaSide,
    broker: NatsBroker,
    own_server: EmbeddedServer,
    tmp_path: Path,
    count: int,
) -> None:
    users, timeout = 200, 30 + count / 200
    with Bridges.running(tmp_path, side, own_server.url) as bridges:
        bridge = await bridges.start()
        async with Arrived(side) as arrived:
            side.server.pause()
            try:
                before = bridge.memory
                await offer_all(broker, users, count)
                await stays_below(bridge, before + 40 * MEGABYTE)
            finally:
                side.server.resume()
            await arrived.wait(count, timeout)
        # The connection may have been lost, with all that the bridge sent at once on its way
        seen = await side.sent_until("orders", all_of(count))
        sent = in_order(came(seen), repeats=CONCURRENCY)
        assert sent == {f"u{user}": list(range(user, count, users)) for user in range(users)}
        own_server.pause()
        try:
            before = bridge.memory
            await produce_all(side, users, count)
            await stays_below(bridge, before + 60 * MEGABYTE)
        finally:
            own_server.resume()
        await all_stored(broker, users, count, timeout)


async def stays_below(bridge: Process, limit: int) -> None:
    """Watch a process for as long as it might take more."""
    for _ in range(10):
        assert bridge.memory < limit
        await asyncio.sleep(0.1)
