"""Kafka goes away and comes back: every record is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors

from tests.bridges.counting import Came, in_order
from tests.bridges.kafka_server import KafkaServer
from tests.bridges.kafka_service import Taken, bridge_to, service_on
from tests.bridges.sides import opened
from tests.support import until
from wsgateway.bridges.bus import Bus
from wsgateway.bridges.headers import ID_HEADER
from wsgateway.bridges.kafka.access import Access
from wsgateway.bridges.kafka.cluster import Cluster
from wsgateway.exceptions import BusMisconfigured, BusUnavailable


class Sender:
    """Sends each user's records one after the other, as a bridge does: again until confirmed."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.confirmed = 0
        self.failed = 0
        self.is_ending = False  # send no more

    async def send(self, user: str, numbers: Iterable[int]) -> None:
        for n in numbers:
            if self.is_ending:
                return
            while True:
                try:
                    await self.bus.produce("orders", user, b"%d" % n, {ID_HEADER: f"{user} {n}"})
                except BusUnavailable:
                    self.failed += 1
                    await asyncio.sleep(0.05)
                else:
                    break
            self.confirmed += 1

    async def send_all(self, users: int, end: int, *, begin: int = 0) -> None:
        numbers = range(begin, end)
        await asyncio.gather(*(self.send(f"user{n}", numbers) for n in range(users)))


