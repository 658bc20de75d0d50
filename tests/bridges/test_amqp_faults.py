"""RabbitMQ fails, or a bridge does: each message counted, at least once and in order."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiormq
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.bridges.amqp_side import Hands, ServiceSide, amqp_bridge, first_of_each, service_side
from tests.bridges.counting import Came, in_order
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.support import Process, running, site_env, until
from wsgateway.bridges.amqp import AmqpBus, consuming, publishing
from wsgateway.bridges.bus import Bus
from wsgateway.bridges.headers import ID_HEADER
from wsgateway.exceptions import BusError, BusUnavailable

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ

USERS = [f"u{number}" for number in range(8)]

CONSUMER = """
import asyncio, sys

import django

django.setup()

from wsgateway.bridges.amqp import AmqpBus
from wsgateway.bridges.config import bridge_of

async def main(url, prefix):
    bus = AmqpBus(bridge_of("warehouse", {"url": url, "services": ["orders"]}, prefix))

    def on_record(record):
        print(record.payload.decode(), flush=True)
        if record.payload[-1:] != b"7":  # so that later ones are acknowledged before it
            bus.ack(record)

    await bus.open()
    bus.consume(on_record, lambda lane: None, 64, 2**26)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


class Sender:
    """Produces numbered messages of several users as a bridge does: until each is confirmed.

    Args:
        bus: The bus.
        least: Messages of each user. There are more while *is_enough* is not set.
    """

    def __init__(self, bus: Bus, least: int) -> None:
        self._bus, self._least = bus, least
        self.is_enough = False
        self.sent = dict.fromkeys(USERS, 0)  # confirmed
        self.failures: list[BusError] = []

    @property
    def confirmed(self) -> int:
        return sum(self.sent.values())

    async def run(self) -> None:
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for user in USERS:
                group.create_task(self._send(user))

    async def _send(self, user: str) -> None:
        while self.sent[user] < self._least or not self.is_enough:
            await self._confirm(user, f"{user} {self.sent[user]}")
            self.sent[user] += 1

    async def _confirm(self, user: str, text: str) -> None:
        while True:
            try:
                return await self._bus.produce("orders", user, text.encode(), {"Ws-Id": text})
            except BusError as exc:  # it may be stored all the same
                self.failures.append(exc)
                await asyncio.sleep(0.02)


def as_came(message: AbstractIncomingMessage) -> Came:
    user, number = message.body.decode().split()
    return user, int(number), str(message.headers[ID_HEADER])


async def produce_as_a_service(service: ServiceSide, count: int) -> None:
    for number in range(count):
        for user in USERS:
            await service.produce(f"orders.{user}", [f"{user} {number}"])


async def carry_both_ways(
    rabbit: RabbitServer, fail: Callable[[Sender], Awaitable[None]], *, times: int = 1
) -> None:
    """Let RabbitMQ *fail* while messages go both ways, and count these."""
    count = 40
    bridge = amqp_bridge(rabbit, queues=2)
    async with opened(bridge) as bus:
        async with service_side(rabbit, bridge) as service:
            queue = await service.listen()
            await produce_as_a_service(service, count)
        rabbit.remember_queues()
        hands, sender = Hands(bus), Sender(bus, count)
        sending = asyncio.create_task(sender.run())
        for _ in range(times):
            before = sender.confirmed
            await until(lambda before=before: sender.confirmed > before + 50)
            await fail(sender)
        sender.is_enough = True
        await sending
        await until(lambda: len(set(hands.payloads)) == len(USERS) * count, 60)
        assert first_of_each(hands.payloads) == {user: list(range(count)) for user in USERS}
        async with service_side(rabbit, bridge) as service:
            reading = await service.channel.get_queue(queue)
            await reading.consume(service.on_message)
            await until(lambda: rabbit.waiting(queue) == 0)
            # Each failure may be about a message that is stored all the same
            received = in_order(map(as_came, service.received), repeats=len(sender.failures))
            assert received == {user: list(range(sent)) for user, sent in sender.sent.items()}
        for lane in ("inbox.0", "inbox.1"):
            await until(lambda lane=lane: rabbit.waiting(f"{bridge.group}.{lane}") == 0)


async def test_rabbitmq_is_killed_and_started_again(rabbit: RabbitServer) -> None:
    async def fail(sender: Sender) -> None:
        rabbit.kill()
        await asyncio.to_thread(rabbit.start)

    await carry_both_ways(rabbit, fail)


async def test_connections_break_again_and_again(rabbit: RabbitServer) -> None:
    async def fail(sender: Sender) -> None:
        before = len(sender.failures)
        rabbit.drop_connections()
        await until(lambda: len(sender.failures) > before)

    await carry_both_ways(rabbit, fail, times=3)


async def test_rabbitmq_is_stopped_for_a_while(rabbit: RabbitServer) -> None:
    async def fail(sender: Sender) -> None:
        await asyncio.to_thread(rabbit.pause)
        await until(lambda: len(sender.failures) > 4 * len(USERS))
        await asyncio.to_thread(rabbit.resume)
        where = f"cannot reach RabbitMQ at 127.0.0.1:{rabbit.port}: "
        assert any(where in str(each) for each in sender.failures)

    await carry_both_ways(rabbit, fail)


