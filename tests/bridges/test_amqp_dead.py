"""What cannot be delivered over RabbitMQ is set aside, once, with its reason."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import pytest

from tests.bridges.amqp_side import Hands, amqp_bridge, service_side
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.support import until
from wsgateway.bridges.amqp import AmqpBus
from wsgateway.exceptions import BusMisconfigured

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ


async def test_a_record_is_set_aside_with_its_reason(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
        assert dead.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert dead.headers["Ws-Dead-Reason"] == "key 'nonsense' is not <service>.<user>"
        assert f"exchange '{bridge.prefix}.recv'" in str(dead.headers["Ws-Dead-Place"])
        assert (dead.headers["a"], dead.headers["n"]) == ("b", 1)
        await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)


async def test_records_that_look_alike_are_each_set_aside(rabbit: RabbitServer) -> None:
    """The second was acknowledged on the strength of the first; or both had one's place."""
    bridge = amqp_bridge(rabbit)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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


async def test_a_record_that_rabbitmq_no_longer_takes_is_set_aside_in_parts(
    rabbit: RabbitServer,
) -> None:
    """RabbitMQ 4.0 has lowered max_message_size. The record was tried for ever; then, its payload
    was lost.
    """
    bridge = amqp_bridge(rabbit)
    async with service_side(rabbit, bridge) as service:
        await AmqpBus(bridge).set_up()
        payload = "".join(map(str, range(1000)))[:2500]
        await service.produce("nonsense", [payload], message_id="m1", headers={"a": "b"})
        with rabbit.taking_at_most(1000):
            async with opened(bridge) as bus:
                hands = Hands(bus)
                await until(lambda: hands.records)
                for _ in range(2):  # before RabbitMQ has said how much it takes, and after
                    said = await bus.set_aside(hands.records[0], "why")
                    assert said == "it is in 3 parts, because RabbitMQ takes 1000 bytes at most"
                    parts = [await service.dead() for _ in range(3)]
                    assert b"".join(each.body for each in parts) == payload.encode()
                    for number, each in enumerate(parts, 1):
                        assert each.headers["Ws-Dead-Part"] == f"{number}/3"
                        assert (each.message_id, each.headers["a"]) == ("m1", "b")
                        assert each.headers["Ws-Dead-Reason"] == "why"
                        assert each.headers["Ws-Dead-Place"] == hands.records[0].place


async def test_headers_that_do_not_fit_are_named_and_the_others_kept(
    rabbit: RabbitServer,
) -> None:
    """All of them were gone, and nothing said so."""
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus, acks=False)
        headers = {"large": "x" * 90_000, "larger": "y" * 20_000, "small": "z"}
        await service.produce("nonsense", ["1"], headers=headers)
        await until(lambda: hands.records)
        assert "some of its headers are lost" in await bus.set_aside(hands.records[0], "why")
        dead = await service.dead()
        assert dead.body == b"1"
        assert dead.headers["Ws-Dead-Cut"] == "headers"
        assert dead.headers["Ws-Dead-Reason"] == "why"
        assert [name for name in headers if name in dead.headers] == ["large", "small"]


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
