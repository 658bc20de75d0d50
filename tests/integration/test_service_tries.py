"""Tries count handlers, not deliveries; suspects run alone; handlers that hang are noticed."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.workers import no_services, offer, serving
from tests.support import until
from wsgateway import Message, RetryPolicy, declared
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.work_queue import NatsWorkQueue
from wsgateway.broker.work import History, Job, WorkQueue
from wsgateway.exceptions import BrokerClosed, BrokerUnavailable
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import deadletters, registry
from wsgateway.services import worker as worker_module
from wsgateway.services.message import SyncMessage
from wsgateway.services.running import Run, Running
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")


async def hand_back(broker: NatsBroker, times: int, messages: int = 1) -> None:
    """Take what waits, and give it back unstarted, until each was delivered *times* times."""
    last: dict[int, Job] = {}

    def on_job(job: Job) -> None:
        last[job.sequence] = job
        if job.deliveries < times:
            queue.give_back(job, 0.0)
        queue.add_room(1)

    queue = broker.work_queue("orders", on_job, lambda _: None, 30.0)
    queue.open(100)
    await until(
        lambda: len(last) == messages and all(job.deliveries >= times for job in last.values())
    )
    await queue.close()
    for job in last.values():
        queue.give_back(job, 0.0)


async def letters(broker: NatsBroker) -> list[deadletters.DeadLetter]:
    return [letter async for letter in deadletters.letters(broker)]


async def history(broker: NatsBroker) -> int:
    """Return how many messages the bucket of tries holds."""
    info = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.bucket('tries')}")
    return int(info["state"]["messages"])


async def test_message_that_succeeds_at_once_costs_nothing_more(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*args: object) -> None:
        raise AssertionError

    for name in ("history", "note", "forget"):
        monkeypatch.setattr(NatsWorkQueue, name, never)

    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    for number in range(50):
        await offer(broker, str(number), user=f"u{number % 5}")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 50)


async def test_deliveries_without_a_handler_use_no_try(
    broker: NatsBroker, nats_settings: Any
) -> None:
    """A message that restarts of workers had handed back was set aside at its first failure."""
    nats_settings.WSGATEWAY_MAX_DELIVER = 3
    calls: list[tuple[int, bool]] = []

    @registry.service("orders", retry=RetryPolicy(initial=0.01, cap=0.01))
    async def handle(message: Message) -> None:
        calls.append((message.attempt, message.deliveries > 3))
        if len(calls) < 3:
            raise OSError("not yet")

    await offer(broker, "x")
    await hand_back(broker, 4)
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert calls == [(1, True), (2, True), (3, True)]
    assert await history(broker) == 0


async def test_failures_are_counted_across_workers(broker: NatsBroker, nats_settings: Any) -> None:
    nats_settings.WSGATEWAY_MAX_DELIVER = 4
    calls: list[int] = []

    @registry.service("orders", retry=RetryPolicy(initial=0.01, cap=0.01))
    async def handle(message: Message) -> None:
        calls.append(message.attempt)
        raise OSError("never")

    await offer(broker, "x")
    while not await letters(broker):
        async with serving(broker) as worker:
            await until(lambda w=worker: w.counts.total() >= 1)
    assert calls == [1, 2, 3, 4]
    assert await history(broker) == 0


async def test_suspects_run_one_by_one_and_others_side_by_side(
    broker: NatsBroker, nats_settings: Any
) -> None:
    nats_settings.WSGATEWAY_MAX_DELIVER = 3
    active: list[str] = []
    together: list[set[str]] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        active.append(message.text)
        together.append(set(active))
        await asyncio.sleep(0.02)
        active.remove(message.text)

    for number in range(8):
        await offer(broker, f"suspect {number}", user=f"s{number}")
    await hand_back(broker, 3, messages=8)
    for number in range(40):
        await offer(broker, f"other {number}", user=f"u{number}")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 48)
    with_suspects = [group for group in together if any("suspect" in name for name in group)]
    assert [len(group) for group in with_suspects] == [1] * 8
    assert max(map(len, together)) > 1


async def test_what_waited_behind_another_message_is_not_suspect(
    broker: NatsBroker, nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's backlog is delivered with each restart, but only its oldest can have begun."""
    nats_settings.WSGATEWAY_MAX_DELIVER = 3
    texts: list[str] = []
    release = asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await release.wait()
        texts.append(message.text)

    for number in range(20):
        await offer(broker, str(number))
    await hand_back(broker, 4, messages=20)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 20)
        release.set()
        await until(lambda: worker.counts["done"] == 20)
    assert texts == list(map(str, range(20)))
    assert caplog.text.count("is handled alone") == 1


