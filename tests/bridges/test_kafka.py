"""KafkaBus, with a broker of Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.structs import TopicPartition

from tests.bridges.kafka_server import KafkaServer
from tests.bridges.kafka_service import Service, Taken, bridge_to, service_on
from tests.bridges.sides import opened
from tests.support import until
from wsgateway.bridges.bus import Bus, Record
from wsgateway.bridges.kafka import KafkaBus
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused


@pytest.fixture
async def bus(kafka: KafkaServer, prefix: str) -> AsyncIterator[Bus]:
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        yield bus


@pytest.fixture
async def service(kafka: KafkaServer, prefix: str) -> AsyncIterator[Service]:
    await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    async with service_on(kafka, prefix) as service:
        yield service


# -- topics --------------------------------------------------------------------------------


async def test_ready_names_the_missing_topics_and_set_up_creates_them(
    kafka: KafkaServer, prefix: str
) -> None:
    bridge = bridge_to(kafka, prefix=prefix, partitions=2, replication=1)
    async with opened(bridge, set_up=False) as bus:
        with pytest.raises(BusMisconfigured, match=rf"'{prefix}.recv'.*setup_bridges"):
            await bus.ready()
        with pytest.raises(BusMisconfigured, match=f"'{prefix}.send.orders'"):
            await bus.produce("orders", "ann", b"", {})
        lines = await bus.set_up()
        assert lines[0] == (
            f"created topic {prefix}.send.orders: 2 partitions, replication 1, "
            "min.insync.replicas 1"
        )
        assert len(lines) == 4
        again = await bus.set_up()
        assert again[0] == f"topic {prefix}.send.orders exists: 2 partitions, replication 1"
        await bus.ready()
        await bus.produce("orders", "ann", b"", {})


async def test_set_up_says_that_a_topic_takes_less_than_clients_may_send(
    kafka: KafkaServer, prefix: str, settings: Any
) -> None:
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 200_000
    await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 300_000
    lines = await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    assert lines[0].endswith("; its max.message.bytes is 265536: raise it to 365536 or more")


async def test_set_up_says_what_kafka_refuses(kafka: KafkaServer, prefix: str) -> None:
    bus = KafkaBus(bridge_to(kafka, prefix=prefix, replication=2))
    with pytest.raises(BusMisconfigured, match=r"(?i)replication factor") as refused:
        await bus.set_up()
    assert str(refused.value).endswith("; correct 'replication' of bridge 'warehouse'")


async def test_set_up_shows_what_another_process_has_created_meanwhile(
    kafka: KafkaServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that the topic had 0 partitions."""
    bridge = bridge_to(kafka, prefix=prefix, partitions=1)
    create = AIOKafkaAdminClient.create_topics

    async def create_after_another(self: Any, topics: list[Any]) -> Any:
        await create(self, topics)
        return await create(self, topics)

    monkeypatch.setattr(AIOKafkaAdminClient, "create_topics", create_after_another)
    assert await KafkaBus(bridge).set_up() == [
        f"topic {prefix}.{name} exists: 1 partition, replication 1"
        for name in ("send.orders", "recv", "topic", "dead")
    ]


# -- what clients send ---------------------------------------------------------------------


async def test_record_has_the_user_as_key_and_its_headers(bus: Bus, service: Service) -> None:
    await bus.produce("orders", "ann=2E", b"\x00\xff", {"Ws-Frame": "binary", "Ws-User": "ann ☺"})
    (record,) = await service.read("send.orders", 1)
    assert (record.key, record.value) == (b"ann=2E", b"\x00\xff")
    assert dict(record.headers) == {"Ws-Frame": b"binary", "Ws-User": "ann ☺".encode()}


