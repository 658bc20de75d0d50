"""RabbitMQ as a bus: what it creates, what it stores, what it refuses, and whom it lets in."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import struct
import time
from collections.abc import Coroutine
from typing import Any

import aio_pika
import aiormq
import pytest
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from tests.bridges.amqp_side import (
    Hands,
    amqp_bridge,
    bus_on,
    in_order,
    service_side,
)
from tests.bridges.rabbitmq import RabbitServer
from tests.support import until
from wsgateway.bridges.amqp import AmqpBus, consuming, publishing
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.supervision import share

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ

# -- what it needs -----------------------------------------------------------------------------


async def test_missing_things_are_named_and_set_up_creates_them(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge, set_up=False) as bus:
        with pytest.raises(BusMisconfigured) as missing:
            await bus.ready()
        for name in ("send", "recv", "topic", "dead"):
            assert f"no exchange '{bridge.prefix}.{name}'" in str(missing.value)
        assert f"no queue '{bridge.group}.inbox.0'" in str(missing.value)
        assert 'run "manage.py setup_bridges warehouse"' in str(missing.value)
        created = await bus.set_up()
        assert f"created exchange '{bridge.prefix}.send': topic, durable" in created
        assert f"created queue '{bridge.group}.topic.0': quorum, durable" in created
        await bus.ready()
        again = await bus.set_up()
        assert again == [
            line.removeprefix("created ").replace("':", "' exists:") for line in created
        ]


async def test_a_direction_needs_only_its_own_things(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit, direction="send")
    async with bus_on(bridge) as bus:
        assert await bus.set_up() == [f"exchange '{bridge.prefix}.send' exists: topic, durable"]


async def test_a_queue_of_another_kind_is_kept_and_set_up_says_what_differs(
    rabbit: RabbitServer,
) -> None:
    bridge = amqp_bridge(rabbit)
    async with service_side(rabbit, bridge) as service:
        await service.channel.declare_queue(f"{bridge.group}.inbox.0", durable=True)
    with pytest.raises(BusMisconfigured) as refused:
        await AmqpBus(bridge).set_up()
    assert "inequivalent arg 'x-" in str(refused.value)
    assert f"delete the queue '{bridge.group}.inbox.0', or keep it" in str(refused.value)


async def test_several_queues_need_a_plugin(rabbit: RabbitServer) -> None:
    rabbit.eval('rabbit_registry:unregister(exchange, <<"x-consistent-hash">>)')
    try:
        with pytest.raises(BusMisconfigured, match="rabbitmq-plugins enable rabbitmq_consistent"):
            await AmqpBus(amqp_bridge(rabbit, queues=2)).set_up()
    finally:
        module = "rabbit_exchange_type_consistent_hash"
        rabbit.eval(f'rabbit_registry:register(exchange, <<"x-consistent-hash">>, {module})')


async def test_another_number_of_queues_loses_no_record(rabbit: RabbitServer) -> None:
    """Queues that a larger number left bound would take records that nobody reads."""
    one = amqp_bridge(rabbit)
    users = [f"orders.u{number}" for number in range(12)]

    async def carry(queues: int, payload: str) -> set[str]:
        bridge = amqp_bridge(rabbit, prefix=one.prefix, queues=queues)
        async with asyncio.timeout(20):
            while any("no longer bound" in line for line in await AmqpBus(bridge).set_up()):
                await asyncio.sleep(0.05)  # RabbitMQ has not counted what is left in it yet
        async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
            hands = Hands(bus)
            for user in users:
                await service.produce(user, [payload])
                await service.produce(user, [payload], target="topic")
            await until(lambda: len(hands.records) == 2 * len(users))
            assert set(hands.payloads) == {payload}
            assert {(r.key, r.target) for r in hands.records} == {
                (user, target) for user in users for target in ("inbox", "topic")
            }
            return {record.lane.removeprefix(f"{bridge.group}.") for record in hands.records}

    assert await carry(1, "one") == {"inbox.0", "topic.0"}
    assert len(await carry(3, "three")) == 6
    assert await carry(2, "two") == {"inbox.0", "inbox.1", "topic.0", "topic.1"}
    assert await carry(1, "one again") == {"inbox.0", "topic.0"}


async def test_a_queue_that_is_no_longer_used_is_kept_until_it_is_empty(
    rabbit: RabbitServer,
) -> None:
    three = amqp_bridge(rabbit, queues=3)
    await AmqpBus(three).set_up()
    one = amqp_bridge(rabbit, prefix=three.prefix)
    async with service_side(rabbit, three) as service:
        for number in range(30):
            await service.produce(f"orders.u{number}", [f"u{number} 1"])
        async with bus_on(one, set_up=False) as bus:  # somebody has forgotten to set up
            with pytest.raises(BusMisconfigured, match=r"inbox\.1'.* while 'queues' is 1; run"):
                await bus.ready()
        lines = await AmqpBus(one).set_up()
        assert f"deleted queue '{one.group}.topic.2': no longer used" in lines
        kept = [line for line in lines if "run a bridge with 'queues': 3" in line]
        assert [f"'{one.group}.inbox.2' is no longer bound" in line for line in kept] == [True]
        # The line says what to do
        async with bus_on(three, set_up=False) as bus:
            with pytest.raises(BusMisconfigured):  # a queue of topics is gone
                await bus.ready()
        await AmqpBus(three).set_up()
        async with bus_on(three) as bus:
            hands = Hands(bus)
            await until(lambda: len(hands.records) == 30)
        await until(lambda: rabbit.waiting(f"{one.group}.inbox.2") == 0)
        lines = await AmqpBus(one).set_up()
        assert f"deleted queue '{one.group}.inbox.2': no longer used" in lines


# -- client to service ---------------------------------------------------------------------------


async def test_a_service_gets_payload_headers_and_id(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        headers = {"Ws-Id": "17", "Ws-Frame": "binary", "Ws-User": "ann"}
        await bus.produce("orders", "ann", b"\x00\xff", headers)
        await until(lambda: service.received)
        [message] = service.received
        assert (message.body, message.routing_key) == (b"\x00\xff", "orders.ann")
        assert message.headers == headers
        assert message.message_id == "17"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_nothing_is_lost_while_no_service_has_a_queue(rabbit: RabbitServer) -> None:
    """RabbitMQ would drop it, and confirm."""
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        with pytest.raises(BusMisconfigured, match=r"no queue is bound .* 'orders\.\*'"):
            await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        assert bus.connected
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await until(lambda: len(service.received) == 1)


async def test_a_full_queue_is_tried_again(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        name = await service.listen(x_max_length=1, x_overflow="reject-publish")
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        with pytest.raises(BusUnavailable, match="is full"):
            await bus.produce("orders", "ann", b"2", {"Ws-Id": "2"})
        await (await service.channel.get_queue(name)).purge()
        await bus.produce("orders", "ann", b"2", {"Ws-Id": "2"})


async def test_a_missing_exchange_is_named(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.channel.exchange_delete(f"{bridge.prefix}.send")
        with pytest.raises(BusMisconfigured, match=r"no exchange .* setup_bridges"):
            await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})


async def test_a_routing_key_that_is_too_long_is_refused(rabbit: RabbitServer) -> None:
    async with bus_on(amqp_bridge(rabbit)) as bus:
        with pytest.raises(RecordRefused, match="routing key of 256 bytes exceeds"):
            await bus.produce("orders", "u" * 249, b"", {"Ws-Id": "1"})
        with pytest.raises(BusMisconfigured):  # one less can be sent
            await bus.produce("orders", "u" * 248, b"", {"Ws-Id": "1"})


async def test_a_message_that_is_too_large_is_refused_and_takes_no_other_along(
    rabbit: RabbitServer,
) -> None:
    """RabbitMQ closes the channel, so those beside it fail, too, and succeed when tried again."""
    bridge = amqp_bridge(rabbit)
    rabbit.eval("application:set_env(rabbit, max_message_size, 1000)")
    try:
        async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
            await service.read()

            async def produce(user: str, size: int) -> None:
                while True:
                    try:
                        return await bus.produce("orders", user, b"x" * size, {"Ws-Id": user})
                    except BusUnavailable:
                        await asyncio.sleep(0.01)

            sizes = {"ann": 1000, "bob": 1001, "cid": 1}
            results = await asyncio.gather(
                *(produce(user, size) for user, size in sizes.items()), return_exceptions=True
            )
            assert [type(result) for result in results] == [type(None), RecordRefused, type(None)]
            assert "1001 bytes exceeds RabbitMQ's max_message_size (1000 bytes)" in str(results[1])
            await until(
                lambda: {m.routing_key for m in service.received} == {"orders.ann", "orders.cid"}
            )
    finally:
        rabbit.eval("application:set_env(rabbit, max_message_size, 134217728)")


async def test_an_attempt_that_ends_before_it_begins_is_not_confirmed(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that was lost in the same turn of the loop cancelled the caller."""

    def share_and_lose(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = share(work, name)
        task.cancel()
        return task

    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.listen()
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "share", share_and_lose)
            with pytest.raises(BusUnavailable, match="channel was closed"):
                await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})


