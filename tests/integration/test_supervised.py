"""Tasks that live long: what they did not expect is logged, and they begin again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.layers import layers, receive
from tests.integration.workers import answers, no_services, offer, serving
from tests.support import until, wait_for
from wsgateway import Message, declared, publish, supervision
from wsgateway.broker import background, runtime
from wsgateway.broker.connection import Connection
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.messages import Receipt
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.channels import NatsChannelStore
from wsgateway.broker.nats.pull_consumer import PullConsumer
from wsgateway.broker.nats.work_queue import NatsWorkQueue
from wsgateway.events.runner import EventRunner
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.publish_queue import PublishQueue
from wsgateway.gateway.revocation import Revocations
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.frames import Frame
from wsgateway.services import registry
from wsgateway.services.runner import Runner
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    real, errors = getattr(owner, name), [KeyError("odd")]

    async def fail(self: Any, *args: Any) -> Any:
        if errors:
            raise errors.pop()
        return await real(self, *args)

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.usefixtures("no_services")
@pytest.mark.parametrize(("owner", "name"), [(NatsWorkQueue, "_create"), (PullConsumer, "_pull")])
async def test_worker_goes_on_pulling(
    broker: NatsBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
) -> None:
    """The service stood still, silently, until it was restarted."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(text="done")

    failing_once(monkeypatch, owner, name)
    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1, what="the message")
    assert len(await answers(broker)) == 1
    assert "task wsgateway-pull failed" in caplog.text


@pytest.mark.usefixtures("no_services")
async def test_worker_goes_on_with_its_heartbeat(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Without it, what takes longer than ACK_WAIT is handled twice."""
    settings.WSGATEWAY_ACK_WAIT = 2.1
    begun: list[int] = []
    beats: list[int] = []
    real = NatsWorkQueue.extend

    def extend(self: NatsWorkQueue, job: Any) -> None:
        beats.append(1)
        if len(beats) == 1:
            raise KeyError("odd")
        real(self, job)

    monkeypatch.setattr(NatsWorkQueue, "extend", extend)

    @registry.service("orders")
    async def handle(message: Message) -> None:
        begun.append(1)
        await asyncio.sleep(3.5)

    await offer(broker, "x")
    async with serving(broker) as worker:
        assert isinstance(worker, Worker)
        await until(lambda: worker.counts["done"] == 1, what="the message")
    assert begun == [1]
    assert len(beats) > 2


async def test_hub_goes_on(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    async def work(self: Revocations) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise KeyError("odd")
        if len(runs) == 2:
            raise asyncio.CancelledError  # of something that it waited for
        await asyncio.Event().wait()

    monkeypatch.setattr(Revocations, "run", work)
    hub = Hub(Connection(asyncio.get_running_loop(), broker))
    await hub.open()
    try:
        await until(lambda: len(runs) == 3, what="three runs")
    finally:
        await hub.close()
    assert caplog.text.count("failed and restarts") == 2


async def test_reader_of_a_normal_channel_goes_on(
    nats_server: EmbeddedServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who waited in receive() waited for ever."""
    failing_once(monkeypatch, NatsChannelStore, "_prepare")
    async with layers(nats_server.url, prefix) as make:
        await make().send("task", {"type": "x", "n": 1})
        assert (await receive(make(), "task"))["n"] == 1
    assert "task wsgateway-pull failed" in caplog.text


def test_background_loop_survives_an_exit_in_a_callback(
    nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread ended, and every later call from synchronous code waited for ever."""
    publish.send("orders", "ann", text="before")
    background = runtime.background()
    background.loop.call_soon_threadsafe(sys.exit, 3)
    wait_for(lambda: "the background loop stopped" in caplog.text, what="the log")
    assert publish.send("orders", "ann", text="after").offset
    assert runtime.background() is background


def test_background_loop_pauses_longer_each_time_it_stops(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began again at once: a loop that cannot run took a processor and filled the log."""
    pauses: list[float] = []
    monkeypatch.setattr(supervision, "BACKOFF", Backoff(jitter=0.0))
    monkeypatch.setattr(background, "native_sleep", pauses.append)
    settings.PUBSUB_BROKER = "memory"
    runtime.stop_background()  # its next loop has not failed yet
    loop = runtime.background().loop
    for number in range(1, 4):
        loop.call_soon_threadsafe(sys.exit, 3)
        wait_for(lambda number=number: len(pauses) == number, what="a pause")
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.usefixtures("no_services")
async def test_worker_whose_ready_file_cannot_be_made_ends_with_the_reason(
    nats_settings: Any, tmp_path: Path
) -> None:
    """It ran on, and a script that waited for the file waited for ever."""

    @registry.service("orders")
    async def handle(message: Message) -> None: ...

    def say(text: str, /, **fields: object) -> None: ...

    path = str(tmp_path / "no" / "file")
    runner = Runner(list(declared.registered.values()), None, path, say)
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(runner.run(), 20)


@pytest.mark.usefixtures("no_services")
@pytest.mark.parametrize("kind", ["worker", "events"])
async def test_ready_file_of_a_killed_process_is_removed_first(
    settings: Any, tmp_path: Path, kind: str
) -> None:
    """Kubernetes keeps /tmp when it restarts a container, so a new process looked ready."""

    @registry.service("orders")
    async def handle(message: Message) -> None: ...

    def say(text: str, /, **fields: object) -> None: ...

    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port()}"
    path = tmp_path / "ready"
    path.touch()
    services = list(declared.registered.values())
    runner: Runner | EventRunner = EventRunner(str(path), say)
    if kind == "worker":
        runner = Runner(services, None, str(path), say)
    running = asyncio.create_task(runner.run())
    await until(lambda: not path.exists(), 10, "the file is gone")
    runner.end()
    await asyncio.wait_for(running, 20)


async def test_publish_queue_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame behind the one that met a mistake waited for ever."""
    failing_once(monkeypatch, PublishQueue, "_again")
    loop = asyncio.get_running_loop()
    tried: list[str] = []

    def publish(_: object, msg_id: str, *__: object) -> asyncio.Future[Receipt]:
        tried.append(msg_id)
        if len(tried) == 1:
            raise BrokerUnavailable("lost")
        stored: asyncio.Future[Receipt] = loop.create_future()
        stored.set_result(Receipt(1, False))
        return stored

    queue = PublishQueue(publish, 4, 1_000_000, lambda: 30.0)
    assert await asyncio.wait_for(await queue.put(Frame.of("x"), "x"), 10) == (1, False)
