"""From the one stream of earlier versions to a stream for each service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.faults.traffic import broker_at, sending, stored
from tests.support import until
from wsgateway import declared, topic
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings, migration
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.headers import decode
from wsgateway.broker.nats.migration import Migration
from wsgateway.broker.work import Job
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import Message, Service
from wsgateway.services.worker import Worker

DAY = 86400 * 10**9
USERS = [Inbox(service, user) for service in ("orders", "s", "service1") for user in "ab"]


def old_config(prefix: str) -> dict[str, Any]:
    """The stream exactly as the last version with one for all services made it."""
    return {
        "name": f"{prefix.upper()}_SEND",
        "subjects": [f"{prefix}.send.*.*"],
        "retention": "workqueue",
        "discard": "new",
        "max_age": 7 * DAY,
        "max_msgs": 1_000_000,
        "max_bytes": -1,
        "allow_direct": True,
        "duplicate_window": 120 * 10**9,
        "storage": "file",
        "num_replicas": 1,
    }


@pytest.fixture
async def old(
    nats_settings: Any, nats_server: EmbeddedServer, prefix: str
) -> AsyncIterator[NatsBroker]:
    """A connection of the old version: it publishes by subject, and knows one stream."""
    nats_settings.WSGATEWAY_SERVICES = ["orders", "s", "service1"]
    async with broker_at([nats_server.url], prefix) as broker:
        await broker.wait_ready()
        await broker.jetstream.api(f"STREAM.CREATE.{prefix.upper()}_SEND", old_config(prefix))
        yield broker


async def fill(old: NatsBroker, count: int = 300, inboxes: list[Inbox] = USERS) -> None:
    for number in range(count):
        for inbox in inboxes:
            text = f"{inbox.user} {number}"
            headers = {"Ws-Client-Id": f"c{number}"}
            await old.offer(inbox, Frame.of(text), f"{inbox} {number}", headers)


def expected(inbox: Inbox, count: int = 300) -> list[bytes]:
    return [f"{inbox.user} {number}".encode() for number in range(count)]


async def set_up() -> list[str]:
    broker = broker_from_settings(wsgateway_settings)
    try:
        return await broker.set_up()
    finally:
        await broker.close()


async def require_moved(old: NatsBroker, count: int = 300) -> None:
    """Everything is in the services' streams: once, in order, as it was."""
    assert await old.streams.info(old.subjects.stream("send")) is None
    await old.services.refresh()
    for inbox in USERS:
        assert await stored(old, "send", inbox) == expected(inbox, count)


async def test_messages_move_in_order_and_the_old_stream_goes(old: NatsBroker, prefix: str) -> None:
    await fill(old)
    lines = await set_up()
    assert lines[0] == (
        f"{prefix.upper()}_SEND: moved 1800 messages into the services' streams; deleted"
    )
    await require_moved(old)
    queue = old.subjects.queue("orders")
    info = await old.streams.info(queue)
    assert info is not None
    assert info["config"]["subjects"] == [f"{prefix}.send.orders.*"]
    assert info["config"].get("subject_transform") is None
    assert info["config"]["max_msgs_per_subject"] == 10_000
    batch = await old.jetstream.direct(queue, {"seq": 1})
    assert b"Ws-Client-Id: c0" in (batch.replies[0].headers or b"")
    # An old gateway that did not hear the answer offers the same message again
    assert (await old.offer(USERS[0], Frame.of("a 299"), f"{USERS[0]} 299")).duplicate
    assert not any("moved" in line for line in await set_up())
    await require_moved(old)