# -- service to client ---------------------------------------------------------------------------


async def test_records_come_with_key_headers_and_id(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus)
        headers = {"Ws-Frame": "text", "retries": 3, "x": {"a": 1}}
        await service.produce("orders.ann", ["hello"], headers=headers, message_id="m1")
        await until(lambda: hands.records)
        [record] = hands.records
        assert (record.key, record.target, record.service) == ("orders.ann", "inbox", None)
        assert record.payload == b"hello"
        assert record.headers == {"Ws-Frame": "text"}  # the text ones
        assert record.lane in record.place


async def test_messages_that_share_their_message_id_are_not_taken_for_one(
    rabbit: RabbitServer,
) -> None:
    """The second and the third message about order 17 were dropped as repeats of the first."""
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus)
        for payload, headers in (
            ("ok", {}),
            ("paid", {}),
            ("ok", {"Ws-Reply-To": "r1"}),
            ("ok", {"Ws-Reply-To": "r2"}),
            ("ok", {"traceparent": "00-1-2-01"}),  # the service tries again
        ):
            await service.produce("orders.ann", [payload], headers=headers, message_id="17")
        await until(lambda: len(hands.records) == 5)
        *ids, repeated = (record.id for record in hands.records)
        assert len(set(ids)) == 4
        assert all(id is not None and id.startswith("17/") for id in ids)
        assert repeated == ids[0]


