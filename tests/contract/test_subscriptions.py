"""What `wsgateway.broker.subscriptions` promises to sockets and durable groups, on every broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, fill
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Position, Stored
from wsgateway.broker.subscriptions import Subscriptions
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.credit import Credit
from wsgateway.protocol.subjects import Address, Inbox
from wsgateway.protocol.v1 import Reason
from wsgateway.protocol.window import Window


class Reader:
    """Reads an inbox as sockets and durable groups do, with nobody behind it."""

    def __init__(self, broker: Broker, inbox: Inbox, window: int = 100) -> None:
        self.address = inbox
        self.window = Window(Credit(window))
        self.epoch = ""
        self.got: list[bytes] = []
        self.restarts: list[tuple[Reason, bool]] = []
        self.fetches = 0
        self._broker = broker
        self._news = asyncio.Event()

    async def start(self) -> None:
        position = await self._broker.inboxes.position()
        self.epoch = position.epoch
        self.window.start(position.last)

    def wake(self) -> None:
        self._news.set()

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        self.restarts.append((reason, bool(since)))
        self.epoch = position.epoch
        self.window.restart(0)
        self.wake()

    async def run(self) -> None:
        while True:
            self._news.clear()
            while (message := self.window.take()) is not None:
                assert isinstance(message, Stored)
                self.got.append(message.payload)
                self.window.confirm(message.offset)
            if self.window.wants_fetch:
                self.fetches += 1
                offset, room = self.window.begin_fetch()
                batch = await self._broker.inboxes.read_after(self.address, offset, limit=room)
                self.window.fetched(batch.messages, more=batch.more)
            else:
                await self._news.wait()

    async def has(self, *payloads: bytes) -> None:
        await until(lambda: self.got == list(payloads), what=f"{payloads}, not {self.got}")

    @property
    def idle(self) -> bool:
        return not (self.window.fetching or self.window.wants_fetch)


class Line:
    """Where live messages come from; some are lost on the way."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = False
        self.watches = 0
        self._watch = broker.inboxes.watch
        monkeypatch.setattr(broker.inboxes, "watch", self.watch)

    def watch(self, inbox: Inbox, on_message: Callable[[Stored], None]) -> Closable:
        self.watches += 1

        def pass_on(stored: Stored) -> None:
            if not self.lost:
                on_message(stored)

        return self._watch(inbox, pass_on)