async def test_an_alarm_holds_what_is_sent_and_not_what_is_received(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ stops reading from who publishes. What is tried again then must not pile up."""
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 0.1)
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        for number in range(100):
            await service.produce("orders.ann", [f"ann {number}"])
        rabbit.alarm(True)
        try:
            sender = Sender(bus, 3)
            sender.is_enough = True
            sending = asyncio.create_task(sender.run())
            hands = Hands(bus)
            await until(lambda: len(hands.records) == 100)
            await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)
            # Each has been tried several times
            await until(lambda: len(sender.failures) > 5 * len(USERS))
            assert {type(each) for each in sender.failures} == {BusUnavailable}
            assert sender.confirmed <= len(USERS)  # what was first on the way
            assert bus.connected
        finally:
            rabbit.alarm(False)
        await sending
        await until(lambda: len(service.received) >= 3 * len(USERS))
        assert sorted(m.body.decode() for m in service.received) == sorted(
            f"{user} {number}" for user in USERS for number in range(3)
        )


async def test_a_confirmation_between_two_tries_is_not_missed(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What RabbitMQ confirmed while its caller paused before the next try was published again."""
    publish, may_go = aiormq.Channel.basic_publish, asyncio.Event()

    async def publish_late(*args: Any, **options: Any) -> Any:
        await may_go.wait()
        return await publish(*args, **options)

    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        monkeypatch.setattr(aiormq.Channel, "basic_publish", publish_late)
        with monkeypatch.context() as impatient:
            impatient.setattr(publishing, "CONFIRM_TIMEOUT", 0.05)
            with pytest.raises(BusUnavailable):
                await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        may_go.set()
        await until(lambda: service.received)
        await asyncio.sleep(0.1)  # the confirmation is on its way, too
        for id in ("1", "2"):
            await bus.produce("orders", "ann", id.encode(), {"Ws-Id": id})
        await until(lambda: len(service.received) > 1)
        assert [message.body for message in service.received] == [b"1", b"2"]


async def test_closing_takes_no_longer_while_an_alarm_is_on(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 0.1)
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.listen()
        Hands(bus)
        await bus.ready()
        rabbit.alarm(True)
        try:
            with pytest.raises(BusUnavailable):  # noqa: PT012
                for number in range(10):  # the alarm may let the first ones pass
                    await bus.produce("orders", "ann", b"", {"Ws-Id": str(number)})
            async with asyncio.timeout(5.0):
                await bus.close()
        finally:
            rabbit.alarm(False)


async def test_queue_that_does_not_answer_is_named(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has lost the majority of its nodes. Once it is back, everything comes."""
    monkeypatch.setattr(consuming, "SUBSCRIBE_TIMEOUT", 1.0)
    bridge = amqp_bridge(rabbit, queues=2)
    queue = f"{bridge.group}.inbox.1"
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await produce_as_a_service(service, 10)
        with rabbit.suspended(queue):
            hands = Hands(bus)
            await until(lambda: f"read queue {queue!r} within 1 s" in bus.trouble)
        await until(lambda: len({*hands.payloads}) == len(USERS) * 10, 60)
        assert first_of_each(hands.payloads) == {user: list(range(10)) for user in USERS}


async def test_another_bridge_goes_on_in_order_when_one_is_killed(
    rabbit: RabbitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From RabbitMQ 4.0 on, one with a higher priority would take over
    monkeypatch.setattr(random, "sample", lambda _found, count: [0] * count)
    bridge = amqp_bridge(rabbit)
    await AmqpBus(bridge).set_up()
    command = [sys.executable, "-c", CONSUMER, rabbit.url(), bridge.prefix]
    environment = site_env(DJANGO_SETTINGS_MODULE="tests.settings")
    killed = Process(command, tmp_path / "log", environment)
    with running(killed):
        async with service_side(rabbit, bridge) as service:
            killed.spawn()
            await service.produce("orders.u0", ["u0 0"])
            await until(lambda: "u0 0" in killed.output)
            async with opened(bridge) as bus:
                hands = Hands(bus)
                await bus.ready()
                producing = asyncio.create_task(produce_as_a_service(service, 30))
                await until(lambda: killed.output.count("\n") > 30)
                assert hands.records == []  # it stands by
                killed.kill()
                await producing
                await until(lambda: len(hands.records) > 0)
                whole = {f"{user} {number}" for user in USERS for number in range(30)}
                seen = killed.output.splitlines()
                await until(lambda: whole <= {*seen, *hands.payloads})
                found = first_of_each([*seen, *hands.payloads])
                assert found == {user: list(range(30)) for user in USERS}
                await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)


@pytest.mark.parametrize(
    "count", [1_500, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
async def test_what_waits_for_a_stopped_side_costs_no_memory(
    rabbit: RabbitServer, count: int
) -> None:
    """Records wait in RabbitMQ until the bridge has room, and then come in order."""
    bridge = amqp_bridge(rabbit)
    await AmqpBus(bridge).set_up()
    async with service_side(rabbit, bridge) as service:
        exchange = await service.channel.get_exchange(service.names.recv, ensure=False)
        pika = await service.connection.channel(publisher_confirms=False)
        channel = await pika.get_underlay_channel()
        for number in range(count):
            user = USERS[number % len(USERS)]
            await channel.basic_publish(
                f"{user} {number}".encode(), exchange=exchange.name, routing_key=f"orders.{user}"
            )
    await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == count, 300)
    async with opened(bridge) as bus:
        gc.collect()
        tracemalloc.start()
        try:
            hands = Hands(bus, acks=False)  # NATS is away: nothing is acknowledged
            await until(lambda: len(hands.records) == 256)
            await asyncio.sleep(0.2)
            assert len(hands.records) == 256
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        hands.ack_all()
        await until(lambda: len(hands.records) == count, 300)
        found = first_of_each(hands.payloads)
        assert found == {user: list(range(n, count, 8)) for n, user in enumerate(USERS)}
        await until(lambda: rabbit.waiting(f"{bridge.group}.inbox.0") == 0)