async def test_an_exchange_of_services_may_lead_to_inboxes_or_topics(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        own = await service.channel.declare_exchange(
            f"{bridge.prefix}.own", "topic", auto_delete=True
        )
        topics = await service.channel.get_exchange(service.names.topic)
        await topics.bind(own, "orders.*")
        hands = Hands(bus)
        await own.publish(aio_pika.Message(b"1"), "orders.room")
        await until(lambda: hands.records)
        assert (hands.records[0].target, hands.records[0].key) == ("topic", "orders.room")


async def test_each_bridge_prefers_other_queues(rabbit: RabbitServer) -> None:
    """The bridge that was there first got every queue."""
    bridge = amqp_bridge(rabbit, queues=4)
    async with bus_on(bridge) as one, bus_on(bridge, set_up=False) as other:
        for bus in (one, other):
            Hands(bus)
            await bus.ready()
        lanes = [f"{bridge.group}.{target}.{n}" for target in ("inbox", "topic") for n in range(4)]
        await until(lambda: all(len(rabbit.priorities(lane)) == 2 for lane in lanes))
        pairs = [rabbit.priorities(lane) for lane in lanes]
        assert sorted(each for pair in pairs for each in pair) == sorted([*range(1, 9)] * 2)
        assert any(mine != its for mine, its in pairs)  # the same by chance: once in 40,320 runs


async def test_a_queue_that_does_not_answer_is_asked_again(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 3.10 did not answer after it had been killed, and the bridge waited for ever."""
    consume, asked = aiormq.Channel.basic_consume, 0

    async def consume_later(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return await consume(*args, **options)

    monkeypatch.setattr(consuming, "SUBSCRIBE_TIMEOUT", 0.5)
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        monkeypatch.setattr(aiormq.Channel, "basic_consume", consume_later)
        await service.produce("orders.ann", ["hello"])
        hands = Hands(bus)
        await until(lambda: hands.payloads == ["hello"])
        assert asked > 1


async def test_room_bounds_what_is_handed_out(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.produce("orders.ann", [f"ann {n}" for n in range(40)])
        hands = Hands(bus, acks=False, room=20)
        await until(lambda: len(hands.records) >= 10)
        await asyncio.sleep(0.1)
        assert len(hands.records) == 10  # the other half is for topics
        for record in hands.records[1:]:  # all but the first, which takes long
            bus.ack(record)
        await until(lambda: len(hands.records) == 19)
        hands.ack_all()
        await until(lambda: len(hands.records) == 40)
        assert in_order(hands.payloads) == {"ann": list(range(40))}


async def test_room_bounds_the_bytes_that_are_handed_out(rabbit: RabbitServer) -> None:
    """512 records were handed out, of whatever size: more than the machine's memory, if large."""
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.produce("orders.ann", ["x" * 1_000_000] * 6)
        hands = Hands(bus, acks=False, room_bytes=8_000_000)  # half of it for topics
        await until(lambda: len(hands.records) >= 4)
        await asyncio.sleep(0.1)
        assert sum(len(record.payload) for record in hands.records) == 4_000_000
        hands.ack_all()
        await until(lambda: len(hands.records) == 6)


async def test_what_is_acknowledged_before_closing_does_not_come_again(
    rabbit: RabbitServer,
) -> None:
    bridge = amqp_bridge(rabbit)
    async with service_side(rabbit, bridge) as service:
        async with bus_on(bridge) as bus:
            await service.produce("orders.ann", [f"ann {n}" for n in range(100)])
            hands = Hands(bus, acks=False)
            await until(lambda: len(hands.records) == 100)
            for record in hands.records[:30] + hands.records[60:90:2]:
                bus.ack(record)
        assert set(hands.lost) == {f"{bridge.group}.inbox.0", f"{bridge.group}.topic.0"}
        async with bus_on(bridge) as bus:
            again = Hands(bus)
            await until(lambda: len(again.records) == 55)
            await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)
        expected = [n for n in range(100) if n >= 30 and n not in range(60, 90, 2)]
        assert again.payloads == [f"ann {n}" for n in expected]


async def test_a_record_is_set_aside_with_its_reason(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus, acks=False)
        await service.produce(
            "nonsense", ["1"], headers={"a": "b", "n": 1}, message_id="m1", correlation_id="c"
        )
        await until(lambda: hands.records)
        await bus.set_aside(hands.records[0], "key 'nonsense' is not <service>.<user>")
        bus.ack(hands.records[0])
        dead = await service.dead()
        assert (dead.body, dead.routing_key) == (b"1", "nonsense")
        assert (dead.message_id, dead.correlation_id) == ("m1", "c")
        assert dead.headers["Ws-Dead-Reason"] == "key 'nonsense' is not <service>.<user>"
        assert f"exchange '{bridge.prefix}.recv'" in str(dead.headers["Ws-Dead-Place"])
        assert (dead.headers["a"], dead.headers["n"]) == ("b", 1)
        await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)


