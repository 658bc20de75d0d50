"""Streams and buckets that are deleted while everything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.test import AsyncClient

from tests.faults.traffic import broker_at
from tests.integration.workers import no_services, serving
from tests.support import Gateway, until
from wsgateway import Message
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import registry

__all__ = ["no_services"]  # a fixture

ANN = Inbox("orders", "ann")


async def use(broker: NatsBroker, kind: str) -> None:
    """Do what needs the stream."""
    try:
        async with asyncio.timeout(1.0):
            if kind == "recv":
                await broker.inboxes.position()
            elif kind == "send":
                await broker.offer(ANN, Frame.of("x"), "x")
            elif kind == "dead":
                await broker.jetstream.publish(broker.subjects.dead(ANN), b"x")
            else:
                await broker.load_cursor(ANN, "phone")
    except (BrokerError, TimeoutError):
        pass


def name_of(broker: NatsBroker, kind: str) -> str:
    names = {"send": broker.subjects.queue("orders"), "cursors": broker.subjects.bucket("cursors")}
    return names.get(kind) or broker.subjects.stream(kind)


@pytest.mark.parametrize("kind", ["recv", "send", "dead", "cursors"])
async def test_stream_that_is_deleted_is_made_again(broker: NatsBroker, kind: str) -> None:
    """It was missing until the next connection, and `ready` said that all was well."""
    ready: list[bool] = []
    broker.on_ready(lambda: ready.append(True))
    name, epoch = name_of(broker, kind), broker.inboxes.epoch
    await broker.jetstream.api(f"STREAM.DELETE.{name}")
    await use(broker, kind)
    await until(lambda: ready, 10, "it is ready again")
    assert await broker.streams.info(name) is not None
    await broker.publish(ANN, b"x")
    await broker.offer(ANN, Frame.of("y"), "y")
    await broker.save_cursor(ANN, "phone", 1)
    assert (broker.inboxes.epoch != epoch) is (kind == "recv")


async def test_stream_that_nobody_uses_is_looked_at_now_and_then(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgateway.broker.nats.readiness.LOOK_EACH", 0.05)
    broker.jetstream.on_missing()  # begins the shorter wait
    name = broker.subjects.stream("dead")
    await broker.jetstream.api(f"STREAM.DELETE.{name}")
    async with asyncio.timeout(10):
        while await broker.streams.info(name) is None:
            await asyncio.sleep(0.02)


async def test_readyz_says_so_until_it_is_back(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.reset()
    broker = runtime.current().broker
    assert isinstance(broker, NatsBroker)
    await broker.open()
    await broker.wait_ready()
    client = AsyncClient()
    assert (await client.get("/readyz")).status_code == 200
    allowed, ensure = asyncio.Event(), broker.streams.ensure_all

    async def held_up() -> Any:
        await allowed.wait()
        return await ensure()

    monkeypatch.setattr(broker.streams, "ensure_all", held_up)
    await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.stream('recv')}")
    await use(broker, "recv")
    await until(lambda: not broker.ready, 10, "it is noticed")
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["not_ready"]) == (503, {"streams": "not set up yet"})
    allowed.set()
    await broker.wait_ready(10)
    assert (await client.get("/readyz")).status_code == 200
    await broker.close()
    runtime.reset()


@pytest.mark.parametrize("protocol", [None, "wsgateway.v1"])
async def test_sockets_get_on(
    gateway_factory: Callable[..., Gateway],
    nats_server: EmbeddedServer,
    prefix: str,
    protocol: str | None,
) -> None:
    gateway = gateway_factory(WSGATEWAY_SWEEP_INTERVAL="0.2")
    options: dict[str, Any] = {"subprotocols": [protocol]} if protocol else {}
    async with (
        gateway.connect("orders", "ann", **options) as socket,
        broker_at([nats_server.url], prefix) as broker,
    ):
        await broker.wait_ready()
        async with asyncio.timeout(20):  # a v1 socket is accepted before its streams are made
            while not await broker.service_exists("orders"):
                await asyncio.sleep(0.05)
        await broker.publish(ANN, b"before")
        async with asyncio.timeout(20):
            while "before" not in str(await socket.recv()):
                pass
        await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.stream('recv')}")
        await broker.publish(ANN, b"after")  # tried until the gateway has made the stream again
        async with asyncio.timeout(20):
            while "after" not in str(await socket.recv()):
                pass
    assert "Traceback" not in gateway.output


async def test_worker_gets_on(broker: NatsBroker) -> None:
    got: list[bytes] = []

    def take(job: Job) -> None:
        got.append(job.payload)
        queue.ack(job)

    queue = broker.work_queue("orders", take, lambda _: None, 1.0)
    queue.open(10)
    await broker.offer(ANN, Frame.of("before"), "1")
    await until(lambda: got == [b"before"])
    await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.queue('orders')}")

    async def stored() -> bool:
        try:
            await broker.offer(ANN, Frame.of("after"), "2")
        except BrokerError:
            return False
        return True

    async with asyncio.timeout(20):
        while not await stored():
            await asyncio.sleep(0.05)
    await until(lambda: got == [b"before", b"after"], 20)
    await queue.close()


@pytest.mark.usefixtures("no_services")
async def test_what_a_worker_holds_of_the_old_stream_keeps_nobody_waiting(
    broker: NatsBroker,
) -> None:
    """It waited for its turn in the new stream, which never came, and the new messages of its
    user behind it. One with the same sequence as a new message acknowledged that one.
    """
    calls: list[str] = []
    go_on = asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        calls.append(message.text)
        await go_on.wait()

    async def send(text: str) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await broker.offer(ANN, Frame.of(text), text)
                    return
                except BrokerError:
                    await asyncio.sleep(0.05)

    for text in ("old 1", "old 2", "old 3", "old 4"):
        await send(text)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 4)
        await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.queue('orders')}")
        for text in ("new 1", "new 2", "new 3"):
            await send(text)
        await until(lambda: worker.in_hand == 7, 20)
        go_on.set()
        await until(lambda: worker.counts["done"] == 4, 20)
        await until(lambda: worker.in_hand == 0)
    assert calls == ["old 1", "new 1", "new 2", "new 3"]
