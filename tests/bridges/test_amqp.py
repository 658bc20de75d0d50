"""AmqpBus, with a RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aio_pika
import aiormq
import pytest

from tests.bridges.amqp_side import Hands, amqp_bridge, first_of_each, service_side
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.support import until
from wsgateway.bridges.amqp import consuming, publishing
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.supervision import share

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ


# -- client to service ---------------------------------------------------------------------------


async def test_a_service_gets_payload_headers_and_id(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        with pytest.raises(BusMisconfigured, match=r"no queue is bound .* 'orders\.\*'"):
            await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        assert bus.connected
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await until(lambda: len(service.received) == 1)


async def test_a_full_queue_is_tried_again(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        name = await service.listen(x_max_length=1, x_overflow="reject-publish")
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        with pytest.raises(BusUnavailable, match="is full"):
            await bus.produce("orders", "ann", b"2", {"Ws-Id": "2"})
        await (await service.channel.get_queue(name)).purge()
        await bus.produce("orders", "ann", b"2", {"Ws-Id": "2"})


async def test_a_missing_exchange_is_named(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.channel.exchange_delete(f"{bridge.prefix}.send")
        with pytest.raises(BusMisconfigured, match=r"no exchange .* setup_bridges"):
            await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})


async def test_a_routing_key_that_is_too_long_is_refused(rabbit: RabbitServer) -> None:
    async with opened(amqp_bridge(rabbit)) as bus:
        with pytest.raises(RecordRefused, match="routing key of 256 bytes exceeds"):
            await bus.produce("orders", "u" * 249, b"", {"Ws-Id": "1"})
        with pytest.raises(BusMisconfigured):  # one less can be sent
            await bus.produce("orders", "u" * 248, b"", {"Ws-Id": "1"})


async def test_a_message_that_is_too_large_is_refused_and_takes_no_other_along(
    rabbit: RabbitServer,
) -> None:
    """RabbitMQ closes the channel, so those beside it fail, too, and succeed when tried again."""
    bridge = amqp_bridge(rabbit)
    with rabbit.taking_at_most(1000):
        async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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


async def test_a_limit_that_was_raised_holds_from_the_next_connection_on(
    rabbit: RabbitServer,
) -> None:
    """The bridge had to be restarted, too."""
    bridge = amqp_bridge(rabbit)
    with rabbit.taking_at_most(1000):
        async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
            await service.read()

            async def is_refused() -> bool:
                while True:
                    try:
                        await bus.produce("orders", "ann", b"x" * 1001, {"Ws-Id": "1"})
                    except RecordRefused:
                        return True
                    except BusUnavailable:
                        await asyncio.sleep(0.01)
                    else:
                        return False

            assert await is_refused()
            rabbit.eval("application:set_env(rabbit, max_message_size, 1001)")
            assert await is_refused()
            rabbit.drop_connections()
            while await is_refused():
                await asyncio.sleep(0.01)


async def test_an_attempt_that_ends_before_it_begins_is_not_confirmed(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that was lost in the same turn of the loop cancelled the caller."""

    def share_and_lose(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = share(work, name)
        task.cancel()
        return task

    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.listen()
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "share", share_and_lose)
            with pytest.raises(BusUnavailable, match="channel to RabbitMQ was closed"):
                await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})


# -- service to client ---------------------------------------------------------------------------


async def test_records_come_with_key_headers_and_id(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
    async with opened(bridge) as one, opened(bridge, set_up=False) as other:
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
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        monkeypatch.setattr(aiormq.Channel, "basic_consume", consume_later)
        await service.produce("orders.ann", ["hello"])
        hands = Hands(bus)
        await until(lambda: hands.payloads == ["hello"])
        assert asked > 1


async def test_room_bounds_what_is_handed_out(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
        assert first_of_each(hands.payloads) == {"ann": list(range(40))}


async def test_room_bounds_the_bytes_that_are_handed_out(rabbit: RabbitServer) -> None:
    """512 records were handed out, of whatever size: more than the machine's memory, if large."""
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
        async with opened(bridge) as bus:
            await service.produce("orders.ann", [f"ann {n}" for n in range(100)])
            hands = Hands(bus, acks=False)
            await until(lambda: len(hands.records) == 100)
            for record in hands.records[:30] + hands.records[60:90:2]:
                bus.ack(record)
        assert set(hands.lost) == {f"{bridge.group}.inbox.0", f"{bridge.group}.topic.0"}
        async with opened(bridge) as bus:
            again = Hands(bus)
            await until(lambda: len(again.records) == 55)
            await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)
        expected = [n for n in range(100) if n >= 30 and n not in range(60, 90, 2)]
        assert again.payloads == [f"ann {n}" for n in expected]


async def test_a_queue_that_is_deleted_is_missed(
    rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