async def test_records_that_look_alike_are_each_set_aside(rabbit: RabbitServer) -> None:
    """The second was acknowledged on the strength of the first; or both had one's place."""
    bridge = amqp_bridge(rabbit)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus, acks=False)
        for target in ("inbox", "topic"):
            await service.produce("orders.ann", ["1"], target=target, message_id="17")
        await until(lambda: len(hands.records) == 2)
        other = AmqpBus(bridge)
        tasks = [asyncio.create_task(other.set_aside(each, "why")) for each in hands.records]
        await asyncio.sleep(0)  # both wait for the connection
        await other.open()
        await asyncio.gather(*tasks)
        await other.close()
        await asyncio.gather(*(bus.set_aside(each, "why") for each in hands.records))
        places = [(await service.dead()).headers["Ws-Dead-Place"] for _ in range(4)]
        assert sorted(map(str, places)) == sorted(each.place for each in hands.records * 2)
        assert errors == []


async def test_a_record_that_cannot_be_set_aside_fails_no_message_of_clients(
    rabbit: RabbitServer,
) -> None:
    """RabbitMQ closes the channel, with all that is on its way there."""
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.listen()
        hands = Hands(bus, acks=False)
        await service.produce("nonsense", ["1"])
        await until(lambda: hands.records)
        await service.channel.exchange_delete(service.names.dead)
        is_over = False

        async def produce(user: str) -> int:
            number = 0
            while not is_over:
                number += 1
                await bus.produce("orders", user, b"1", {"Ws-Id": f"{user} {number}"})
            return number

        async with asyncio.TaskGroup() as group:
            producing = [group.create_task(produce(user)) for user in ("ann", "bob", "cid")]
            for _ in range(5):
                with pytest.raises(BusMisconfigured, match="setup_bridges"):
                    await bus.set_aside(hands.records[0], "why")
                await asyncio.sleep(0.02)
            is_over = True
        assert min(task.result() for task in producing) > 1


