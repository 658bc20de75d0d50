"""The consumer that a service's workers share: nobody changes it under the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.workers import no_services, offer, serving
from tests.support import until
from wsgateway import Message, declared
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.consumers import set_up_consumers
from wsgateway.management.commands.setup_streams import set_up
from wsgateway.services import registry
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")


async def config(broker: NatsBroker) -> dict[str, Any]:
    stream = await broker.services.queue("orders")
    info = await broker.jetstream.api(f"CONSUMER.INFO.{stream}.service-orders")
    return dict(info["config"])


async def test_worker_with_another_ack_wait_uses_what_the_consumer_has(
    broker: NatsBroker, nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It changed the consumer: the first worker's signs of life came too late from then on, and
    its messages were handled by both at once.
    """
    active: set[str] = set()
    calls: list[str] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        assert message.user_name not in active, "one user's messages at the same time"
        active.add(message.user_name)
        calls.append(message.text)
        await asyncio.sleep(2.0)
        active.discard(message.user_name)

    nats_settings.WSGATEWAY_ACK_WAIT = 30.0
    async with serving(broker) as first:
        await offer(broker, "x")
        await until(lambda: calls == ["x"])
        nats_settings.WSGATEWAY_ACK_WAIT = 0.5
        async with serving(broker) as second:
            await until(lambda: first.counts["done"] == 1)
            assert second.counts.total() == 0
            assert second.ack_wait == 30.0
    assert calls == ["x"]
    assert (await config(broker))["ack_wait"] == 30_000_000_000
    assert "redelivers messages after 30 s without a heartbeat" in caplog.text
    assert "WSGATEWAY_ACK_WAIT (0.5 s)" in caplog.text


async def test_heartbeat_keeps_to_the_consumers_ack_wait_from_the_start(
    broker: NatsBroker, nats_settings: Any
) -> None:
    """The first one came when the worker's own, longer ACK_WAIT said; by then another worker had
    the message, too.
    """
    calls: list[str] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        calls.append(message.text)
        await asyncio.sleep(3.0)

    nats_settings.WSGATEWAY_ACK_WAIT = 1.2
    async with serving(broker):
        pass
    nats_settings.WSGATEWAY_ACK_WAIT = 30.0
    async with serving(broker) as first, serving(broker) as second:
        await offer(broker, "x")
        await until(lambda: first.counts["done"] + second.counts["done"] == 1)
    assert calls == ["x"]


async def test_setup_streams_changes_ack_wait(broker: NatsBroker, nats_settings: Any) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    async with serving(broker):
        assert await set_up_consumers(broker, 30.0) == []
        assert await set_up_consumers(broker, 60.0) == ["service-orders: changed ack_wait to 60 s"]
        (line,) = await set_up_consumers(broker, 10.0)
        assert "ack_wait stays 60 s; to lower it to 10 s, stop the workers of 'orders'" in line
    assert (await config(broker))["ack_wait"] == 60_000_000_000
    nats_settings.WSGATEWAY_ACK_WAIT = 10.0
    lines = await asyncio.to_thread(lambda: asyncio.run(set_up()))
    assert "service-orders: changed ack_wait to 10 s" in lines
    async with serving(broker) as worker:
        assert worker.ack_wait == 10.0


async def test_consumer_that_would_lose_messages_is_not_used(
    broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """With a limit of its own the server stops delivering without a word."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    async with serving(broker):
        real = await config(broker)
    stream = await broker.services.queue("orders")
    await broker.jetstream.api(f"CONSUMER.DELETE.{stream}.service-orders")
    name = f"CONSUMER.CREATE.{stream}.service-orders.{real['filter_subject']}"
    request = {"stream_name": stream, "config": {**real, "max_deliver": 5}}
    await broker.jetstream.api(name, request)
    worker = Worker(declared.registered["orders"], broker)
    worker.start()
    await until(lambda: "service orders waits" in caplog.text)
    await worker.stop(1.0)
    assert "has max_deliver 5, workers need -1; stop its workers and delete it" in caplog.text


async def test_consumer_deleted_under_a_worker_is_made_again(broker: NatsBroker) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    async with serving(broker) as worker:
        await offer(broker, "1")
        await until(lambda: worker.counts["done"] == 1)
        stream = await broker.services.queue("orders")
        await broker.jetstream.api(f"CONSUMER.DELETE.{stream}.service-orders")
        await offer(broker, "2")
        await until(lambda: worker.counts["done"] == 2, 20)


async def test_worker_that_stops_gives_back_also_what_is_on_its_way(broker: NatsBroker) -> None:
    """What the server had sent, but the worker had not read, came again after ACK_WAIT only."""
    done: list[str] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        done.append(message.user_name)

    for user in range(100):
        await offer(broker, "x", user=f"u{user}")
    for _ in range(5):
        async with serving(broker):
            await asyncio.sleep(0)  # the request for messages is written, and not answered yet
    async with serving(broker):
        await until(lambda: len(set(done)) == 100, 10)  # ACK_WAIT is 30 s