async def test_record_is_confirmed_by_all_replicas(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a record that is confirmed may be lost with the server that confirmed it."""
    send, acks = AIOKafkaClient.send, set()

    async def spy(client: Any, node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, ProduceRequest):
            acks.add(request.required_acks)
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", spy)
    await bus.produce("orders", "ann", b"1", {})
    assert acks == {-1}


async def test_users_keep_their_order_while_many_send_at_once(bus: Bus, service: Service) -> None:
    async def send(user: str) -> None:
        for n in range(10):
            await bus.produce("orders", user, b"%d" % n, {})

    await asyncio.gather(*(send(f"user{n}") for n in range(30)))
    received: dict[bytes, list[int]] = {}
    for record in await service.read("send.orders", 300):
        received.setdefault(record.key, []).append(int(record.value))
    assert len(received) == 30
    assert all(each == list(range(10)) for each in received.values())


async def test_record_that_is_too_large_is_refused_and_the_next_is_not(
    kafka: KafkaServer, prefix: str, settings: Any
) -> None:
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 100_000
    await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 300_000
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        # The first is refused by Kafka, which takes 165536 bytes, and the second before it is sent
        for size in (200_000, 500_000):
            with pytest.raises(RecordRefused, match=f"record of {size} bytes"):
                await bus.produce("orders", "ann", b"x" * size, {})
        # Kafka's refusal ended what the producer could do with this partition
        await bus.produce("orders", "ann", b"after", {})
        assert [r.value for r in await service.read("send.orders", 1)] == [b"after"]


async def test_small_records_share_no_batch_that_is_too_large(
    kafka: KafkaServer, prefix: str
) -> None:
    """Kafka refused the batch, and each record in it became a dead letter."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address())
    await admin.start()
    limit = {"max.message.bytes": "8192"}
    await admin.create_topics([NewTopic(f"{prefix}.send.orders", 1, 1, topic_configs=limit)])
    await admin.close()

    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:

        async def send(user: str, size: int = 1000) -> None:
            while True:
                with suppress(BusUnavailable):
                    return await bus.produce("orders", user, bytes(size), {})

        await asyncio.gather(*(send(f"user{n}") for n in range(60)))
        assert len({r.key for r in await service.read("send.orders", 60)}) == 60
        with pytest.raises(RecordRefused):
            await send("ann", 10_000)


async def test_closed_bus_confirms_nothing(kafka: KafkaServer, prefix: str) -> None:
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        pass
    with pytest.raises(BusUnavailable):
        await bus.produce("orders", "ann", b"", {})


# -- what services produce -----------------------------------------------------------------


async def test_record_says_all_that_the_service_said(bus: Bus, service: Service) -> None:
    taken = Taken(bus)
    await service.produce("orders.ann", b"\xff", Ws_Frame="binary", empty="")
    await service.produce("orders.room", b"t", to="topic")
    await service.produce(None, b"no key")
    await service.produce(b"\xff.ann", b"bytes")
    records = {record.payload: record for record in await taken.wait(4)}
    record = records[b"\xff"]
    assert (record.key, record.target, record.service) == ("orders.ann", "inbox", None)
    assert record.headers == {"Ws-Frame": "binary", "empty": ""}
    assert record.place.endswith(", offset 0")
    assert records[b"t"].target == "topic"
    assert records[b"no key"].key == ""
    assert records[b"bytes"].key == "\\xff.ann"
    assert len({record.id for record in taken.records}) == 4
    await service.produce("orders.ann", None)
    record = (await taken.wait(5))[4]
    assert record.payload == b""
    assert record.flaw.startswith("record has no value")
    assert not any(each.flaw for each in taken.records[:4])


async def test_topic_of_one_service_may_appear_later(
    kafka: KafkaServer, prefix: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgateway.bridges.kafka.cluster.LOOK_EACH", 0.1)
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        taken = Taken(bus)
        await service.produce("orders.ann", b"1")
        await taken.wait(1)
        await create(kafka, f"{prefix}.recv.orders")
        await service.produce("ann", b"2", to="recv.orders")
        record = (await taken.wait(2))[1]
    assert (record.key, record.service, record.target) == ("ann", "orders", "inbox")


async def test_last_header_counts_and_those_that_are_not_text_are_left_out(
    bus: Bus, service: Service, prefix: str
) -> None:
    taken = Taken(bus)
    headers = [("a", b"1"), ("a", b"2"), ("b", b"\xff"), ("c", None)]
    await service.producer.send_and_wait(f"{prefix}.recv", b"", b"orders.ann", headers=headers)
    assert (await taken.wait(1))[0].headers == {"a": "2", "c": ""}


async def test_records_of_an_aborted_transaction_are_skipped(
    kafka: KafkaServer, prefix: str, bus: Bus
) -> None:
    taken = Taken(bus)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address(), transactional_id=prefix)
    async with producer:
        for payload in (b"aborted", b"committed"):
            await producer.begin_transaction()
            await producer.send_and_wait(f"{prefix}.recv", payload, b"orders.ann")
            if payload == b"aborted":
                await producer.abort_transaction()
            else:
                await producer.commit_transaction()
    await taken.wait(1)
    assert taken.payloads == [b"committed"]


async def test_only_what_was_acknowledged_without_a_gap_stays_away(
    kafka: KafkaServer, prefix: str, service: Service
) -> None:
    for n in range(6):
        await service.produce("orders.ann", b"%d" % n)
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        taken = Taken(bus, ack=False)
        for n in (0, 1, 3, 5):
            bus.ack((await taken.wait(6))[n])
        bus.ack(taken.records[3])  # once more
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        again = Taken(bus)
        await again.wait(4)
        assert again.payloads == [b"2", b"3", b"4", b"5"]
        assert [r.id for r in again.records] == [r.id for r in taken.records[2:]]
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        await service.produce("orders.ann", b"new")
        third = Taken(bus)
        await third.wait(1)
        assert third.payloads == [b"new"]


async def test_no_more_is_handed_out_than_there_is_room(bus: Bus, service: Service) -> None:
    for n in range(60):
        await service.produce(f"orders.user{n}", b"%d" % n)
    taken = Taken(bus, room=40, ack=False)  # half of it for topics
    await taken.wait(10)
    seen = 0
    while seen < 60:  # each time all that is in hand
        assert len(taken.records) - seen <= 20
        for record in taken.records[seen : len(taken.records)]:
            bus.ack(record)
            seen += 1
        await until(lambda seen=seen: len(taken.records) > seen or seen == 60)
    assert sorted(map(int, taken.payloads)) == list(range(60))


async def test_large_records_take_the_room_of_many(bus: Bus, service: Service) -> None:
    for n in range(20):
        await service.produce("orders.ann", b"%d" % n + bytes(10_000))
    taken = Taken(bus, room=8, room_bytes=30_000, ack=False)  # half for topics
    await taken.wait(2)
    await service.produce("orders.ann", b"last")  # there would be time for more
    assert len(taken.records) == 2
    for n in range(21):
        bus.ack((await taken.wait(n + 1))[n])
    assert taken.payloads[20] == b"last"


async def test_key_that_waits_takes_no_room_of_other_partitions(bus: Bus, service: Service) -> None:
    """Records that could not be published filled the room, and everybody waited."""
    for n in range(60):
        await service.produce("orders.stuck", b"stuck%d" % n)
    taken = Taken(bus, room=30, ack=False)
    await taken.wait(4)
    others = 0
    for n in range(60):
        await service.produce(f"orders.user{n}", b"u")

    def ack_others() -> bool:
        nonlocal others
        for record in taken.records:
            if record.key != "orders.stuck" and record.receipt is not None:
                bus.ack(record)
        others = sum(record.key != "orders.stuck" for record in taken.records)
        return others >= 25  # those in two partitions of three

    await until(ack_others)


async def test_inboxes_that_wait_take_no_room_of_topics(kafka: KafkaServer, prefix: str) -> None:
    """While the stream of inboxes was full, its partitions took all of the room together."""
    async with (
        opened(bridge_to(kafka, prefix=prefix, partitions=12)) as bus,
        service_on(kafka, prefix) as service,
    ):
        for n in range(120):
            await service.produce(f"orders.user{n}", b"stuck")
        taken = Taken(bus, room=12, ack=False)
        await taken.wait(6)
        for n in range(30):
            await service.produce(f"room.{n}", b"goes on", "topic")

        def ack_topics() -> bool:
            found = [record for record in taken.records if record.target == "topic"]
            for record in found:
                bus.ack(record)
            return len(found) == 30

        await until(ack_topics)
        assert len(taken.records) == 36


async def test_removed_records_are_told_and_skipped(
    kafka: KafkaServer,
    prefix: str,
    bus: Bus,
    service: Service,
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken = Taken(bus)
    await service.produce("orders.ann", b"0")
    first = (await taken.wait(1))[0]
    partition = int(first.lane.rpartition("/")[2])
    await bus.close()
    for n in (1, 2, 3):
        await service.produce("orders.ann", b"%d" % n)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address())
    await admin.start()
    place = TopicPartition(f"{prefix}.recv", partition)
    await admin.delete_records({place: RecordsToDelete(before_offset=3)})
    await admin.close()
    async with opened(bridge_to(kafka, prefix=prefix)) as bus:
        again = Taken(bus)
        await again.wait(1)
        assert again.payloads == [b"3"]
    assert f"topic {prefix}.recv, partition {partition}: offset 1 no longer exists" in caplog.text


async def test_record_set_aside_keeps_what_it_was(bus: Bus, service: Service) -> None:
    taken = Taken(bus)
    await service.produce("nobody", b"\xffvalue", Ws_Frame="binary")
    record = (await taken.wait(1))[0]
    await bus.set_aside(record, "key is not <service>.<user>")
    (dead,) = await service.read("dead", 1)
    assert (dead.key, dead.value) == (b"nobody", b"\xffvalue")
    assert dict(dead.headers) == {
        "Ws-Frame": b"binary",
        "Ws-Dead-Reason": b"key is not <service>.<user>",
        "Ws-Dead-Place": record.place.encode(),
    }


async def test_record_that_does_not_fit_is_set_aside_without_what_is_too_large(
    kafka: KafkaServer, prefix: str, settings: Any
) -> None:
    """Its headers were left out with the payload, and nothing said that it was cut. And it was
    cut whatever ws.dead takes, if it exceeded what clients may send.
    """
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 100_000
    await create(kafka, f"{prefix}.recv", 1_000_000)
    await create(kafka, f"{prefix}.dead", 250_000)
    large = "x" * 300_000
    records = [
        ("", "x" * 200_000, "a"),
        ("payload", large, "a"),
        ("headers", "small", large),
        ("payload headers", large, large),
    ]
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus, ack=False)
        for number, (cut, value, header) in enumerate(records, 1):
            await service.produce("nobody", value.encode(), X=header)
            record = (await taken.wait(number))[-1]

            async def set_aside(record: Record = record) -> str:
                while True:
                    with suppress(BusUnavailable):  # Kafka refused a batch, of several perhaps
                        return await bus.set_aside(record, "why")

            said = await set_aside()
            assert ("did not fit" in said) == bool(cut)
            assert cut.replace(" ", " and ") in said
            dead = (await service.read("dead", number))[-1]
            headers = dict(dead.headers)
            assert headers["Ws-Dead-Reason"] == b"why"
            assert headers["Ws-Dead-Place"] == record.place.encode()
            assert headers.get("Ws-Dead-Cut", b"").decode() == cut
            assert ("X" in headers) == ("headers" not in cut)
            note = f"payload of {len(value)} bytes left out: it does not fit here. It is in "
            expected = note + record.place if "payload" in cut else value
            assert dead.value.decode() == expected