async def test_a_record_that_rabbitmq_no_longer_takes_is_set_aside_without_its_payload(
    rabbit: RabbitServer,
) -> None:
    """RabbitMQ 4.0 has lowered max_message_size. The record was tried for ever."""
    bridge = amqp_bridge(rabbit)
    async with service_side(rabbit, bridge) as service:
        await AmqpBus(bridge).set_up()
        await service.produce("nonsense", ["x" * 1001], message_id="m1")
        rabbit.eval("application:set_env(rabbit, max_message_size, 1000)")
        try:
            async with bus_on(bridge) as bus:
                hands = Hands(bus)
                await until(lambda: hands.records)
                for _ in range(2):  # before RabbitMQ has said how much it takes, and after
                    await bus.set_aside(hands.records[0], "why")
                    dead = await service.dead()
                    assert dead.body.startswith(b"payload of 1001 bytes left out")
                    assert (dead.message_id, dead.headers["Ws-Dead-Reason"]) == ("m1", "why")
        finally:
            rabbit.eval("application:set_env(rabbit, max_message_size, 134217728)")


async def test_what_rabbitmq_removes_by_itself_is_set_aside(rabbit: RabbitServer) -> None:
    """By a time to live, for example, which a policy or the service itself may set."""
    bridge = amqp_bridge(rabbit)
    await AmqpBus(bridge).set_up()
    async with service_side(rabbit, bridge) as service:
        await service.produce("orders.ann", ["1"], expiration=0.001)
        await until(lambda: rabbit.waiting(f"{bridge.prefix}.dead") == 1)
        dead = await service.dead()
        assert (dead.body, dead.routing_key) == (b"1", "orders.ann")
        assert "'reason': 'expired'" in str(dead.headers["x-death"])


UNDECODABLE: dict[str, tuple[str, dict[str, Any], bytes, bytes]] = {
    "routing key": ("orders.ZZ", {}, b"ZZ", b"\xff\xfe"),
    "message id": ("orders.ann", {"message_id": "ZZ"}, b"ZZ", b"\xff\xfe"),
    "name of a header": ("orders.ann", {"headers": {"ZZ": "1"}}, b"ZZ", b"\xff\xfe"),
    "value of a header": ("orders.ann", {"headers": {"a": "ZZ"}}, b"ZZ", b"\xff\xfe"),
    "timestamp in nanoseconds": (
        "orders.ann",
        {"timestamp": dt.datetime.fromtimestamp(1_800_000_000, dt.UTC)},
        struct.pack(">Q", 1_800_000_000),
        struct.pack(">Q", 1_800_000_000 * 10**9),
    ),
}