async def test_messages_to_topics_move_with_their_senders(
    old: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from the open mode, in which all services share the stream."""
    monkeypatch.setattr(declared, "topics", {})
    topic("room", queue=True)(lambda identity, name: "write")
    room, ann = Topic("room", "42"), Inbox("orders", "ann@x")
    for number in range(3):
        await old.offer_topic(room, ann, Frame.of(f"{number}"), f"{number}")
    await set_up()
    queue = old.subjects.queue("room")
    batch = await old.jetstream.direct(queue, {"seq": 1, "next_by_subj": ">", "batch": 9})
    assert [reply.data for reply in batch.replies] == [b"0", b"1", b"2"]
    headers = decode(batch.replies[0].headers)
    assert old.subjects.parse_sent(headers["Nats-Subject"]) == ("room", ann)
    assert headers["Ws-Topic"] == "room.42"


async def test_operator_sees_how_far_it_is(old: NatsBroker) -> None:
    await fill(old, 100)
    steps: list[tuple[str, int, int]] = []
    broker = broker_from_settings(wsgateway_settings)
    await broker.set_up(progress=lambda *step: steps.append(step))
    await broker.close()
    moved = [(done, total) for what, done, total in steps if what == "moving messages"]
    assert moved == sorted(moved)
    assert (moved[0], moved[-1]) == ((0, 600), (600, 600))
    assert len(moved) > 3
    streams = [(done, total) for what, done, total in steps if what == "setting up streams"]
    assert [done for done, _ in streams] == list(range(streams[0][1]))


async def test_old_gateway_goes_on_publishing_meanwhile(old: NatsBroker) -> None:
    """What it sends while its service moves is refused for now, and never lost or reordered."""
    await fill(old, 100)
    async with sending(old, USERS, 100) as number:
        await set_up()
        reached = number()
        await until(lambda: number() > reached + 20, what="it goes on in the new streams")
    await require_moved(old, number())


STEPS = [
    "_pause",
    "_wait_for_workers",
    "_create",
    "_take_only",
    "_move",
    "_copy",
    "_forget",
    "_end",
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_run_is_finished_by_the_next(
    old: NatsBroker, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    monkeypatch.setattr(migration, "AT_ONCE", 16)
    await fill(old, 50)
    original = getattr(Migration, step)
    for kill_at in (1, 2, 3):
        calls = 0

        async def dying(self: Migration, *args: Any, kill_at: int = kill_at) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at and not after:
                raise KeyboardInterrupt
            result = await original(self, *args)
            if calls == kill_at:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Migration, step, dying)
        run = asyncio.create_task(_swallow())
        await run
        monkeypatch.setattr(Migration, step, original)
    await set_up()
    await require_moved(old, 50)


async def _swallow() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        await set_up()


async def test_worker_finishes_what_it_has(old: NatsBroker) -> None:
    """Consumers are paused first: a message in a worker's hands is not handled twice."""
    await fill(old, 10)
    jobs: list[Job] = []
    queue = old.work_queue("orders", jobs.append, lambda _: None, 30.0)
    queue.open(1)
    await until(lambda: jobs, what="it has one")
    running = asyncio.create_task(set_up())
    name = f"CONSUMER.INFO.{old.subjects.stream('send')}.{old.subjects.consumer('orders')}"
    async with asyncio.timeout(10):
        while not (await old.jetstream.api(name)).get("paused"):
            await asyncio.sleep(0.01)
    assert not running.done()
    queue.ack(jobs[0])
    await running
    await queue.close()
    await old.services.refresh()
    assert await stored(old, "send", USERS[0]) == expected(USERS[0], 10)[1:]


async def test_worker_that_is_gone_delays_nothing_for_long(old: NatsBroker, prefix: str) -> None:
    await fill(old, 10)
    jobs: list[Job] = []
    queue = old.work_queue("orders", jobs.append, lambda _: None, 1.0)
    queue.open(3)
    await until(lambda: len(jobs) == 3, what="it has some")
    await queue.close()
    await set_up()
    await require_moved(old, 10)


async def test_worker_of_this_version_moves_along(old: NatsBroker, nats_settings: Any) -> None:
    await fill(old, 5)
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    got: list[bytes] = []

    def take(job: Job) -> None:
        got.append(job.payload)
        queue.ack(job)

    queue = broker.work_queue("orders", take, lambda _: None, 1.0)
    queue.open(100)
    await until(lambda: len(got) == 10, what="the old stream's")
    await set_up()
    await broker.offer(USERS[0], Frame.of("new"), "new")
    await until(lambda: got[10:] == [b"new"], 20, "the new stream's")
    await queue.close()
    await broker.close()


async def test_messages_of_undeclared_services_stay(old: NatsBroker, nats_settings: Any) -> None:
    chat = Inbox("chat", "a")
    await fill(old, 3)
    await fill(old, 3, [chat])
    (line, *_) = await set_up()
    assert "keeps those of services that do not exist: chat (3)" in line
    assert await old.streams.info(old.subjects.stream("send")) is not None
    await old.services.refresh()
    assert not await old.service_exists("chat")
    nats_settings.WSGATEWAY_SERVICES = ["orders", "s", "service1", "chat"]
    (line, *_) = await set_up()
    assert "moved 3 messages" in line
    await old.services.refresh()
    assert await stored(old, "send", chat) == expected(chat, 3)
    await require_moved(old, 3)


async def test_backlog_above_the_new_limits_is_kept(old: NatsBroker, nats_settings: Any) -> None:
    """NATS 2.15 drops what exceeds a limit per subject when the limit is set."""
    nats_settings.WSGATEWAY_SEND_MAX_MESSAGES_PER_USER = 5
    nats_settings.WSGATEWAY_SEND_MAX_MESSAGES = 7
    await fill(old, 50)
    await set_up()
    await require_moved(old, 50)
    nats_settings.WSGATEWAY_SEND_MAX_MESSAGES_PER_USER = 4
    lines = await set_up()
    assert any("has max_msgs_per_subject 100, settings want 4" in line for line in lines)
    await require_moved(old, 50)


async def test_same_id_after_the_duplicate_window_is_another_message(
    old: NatsBroker, prefix: str
) -> None:
    name = old.subjects.stream("send")
    await old.jetstream.api(f"STREAM.DELETE.{name}")
    config = {**old_config(prefix), "duplicate_window": 100_000_000}
    await old.jetstream.api(f"STREAM.CREATE.{name}", config)
    for number in range(3):
        async with asyncio.timeout(10):
            while (await old.offer(USERS[0], Frame.of(f"a {number}"), "same")).duplicate:
                await asyncio.sleep(0.02)
    await set_up()
    await old.services.refresh()
    assert await stored(old, "send", USERS[0]) == expected(USERS[0], 3)


async def test_user_of_a_handler_that_takes_long_is_served_again(
    old: NatsBroker, nats_settings: Any
) -> None:
    """What the worker had in hand of the old stream was never its turn: it held the user up."""
    nats_settings.WSGATEWAY_ACK_WAIT = 2.0
    release = asyncio.Event()
    handled: list[str] = []

    async def handle(message: Message) -> None:
        await release.wait()
        handled.append(message.text)

    service = Service("orders", handle, policies={}, concurrency=4)
    await fill(old, 3, USERS[:1])
    worker = Worker(service, old)
    worker.start()
    await until(lambda: worker.in_hand == 3, what="it has all")
    await set_up()
    release.set()
    await until(lambda: handled[-2:] == ["a 1", "a 2"], 20, "the rest")
    assert handled in (["a 0", "a 1", "a 2"], ["a 0", "a 0", "a 1", "a 2"])
    await worker.stop(1.0)