@pytest.fixture
def line(broker: Broker, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Line:
    settings.WSGATEWAY_SWEEP_INTERVAL = 3600.0  # tests sweep when they want to
    return Line(broker, monkeypatch)


@pytest.fixture
async def subscriptions(broker: Broker, line: Line) -> AsyncIterator[Subscriptions]:
    made = Subscriptions(broker)
    yield made
    made.close()


Reading = Callable[..., Any]


@pytest.fixture
async def reading(broker: Broker, subscriptions: Subscriptions) -> AsyncIterator[Reading]:
    """Return a started reader that has read its backlog."""
    tasks: list[asyncio.Task[None]] = []

    async def start(inbox: Inbox = ANN, window: int = 100) -> Reader:
        reader = Reader(broker, inbox, window)
        subscriptions.subscribe(reader)
        await reader.start()
        tasks.append(asyncio.create_task(reader.run()))
        await until(lambda: reader.idle, what="the backlog")
        return reader

    yield start
    for task in tasks:
        task.cancel()


async def test_readers_of_an_inbox_share_its_live_messages(
    broker: Broker, line: Line, reading: Reading
) -> None:
    first, second, other = await reading(), await reading(), await reading(BOB)
    await fill(broker, ANN, 2)
    await first.has(b"0", b"1")
    await second.has(b"0", b"1")
    assert other.got == []
    assert line.watches == 2


async def test_live_messages_come_before_the_start_is_known(
    broker: Broker, subscriptions: Subscriptions
) -> None:
    """What is stored while a reader asks where to begin reaches its window."""
    reader = Reader(broker, ANN)
    subscriptions.subscribe(reader)
    (offset,) = await fill(broker, ANN, 1)
    await until(lambda: reader.window.reached[0] == offset, what="the window knows of it")


async def test_nothing_comes_after_unsubscribing(
    broker: Broker, line: Line, subscriptions: Subscriptions, reading: Reading
) -> None:
    one, other = await reading(), await reading()
    subscriptions.unsubscribe(one)
    subscriptions.unsubscribe(one)
    await fill(broker, ANN, 1)
    await other.has(b"0")
    await subscriptions.sweep(thorough=True)
    assert one.got == []
    again = await reading()
    assert line.watches == 1
    for each in (other, again):
        subscriptions.unsubscribe(each)
    await reading()
    assert line.watches == 2


@pytest.mark.parametrize("thorough", [True, False])
async def test_sweep_finds_what_live_messages_left_out(
    broker: Broker, line: Line, subscriptions: Subscriptions, reading: Reading, thorough: bool
) -> None:
    reader, other = await reading(), await reading(BOB)
    line.lost = True
    await fill(broker, ANN, 2)
    await subscriptions.sweep(thorough=thorough)
    await reader.has(b"0", b"1")
    assert other.got == []


async def test_inbox_that_was_heard_of_waits_for_the_next_sweep(
    broker: Broker, line: Line, subscriptions: Subscriptions, reading: Reading
) -> None:
    """A gap would have shown; only what came last may be missing, and is found the next time.

    That next sweep looked for nothing if nothing else had been stored, so a message whose live copy
    died with NATS' leader waited until somebody sent another one.
    """
    reader, other = await reading(), await reading(BOB)
    await fill(broker, ANN, 1)
    await reader.has(b"0")
    line.lost = True
    await broker.publish(ANN, b"lost")
    await broker.publish(BOB, b"lost")
    await subscriptions.sweep(thorough=False)
    await other.has(b"lost")
    assert reader.got == [b"0"]
    await subscriptions.sweep(thorough=False)
    await reader.has(b"0", b"lost")


async def test_sweep_of_a_stream_at_rest_is_one_request(
    broker: Broker,
    subscriptions: Subscriptions,
    reading: Reading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = await reading()
    await fill(broker, ANN, 1)
    await reader.has(b"0")
    for _ in range(2):  # the first one leaves out the inbox, which was heard of
        await subscriptions.sweep(thorough=False)
    asked: list[str] = []

    async def last_offsets(*args: Any) -> dict[Inbox, int]:
        asked.append("last_offsets")
        return {}

    monkeypatch.setattr(broker.inboxes, "last_offsets", last_offsets)
    await subscriptions.sweep(thorough=False)
    assert asked == []
    await subscriptions.sweep(thorough=True)
    assert asked == ["last_offsets"]


async def test_it_sweeps_by_itself(
    broker: Broker, line: Line, reading: Reading, settings: Any
) -> None:
    settings.WSGATEWAY_SWEEP_INTERVAL = 0.02
    reader = await reading()
    line.lost = True
    await fill(broker, ANN, 2)
    await reader.has(b"0", b"1")


async def test_sweep_that_fails_is_repeated_thoroughly(
    broker: Broker,
    line: Line,
    subscriptions: Subscriptions,
    reading: Reading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was heard of since the last sweep is forgotten by then."""
    reader = await reading()
    await subscriptions.sweep(thorough=True)
    line.lost = True
    await fill(broker, ANN, 1)
    last_offsets, asked = broker.inboxes.last_offsets, 0

    async def fail_twice(addresses: Any) -> dict[Address, int]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BrokerUnavailable("no answer")
        if asked == 2:
            raise KeyError("odd")
        return await last_offsets(addresses)

    monkeypatch.setattr(broker.inboxes, "last_offsets", fail_twice)
    subscriptions.resync()
    await reader.has(b"0")


async def test_stream_that_was_replaced(
    brokers: Brokers, broker: Broker, subscriptions: Subscriptions, reading: Reading
) -> None:
    reader, quiet = await reading(), await reading(BOB)
    await fill(broker, ANN, 3)
    await reader.has(b"0", b"1", b"2")
    await brokers.renew(broker)
    fresh = await reading(BOB)  # begins in the new stream
    await broker.publish(ANN, b"new")
    await subscriptions.sweep(thorough=False)
    await until(lambda: reader.got[3:] == [b"new"], what="what the new stream holds")
    assert [reason for reason, _ in reader.restarts] == [Reason.EPOCH]
    assert [reason for reason, _ in quiet.restarts] == [Reason.EPOCH]
    assert fresh.restarts == []
    await subscriptions.sweep(thorough=True)
    assert len(reader.restarts) == 1


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_stream_that_lost_its_end(
    brokers: Brokers, broker: Broker, subscriptions: Subscriptions, reading: Reading
) -> None:
    """What NATS restores is another stream; tests/integration/test_recovery.py swaps its disk."""
    before = await reading(BOB)
    await broker.publish(BOB, b"kept")
    await before.has(b"kept")
    backup = await brokers.back_up(broker)
    beyond = await reading()
    await fill(broker, ANN, 3)
    await beyond.has(b"0", b"1", b"2")
    await brokers.restore(broker, backup)
    await broker.publish(ANN, b"new")
    await subscriptions.sweep(thorough=False)
    await until(lambda: beyond.got[3:] == [b"new"], what="what came after the lost end")
    assert beyond.restarts == [(Reason.AHEAD, True)]
    assert before.restarts == []


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_stream_that_lost_its_end_and_is_as_long_again(
    brokers: Brokers, broker: Broker, line: Line, subscriptions: Subscriptions, reading: Reading
) -> None:
    before = await reading(BOB)
    await broker.publish(BOB, b"kept")
    await before.has(b"kept")
    backup = await brokers.back_up(broker)
    beyond = await reading()
    await fill(broker, ANN, 3)
    await beyond.has(b"0", b"1", b"2")
    await brokers.restore(broker, backup)
    line.lost = True
    for payload in (b"a", b"b", b"c", b"d"):
        await broker.publish(ANN, payload)
    await subscriptions.sweep(thorough=True)
    await until(lambda: beyond.got[3:] == [b"a", b"b", b"c", b"d"], what="the new ones")
    assert beyond.restarts == [(Reason.AHEAD, True)]
    assert before.restarts == []


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_old_offset_for_a_new_message_starts_a_sweep(
    brokers: Brokers, broker: Broker, reading: Reading
) -> None:
    reader = await reading()
    backup = await brokers.back_up(broker)
    await fill(broker, ANN, 3)
    await reader.has(b"0", b"1", b"2")
    await brokers.restore(broker, backup)
    await broker.publish(ANN, b"new")
    await until(lambda: reader.got[3:] == [b"new"], what="what came after the lost end")
    assert reader.restarts == [(Reason.AHEAD, True)]


async def test_nothing_restarts_where_nothing_is_lost(
    broker: Broker, subscriptions: Subscriptions, reading: Reading
) -> None:
    reader = await reading()
    await reading(BOB)
    await fill(broker, ANN, 3)
    await reader.has(b"0", b"1", b"2")
    await subscriptions.sweep(thorough=False)
    await subscriptions.sweep(thorough=True)
    assert reader.restarts == []


async def test_what_was_missed_and_trimmed_is_looked_for(
    broker: Broker,
    line: Line,
    subscriptions: Subscriptions,
    reading: Reading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its inbox is empty, so that no announcement tells of it."""
    reader = await reading(BOB)
    await subscriptions.sweep(thorough=True)
    await until(lambda: reader.idle, what="idle")
    fetches = reader.fetches
    await subscriptions.sweep(thorough=True)
    assert reader.idle
    assert reader.fetches == fetches
    line.lost = True
    await fill(broker, ANN, 2)
    position = broker.inboxes.position

    async def trimmed() -> Position:
        found = await position()
        return found._replace(first=found.last)

    monkeypatch.setattr(broker.inboxes, "position", trimmed)
    await subscriptions.sweep(thorough=True)
    await until(lambda: reader.fetches > fetches, what="a look at the inbox")