async def test_a_message_that_cannot_be_decoded_stops_nothing(rabbit: RabbitServer) -> None:
    """aio-pika gave up each connection on which RabbitMQ delivered it, for ever."""
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        pika = await service.connection.channel(publisher_confirms=False)
        channel: Any = await pika.get_underlay_channel()
        for what, (key, properties, before, after) in UNDECODABLE.items():
            frames = message(channel.number, service.names.recv, key, properties, what)
            assert before in frames
            frames = frames.replace(before, after)
            await channel.write_queue.put(ChannelFrame(payload=frames, should_close=False))
        await channel.basic_publish(b"last", exchange=service.names.recv, routing_key="orders.ann")
        hands = Hands(bus, acks=False)
        await until(lambda: "last" in hands.payloads)
        found = {record.payload.decode(): record for record in hands.records}
        assert list(found) == [*UNDECODABLE, "last"]
        assert found["routing key"].key == "orders.\\xff\\xfe"  # no inbox: it is set aside
        assert found["name of a header"].key == "orders.ann (its headers cannot be decoded)"
        for what in ("message id", "value of a header", "timestamp in nanoseconds"):
            assert found[what].key == "orders.ann"
        await bus.set_aside(found["routing key"], "why")
        assert (await service.dead()).headers["Ws-Dead-Reason"] == "why"


def message(number: int, exchange: str, key: str, properties: dict[str, Any], text: str) -> bytes:
    """Return the frames that publish a message on the channel with a *number*."""
    body = text.encode()
    frames: list[Any] = [
        Basic.Publish(exchange=exchange, routing_key=key),
        ContentHeader(body_size=len(body), properties=Basic.Properties(**properties)),
        ContentBody(body),
    ]
    return ChannelFrame.marshall(channel_number=number, frames=frames).payload


async def test_a_queue_that_is_deleted_is_missed(
    rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus)
        await bus.ready()
        await service.channel.queue_delete(f"{bridge.group}.inbox.0")
        await until(lambda: hands.lost and not bus.connected)
        with pytest.raises(BusMisconfigured, match="setup_bridges"):
            await bus.ready()
        await bus.set_up()
        await until(lambda: bus.connected)
        await service.produce("orders.ann", ["again"])
        await until(lambda: hands.payloads == ["again"])


# -- who may connect -----------------------------------------------------------------------------

PASSWORD = "p@ss/w?rd#%41 ü"


async def test_a_virtual_host_and_a_user_with_just_enough_rights(rabbit: RabbitServer) -> None:
    rabbit.add_vhost("staging/ü")
    bridge = amqp_bridge(rabbit, url=rabbit.url(vhost="staging/ü"))
    await AmqpBus(bridge).set_up()
    rabbit.add_user(
        "ben",
        PASSWORD,
        "staging/ü",
        configure="^$",
        write=rf"^{bridge.prefix}\.(send|dead)$",
        read=rf"^{bridge.prefix}\.bridge\.warehouse\.",
    )
    own = amqp_bridge(
        rabbit, prefix=bridge.prefix, url=rabbit.url("ben", PASSWORD, vhost="staging/ü")
    )
    async with bus_on(own, set_up=False) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus)
        await bus.ready()
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await service.produce("orders.ann", ["2"])
        await until(lambda: service.received and hands.records)
        await bus.set_aside(hands.records[0], "why")
        with pytest.raises(BusMisconfigured, match=r"access to .* refused for user 'ben'"):
            await bus.set_up()


async def test_a_user_who_may_create_but_not_bind_is_told(rabbit: RabbitServer) -> None:
    """`setup_bridges` ended with aiormq's traceback."""
    rabbit.add_vhost("binding")
    bridge = amqp_bridge(rabbit, url=rabbit.url("dan", PASSWORD, vhost="binding"))
    name = rf"^{bridge.prefix}\."
    rabbit.add_user("dan", PASSWORD, "binding", configure=name, write=name, read="^$")
    with pytest.raises(BusMisconfigured, match=r"access to .* refused for user 'dan'"):
        await AmqpBus(bridge).set_up()