async def test_record_as_large_as_can_be_read_fits_with_its_reason(
    kafka: KafkaServer, prefix: str, settings: Any
) -> None:
    """The topic for records that are set aside took no more than that they came from."""
    settings.WSGATEWAY_MAX_MESSAGE_SIZE = 100_000
    async with opened(bridge_to(kafka, prefix=prefix)) as bus, service_on(kafka, prefix) as service:
        taken = Taken(bus)
        await service.produce("nobody", bytes(165_400))  # of 165536
        record = (await taken.wait(1))[0]
        assert await bus.set_aside(record, "☃" * 2000) == ""
        (dead,) = await service.read("dead", 1)
        assert dead.value == bytes(165_400)


async def test_two_bridges_share_and_a_rebalance_loses_nothing(
    kafka: KafkaServer, prefix: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge that joins gets partitions whose records the other one still has in hand."""
    monkeypatch.setattr("wsgateway.bridges.kafka.consumer.REVOKE_WAIT", 0.2)
    monkeypatch.setattr("wsgateway.bridges.kafka.consumer.SESSION_TIMEOUT", 2.0)
    bridge = bridge_to(kafka, prefix=prefix, partitions=4)
    async with opened(bridge) as first:
        taken = Taken(first, ack=False)
        for n in range(40):
            await service.produce(f"orders.user{n}", b"%d" % n)
        records = list(await taken.wait(40))
        for record in records[:20]:
            first.ack(record)
        async with opened(bridge) as second:
            others = Taken(second)
            await until(lambda: taken.lost and others.records)
            for record in records[20:]:
                first.ack(record)  # too late: ignored
            for n in range(40, 80):
                await service.produce(f"orders.user{n}", b"%d" % n)

            def all_seen() -> bool:
                for record in taken.records[40:]:
                    first.ack(record)
                seen = {*taken.payloads, *others.payloads}
                again = {*taken.payloads[40:], *others.payloads}
                unacked = {record.payload for record in records[20:]}
                return len(seen) == 80 and unacked <= again

            await until(all_seen, what="all records, those again that were not acknowledged")
            lanes = {r.lane for r in taken.records[40:]}, {r.lane for r in others.records}
            assert not lanes[0] & lanes[1]


async def create(kafka: KafkaServer, topic: str, most: int = 1_000_000) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address())
    await admin.start()
    limit = {"max.message.bytes": str(most)}
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=limit)])
    await admin.close()
