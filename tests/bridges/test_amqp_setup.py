"""What a bridge needs on RabbitMQ, what it creates there, and what it removes."""

from __future__ import annotations

import asyncio

import pytest

from tests.bridges.amqp_side import Hands, amqp_bridge, service_side
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.support import until
from wsgateway.bridges.amqp import AmqpBus
from wsgateway.exceptions import BusMisconfigured

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ


async def test_missing_things_are_named_and_set_up_creates_them(rabbit: RabbitServer) -> None:
    bridge = amqp_bridge(rabbit)
    async with opened(bridge, set_up=False) as bus:
        with pytest.raises(BusMisconfigured) as missing:
            await bus.ready()
        for name in ("send", "recv", "topic", "dead"):
            assert f"exchange '{bridge.prefix}.{name}'" in str(missing.value)
        assert f"queue '{bridge.group}.inbox.0'" in str(missing.value)
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
    async with opened(bridge) as bus:
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
    assert f"delete queue '{bridge.group}.inbox.0', or keep it" in str(refused.value)


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
        async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
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
        async with opened(one, set_up=False) as bus:  # somebody has forgotten to set up
            with pytest.raises(
                BusMisconfigured, match=r"nothing reads .*inbox\.1' while 'queues' of .* is 1"
            ):
                await bus.ready()
        lines = await AmqpBus(one).set_up()
        assert f"deleted queue '{one.group}.topic.2': no longer used" in lines
        kept = [line for line in lines if "run the bridge with 'queues': 3" in line]
        assert [f"'{one.group}.inbox.2' is no longer bound" in line for line in kept] == [True]
        # The line says what to do
        async with opened(three, set_up=False) as bus:
            with pytest.raises(BusMisconfigured):  # a queue of topics is gone
                await bus.ready()
        await AmqpBus(three).set_up()
        async with opened(three) as bus:
            hands = Hands(bus)
            await until(lambda: len(hands.records) == 30)
        await until(lambda: rabbit.waiting(f"{one.group}.inbox.2") == 0)
        lines = await AmqpBus(one).set_up()
        assert f"deleted queue '{one.group}.inbox.2': no longer used" in lines