async def test_who_is_refused_is_told_why_and_no_password_is_shown(
    rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rabbit.add_user("cas", PASSWORD)
    wrong = PASSWORD + "!"
    where = f"127.0.0.1:{rabbit.port}"
    reasons = {
        rabbit.url("cas", wrong): f"RabbitMQ at {where} refuses the login of user 'cas'",
        rabbit.url("cas", PASSWORD, vhost="none"): "refuses virtual host 'none'",
    }
    rabbit.add_vhost("closed")
    reasons[rabbit.url("cas", PASSWORD, vhost="closed")] = "refuses virtual host 'closed'"
    for url, reason in reasons.items():
        bridge = amqp_bridge(rabbit, url=url)
        async with bus_on(bridge, set_up=False) as bus:
            for attempt in (bus.ready(), bus.set_up(), bus.produce("orders", "ann", b"", {})):
                with pytest.raises(BusMisconfigured, match=reason) as refused:
                    await attempt
                shown = "".join(map(repr, (refused.value, bridge, bus)))
                assert PASSWORD not in shown
        assert reason in caplog.text
    for text in (PASSWORD, wrong, "p%40ss", rabbit.url("cas", PASSWORD)):
        assert text not in caplog.text


async def test_no_payload_is_logged_and_an_outage_once(
    rabbit: RabbitServer, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """aiormq logged all that it sent if the root's level was DEBUG, and each try as an error."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "wsgateway.bridges")
    bridge = amqp_bridge(rabbit)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        await bus.produce("orders", "ann", b"MARKED-PAYLOAD", {"Ws-Id": "1"})
        await until(lambda: service.received)
    assert "MARKED-PAYLOAD" not in caplog.text
    away = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    caplog.clear()
    async with bus_on(away, set_up=False):
        await until(lambda: len(caplog.records) >= 3)
    lines = [(record.name, record.levelname) for record in caplog.records]
    again = ("wsgateway.bridges", "DEBUG")
    assert [each for each in lines if each != again] == [("wsgateway.bridges", "WARNING")]


async def test_tls_with_an_authority_and_a_client_certificate(rabbit: RabbitServer) -> None:
    cert, key = rabbit.client_certificate()
    options = {"url": rabbit.url(tls=True), "ca": rabbit.ca, "cert": cert, "key": key}
    bridge = amqp_bridge(rabbit, **options)
    async with bus_on(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await until(lambda: service.received)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "self-signed certificate in certificate chain; set 'ca' to"),
        ({"ca": "/nowhere/ca.pem"}, "cannot read the certificates of bridge 'warehouse'"),
        ({"port": "plain"}, "is this its port for TLS?"),
    ],
)
async def test_what_is_wrong_with_tls_is_said(
    rabbit: RabbitServer, change: dict[str, str], reason: str
) -> None:
    change = dict(change)
    url = rabbit.url(tls=True)
    if change.pop("port", None):
        url = url.replace(str(rabbit.tls_port), str(rabbit.port))
        change["ca"] = rabbit.ca
    async with bus_on(amqp_bridge(rabbit, url=url, **change), set_up=False) as bus:
        with pytest.raises(BusMisconfigured) as refused:
            await bus.ready()
        assert reason in str(refused.value)


async def test_a_server_that_is_away_costs_no_caller_more_than_its_patience(
    free_port: int, rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 0.2)
    bridge = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    begun = time.monotonic()
    async with bus_on(bridge, set_up=False) as bus:
        for attempt in (bus.produce("orders", "ann", b"", {}), bus.set_up()):
            with pytest.raises(BusUnavailable, match=f"RabbitMQ at 127.0.0.1:{free_port}"):
                await attempt
        assert not bus.connected
    assert time.monotonic() - begun < 8


async def test_closing_ends_a_wait_for_a_server_that_is_away(
    free_port: int, rabbit: RabbitServer
) -> None:
    bridge = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    async with bus_on(bridge, set_up=False) as bus:
        waiting = asyncio.create_task(bus.ready())
        with pytest.raises(BusUnavailable, match="no connection"):
            await bus.produce("orders", "ann", b"", {})
        assert not waiting.done()
        await bus.close()
        with pytest.raises(BusUnavailable, match="closing"):
            await waiting


async def test_another_server_of_the_cluster_is_tried(free_port: int, rabbit: RabbitServer) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{free_port},127.0.0.1:{rabbit.port}"
    async with bus_on(amqp_bridge(rabbit, url=url)) as bus:
        await until(lambda: bus.connected)