def by_key(records: Iterable[Any]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for record in records:
        found.setdefault(record.key, []).append(int(record.value))
    return found


def as_came(records: Iterable[Any]) -> list[Came]:
    return [
        (record.key.decode(), int(record.value), dict(record.headers)[ID_HEADER].decode())
        for record in records
    ]


async def restarted(kafka: KafkaServer) -> None:
    kafka.kill()
    await asyncio.to_thread(kafka.start)


async def test_killed_broker_loses_nothing_either_way(kafka: KafkaServer, prefix: str) -> None:
    """What waits is sent again by the same producer, so Kafka recognises what it has."""
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken, sender = Taken(bus), Sender(bus)
        produced = [
            asyncio.create_task(service.produce(f"orders.user{n % 20}", b"%d" % n))
            for n in range(200)
        ]
        sending = asyncio.create_task(sender.send_all(20, 30))
        await until(lambda: sender.confirmed > 100 and len(taken.records) > 50)
        await restarted(kafka)
        await asyncio.gather(sending, *produced)
        sent = by_key(await service.read("send.orders", 600))
        assert sent == {b"user%d" % n: list(range(30)) for n in range(20)}
        await until(lambda: len({record.id for record in taken.records}) == 200)
        assert {int(payload) for payload in taken.payloads} == set(range(200))


async def test_bridge_can_be_closed_while_aiokafka_fetches_again(
    kafka: KafkaServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stop` awaits tasks that it has cancelled, and raised their CancelledError."""
    stop = AIOKafkaConsumer.stop

    async def cancelled(self: AIOKafkaConsumer) -> None:
        await stop(self)
        raise asyncio.CancelledError

    monkeypatch.setattr(AIOKafkaConsumer, "stop", cancelled)
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus)
        await service.produce("orders.ann", b"1")
        bus.ack((await taken.wait(1))[0])
        await bus.close()
    monkeypatch.undo()
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus)
        await service.produce("orders.ann", b"2")
        assert [record.payload for record in await taken.wait(1)] == [b"2"]


async def test_broker_that_stays_away_is_told_and_nothing_piles_up(
    kafka: KafkaServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgateway.bridges.kafka.access.REQUEST_TIMEOUT", 1.0)
    monkeypatch.setattr("wsgateway.bridges.kafka.cluster.LOOK_EACH", 0.1)
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        sender = Sender(bus)
        await sender.send_all(10, 3)
        kafka.pause()
        try:
            sending = asyncio.create_task(sender.send_all(10, 20))
            await until(lambda: not bus.connected)
            with pytest.raises(BusUnavailable, match=r"lost the connection|does not answer"):
                await bus.produce("orders", "ann", b"", {})
        finally:
            kafka.resume()
        await sending
        # What was on its way waited with the same producer, so nothing came twice
        found = by_key(await service.read("send.orders", 230))
        assert found == {b"user%d" % n: [0, 1, 2, *range(20)] for n in range(10)}
        assert sender.failed == 0


async def test_record_is_set_aside_once_kafka_has_it(kafka: KafkaServer, prefix: str) -> None:
    """Its record is acknowledged then, and would be lost."""
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus, ack=False)
        await service.produce("nobody", b"1")
        (record,) = await taken.wait(1)
        await bus.set_aside(record, "before")
        kafka.pause()
        try:
            setting = asyncio.create_task(bus.set_aside(record, "in between"))
            await asyncio.wait({setting}, timeout=0.3)
            assert not setting.done()
        finally:
            kafka.resume()
        await setting
        assert len(await service.read("dead", 2)) == 2


async def test_close_does_not_wait_for_a_broker_that_is_away(
    kafka: KafkaServer, prefix: str, settings: Any
) -> None:
    settings.WSGATEWAY_CLOSE_TIMEOUT = 1.0
    before = asyncio.all_tasks()
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus)
        await service.produce("orders.ann", b"1")
        await taken.wait(1)
        kafka.pause()
        try:
            waiting = asyncio.create_task(bus.produce("orders", "ann", b"2", {}))
            await asyncio.sleep(0)
            async with asyncio.timeout(4):
                await bus.close()
            with pytest.raises(BusUnavailable):
                await waiting
        finally:
            kafka.resume()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_close_sends_nothing_that_another_bridge_may_have(
    kafka: KafkaServer, prefix: str
) -> None:
    """It sent late what had been given back: a service saw 1, 2, and then 1 again."""
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        await bus.produce("orders", "ann", b"0", {})
        kafka.pause()
        try:
            sent = asyncio.create_task(bus.produce("orders", "ann", b"on its way", {}))
            await asyncio.sleep(0.2)  # Kafka has it in a buffer, and answers later
            waiting = asyncio.create_task(bus.produce("orders", "ann", b"late", {}))
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(bus.close())
            await asyncio.wait({closing}, timeout=2)  # while it sent what waited: for 5 s
        finally:
            kafka.resume()
        await closing
        for task in (sent, waiting):
            with pytest.raises(BusUnavailable):
                await task
        await service.produce("ann", b"after", to="send.orders")
        found: list[bytes] = []
        while b"after" not in found:
            found = [r.value for r in await service.read("send.orders", len(found) + 1)]
        assert b"late" not in found


async def test_consumer_whose_fetching_ended_begins_again(kafka: KafkaServer, prefix: str) -> None:
    """aiokafka tells nobody, and the bridge consumed nothing from then on."""
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus)
        await service.produce("orders.ann", b"1")
        await taken.wait(1)
        (fetching,) = (
            task
            for task in asyncio.all_tasks()
            if "Fetcher._fetch_requests_routine" in repr(task.get_coro())
        )
        fetching.cancel()
        for text in (b"2", b"3"):  # the first may come with a request that was on its way
            await service.produce("orders.ann", text)
            await until(lambda text=text: text in taken.payloads)


async def test_topic_without_rights_leaves_the_producer_to_others(
    kafka: KafkaServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal ended the producer that sent for other services as well."""
    started, send = [], AIOKafkaProducer.send

    async def refusing(self: Any, topic: str, *args: Any, **kwargs: Any) -> Any:
        started.append(self)
        if topic.endswith(".bills"):
            raise errors.TopicAuthorizationFailedError(topic)
        return await send(self, topic, *args, **kwargs)

    monkeypatch.setattr(AIOKafkaProducer, "send", refusing)
    async with opened(bridge_to(kafka, prefix=prefix, services=("orders", "bills"))) as bus:
        await bus.produce("orders", "ann", b"1", {})
        with pytest.raises(BusMisconfigured):
            await bus.produce("bills", "ann", b"2", {})
        await bus.produce("orders", "ann", b"3", {})
    assert len({*map(id, started)}) == 1


async def test_servers_are_learnt_from_the_cluster(
    kafka: KafkaServer, prefix: str, free_port: int
) -> None:
    """The bridge gave up sending while the servers in its settings were away."""
    access = Access(bridge_to(kafka, prefix=prefix))
    cluster = Cluster(access, [])
    looking = asyncio.create_task(cluster.run())
    await until(lambda: cluster.is_connected)
    looking.cancel()
    (server,) = access.bridge.servers
    access.bridge = replace(access.bridge, servers=(server._replace(port=free_port),))
    async with access.connection() as conn:
        assert conn.port == kafka.ports["PLAINTEXT"]
    first, second = (pytest.raises(BusUnavailable) for _ in range(2))
    cluster.is_connected = False
    with first as one:
        cluster.check([])
    with second as other:
        cluster.check([])
    assert one.value is not other.value  # one that is raised again and again grows


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_partition_without_leader_delays_only_its_own(
    kafka_brokers: list[KafkaServer], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches for it expire, and their numbers are missing from then on: a new producer goes on."""
    monkeypatch.setattr("wsgateway.bridges.kafka.access.REQUEST_TIMEOUT", 3.0)
    bridge = bridge_to(*kafka_brokers, prefix=prefix, partitions=6, replication=1)
    async with opened(bridge) as bus, service_on(kafka_brokers[0], prefix) as service:
        taken, sender = Taken(bus), Sender(bus)
        await sender.send_all(30, 2)
        kafka_brokers[2].kill()
        sending = asyncio.create_task(sender.send_all(30, 12, begin=2))
        # Two thirds of the partitions go on, more or less 20 users
        await until(lambda: sender.confirmed >= 60 + 120, 60)
        await until(lambda: sender.failed > 0, 60)
        await asyncio.to_thread(kafka_brokers[2].start)
        await asyncio.wait_for(sending, 90)
        records = await service.read_until("send.orders", lambda all: len({*as_came(all)}) == 360)
        # Each failure may be about a record that is stored all the same
        found = in_order(as_came(records), repeats=sender.failed)
        assert found == {f"user{n}": list(range(12)) for n in range(30)}
        for n in range(60):
            await service.produce(f"orders.user{n}", b"%d" % n)
        await until(lambda: {int(payload) for payload in taken.payloads} == set(range(60)), 60)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_three_brokers_are_restarted_one_after_the_other(
    kafka_brokers: list[KafkaServer], prefix: str
) -> None:
    bridge = bridge_to(*kafka_brokers, prefix=prefix, partitions=6)
    async with opened(bridge) as bus, service_on(kafka_brokers[0], prefix) as service:
        taken, sender = Taken(bus), Sender(bus)
        sending = asyncio.create_task(sender.send_all(30, 1_000_000))
        producing: list[Awaitable[Any]] = []
        for server in kafka_brokers:
            producing += [
                asyncio.ensure_future(service.produce(f"orders.user{n}", b"%d" % n))
                for n in range(30)
            ]
            await restarted(server)
            seen = sender.confirmed
            await until(lambda seen=seen: sender.confirmed > seen + 300, 60)
        sender.is_ending = True
        await asyncio.wait_for(asyncio.gather(sending, *producing), 120)
        records = await service.read_until(
            "send.orders", lambda all: len({*as_came(all)}) == sender.confirmed
        )
        found = in_order(as_came(records), repeats=sender.failed)
        assert all(numbers == list(range(len(numbers))) for numbers in found.values())
        await until(lambda: len({record.id for record in taken.records}) == 90, 60)