async def test_what_is_redelivered_behind_another_message_is_held_again(
    broker: NatsBroker, nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came again and again until the next heartbeat for what waits, and became suspect."""
    nats_settings.WSGATEWAY_ACK_WAIT = 1.0
    monkeypatch.setattr(worker_module, "BEATS_A_HOLD", 10**9)
    go_on = asyncio.Event()
    came: list[tuple[Job, float]] = []
    queues: list[WorkQueue] = []
    make = broker.work_queue

    def watched(name: str, on_job: Callable[[Job], None], *options: Any) -> WorkQueue:
        def noted(job: Job) -> None:
            came.append((job, time.monotonic()))
            on_job(job)

        queues.append(make(name, noted, *options))
        return queues[0]

    monkeypatch.setattr(broker, "work_queue", watched)

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await go_on.wait()

    for text in ("first", "behind"):
        await offer(broker, text)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 2)
        behind, _ = came[1]
        queues[0].give_back(behind, 0.0)
        await until(lambda: len(came) == 4)
        go_on.set()
        await until(lambda: worker.counts["done"] == 2)
    assert [job.sequence for job, _ in came] == [1, 2, 2, 2]
    assert came[3][1] - came[2][1] > 1.5


@pytest.mark.parametrize("in_order", [True, False])
async def test_mark_stays_only_if_the_handler_may_have_ended_the_process(
    broker: NatsBroker, nats_settings: Any, in_order: bool
) -> None:
    """A restart that interrupts a suspect's handler is not the handler's fault."""
    nats_settings.WSGATEWAY_MAX_DELIVER = 2
    begun = asyncio.Event()
    release = asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        begun.set()
        await release.wait()

    await offer(broker, "x")
    await hand_back(broker, 2)
    worker = Worker(declared.registered["orders"], broker)
    worker.start()
    await begun.wait()
    await worker.stop(0.1, in_order=in_order)
    release.set()
    async with serving(broker) as worker:
        await until(lambda: worker.counts.total() == 1)
    assert worker.counts == ({"done": 1} if in_order else {"dead-lettered": 1})
    assert len(await letters(broker)) == (0 if in_order else 1)


async def test_mark_whose_confirmation_a_restart_cut_off_is_removed(
    broker: NatsBroker, nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ended between the mark and its confirmation left the mark, and the next worker
    set the message aside, although no handler had ever begun with it.
    """
    nats_settings.WSGATEWAY_MAX_DELIVER = 2
    stored = asyncio.Event()
    original = NatsWorkQueue.note

    async def note(self: NatsWorkQueue, job: Job, history: History) -> None:
        await original(self, job, history)
        if history.started:
            stored.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(NatsWorkQueue, "note", note)

    @registry.service("orders")
    async def handle(message: Message) -> None:
        pass

    await offer(broker, "x")
    await hand_back(broker, 2)
    worker = Worker(declared.registered["orders"], broker)
    worker.start()
    async with asyncio.timeout(10):
        await stored.wait()
    await worker.stop(0.1)
    async with serving(broker) as worker:
        await until(lambda: worker.counts.total() == 1)
    assert worker.counts == {"done": 1}


async def test_handler_alone_waits_for_others_but_not_for_those_that_hang() -> None:
    running = Running(patience=0.3)
    release = asyncio.Event()

    async def hang() -> None:
        await running.begin(Run(str))
        await release.wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    begin = time.monotonic()
    async with running.alone(Run(str)):
        assert time.monotonic() - begin > 0.2
        other = asyncio.create_task(anext_to(running))
        await asyncio.sleep(0.05)
        assert not other.done()
    await asyncio.wait_for(other, 1)
    release.set()
    await task


async def anext_to(running: Running) -> None:
    await running.begin(Run(str))


async def test_those_who_wait_go_before_the_next_that_is_alone() -> None:
    running = Running(patience=5.0)
    order: list[str] = []

    async def alone(name: str) -> None:
        async with running.alone(Run(str)):
            order.append(name)
            await asyncio.sleep(0.01)

    async def beside() -> None:
        run = Run(str)
        await running.begin(run)
        order.append("others")
        await asyncio.sleep(0.01)
        running.end(run)

    async with asyncio.TaskGroup() as group:
        group.create_task(alone("one"))
        await asyncio.sleep(0)
        group.create_task(alone("two"))
        for _ in range(3):
            group.create_task(beside())
    assert order == ["one", "others", "others", "others", "two"]


async def test_handler_that_hangs_alone_keeps_others_out_for_a_while_only() -> None:
    running = Running(patience=0.2)

    async def next_alone() -> None:
        async with running.alone(Run(str)):
            pass

    async with running.alone(Run(str)):  # and hangs
        await asyncio.wait_for(running.begin(Run(str)), 2)
        await asyncio.wait_for(next_alone(), 2)
        await asyncio.wait_for(running.begin(Run(str)), 2)
    await asyncio.wait_for(next_alone(), 2)
    await asyncio.wait_for(running.begin(Run(str)), 2)


async def deeper(release: asyncio.Event) -> None:
    await release.wait()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_handler_that_does_not_return_is_named_with_its_stack(
    broker: NatsBroker, nats_settings: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Handlers that hang took all places of a worker without a word."""
    nats_settings.WSGATEWAY_ACK_WAIT = 0.3
    release, released = asyncio.Event(), threading.Event()

    async def hang(message: Message) -> None:
        await deeper(release)

    def hang_sync(message: Any) -> None:
        released.wait(10)

    registry.service("orders")(hang if kind == "async" else hang_sync)
    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: "has been running" in caplog.text)
        await asyncio.sleep(0.5)  # more heartbeats: each handler is named once
        release.set()
        released.set()
        await until(lambda: worker.counts["done"] == 1)
    assert caplog.text.count("has been running") == 1
    assert ("in deeper" if kind == "async" else "in hang_sync") in caplog.text


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_timeout_interrupts_a_handler(broker: NatsBroker, kind: str) -> None:
    def endless(message: Any) -> None:
        while message.text == "slow":
            time.sleep(0.01)

    async def endless_async(message: Message) -> None:
        if message.text == "slow":
            await asyncio.sleep(60)

    policy = RetryPolicy(attempts=2, initial=0.01, cap=0.01)
    decorate = registry.service("orders", retry=policy, timeout=0.2, concurrency=1)
    decorate(endless_async if kind == "async" else endless)
    await offer(broker, "slow")
    await offer(broker, "quick")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert worker.counts == {"retried": 1, "dead-lettered": 1, "done": 1}
    (letter,) = await letters(broker)
    assert "HandlerTimeout: the handler took longer than its timeout, 0.2 s" in letter.error
    assert "in endless" in letter.traceback


def sync_message(loop: asyncio.AbstractEventLoop) -> SyncMessage:
    job = Job(Inbox("orders", "ann"), b"", {}, sequence=1, id="1")
    return SyncMessage(job, MemoryBroker(), loop)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_reply_does_not_wait_for_a_loop_that_ended_or_stands_still(settings: Any) -> None:
    """A thread waited for ever, and its process with it."""
    settings.WSGATEWAY_PUBLISH_TIMEOUT = settings.WSGATEWAY_BROKER_TIMEOUT = 0.1
    loop = asyncio.new_event_loop()
    with pytest.raises(BrokerUnavailable, match=r"not stored within 0\.2 s"):
        sync_message(loop).reply(text="x")
    loop.close()
    with pytest.raises(BrokerClosed, match="the worker has ended"):
        sync_message(loop).reply(text="x")
    gc.collect()  # warns
