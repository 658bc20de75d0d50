"""Following an inbox: in order, without holes, for as long as somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.support import until
from wsgateway.broker import follow as module
from wsgateway.broker import memory
from wsgateway.broker.base import Broker
from wsgateway.broker.follow import follow
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.memory.log import MemoryLog
from wsgateway.broker.messages import Position
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Inbox
from wsgateway.supervision import start

ANN = Inbox("orders", "ann")


@asynccontextmanager
async def following(
    broker: Broker, after: int = 0, on_replaced: Callable[[], object] = lambda: None
) -> AsyncIterator[list[bytes]]:
    """Collect the payloads that `follow` yields."""
    got: list[bytes] = []

    async def collect() -> None:
        async with aclosing(follow(broker, ANN, after, on_replaced)) as messages:
            async for stored in messages:
                got.append(stored.payload)  # noqa: PERF401 - as they come

    task = start(collect(), "test-follow")
    try:
        yield got
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_stored_and_live_messages_come_once_and_in_order(broker: Broker) -> None:
    texts = [str(number).encode() for number in range(250)]
    for text in texts[:120]:
        await broker.publish(ANN, text)
    async with following(broker) as got:
        for text in texts[120:]:
            await broker.publish(ANN, text)
        await until(lambda: len(got) >= len(texts), 20, "all")
        assert got == texts


async def test_begins_behind_an_offset(broker: Broker) -> None:
    offsets = [(await broker.publish(ANN, text)).offset for text in (b"a", b"b")]
    async with following(broker, after=offsets[0]) as got:
        await until(lambda: got == [b"b"], 20, "the second")
        await broker.publish(ANN, b"c")
        await until(lambda: got == [b"b", b"c"], 20, "the live one")


async def test_others_inboxes_are_not_followed(broker: Broker) -> None:
    async with following(broker) as got:
        await broker.publish(Inbox("orders", "bob"), b"bob's")
        await broker.publish(Inbox("service1", "ann"), b"another service's")
        await broker.publish(ANN, b"hers")
        await until(lambda: got, 20, "hers")
        assert got == [b"hers"]


async def test_lost_announcement_costs_time_only(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EACH", 0.05)
    monkeypatch.setattr(
        broker.inboxes, "watch", lambda inbox, on_message: broker.on_lost(lambda: None)
    )
    async with following(broker) as got:
        await broker.publish(ANN, b"a")
        await until(lambda: got == [b"a"], 20, "it is found")


async def test_deleted_message_does_not_hold_up_the_next(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAG", 0.1)
    async with following(broker) as got:
        await broker.publish(ANN, b"a")
        await until(lambda: got == [b"a"], 20, "the first")
        await broker.operations.delete(ANN, (await broker.publish(ANN, b"x")).offset)
        await broker.publish(ANN, b"b")
        await until(lambda: b"b" in got, 20, "the next")


async def test_stream_that_was_made_again_is_followed_from_its_beginning(
    brokers: Brokers, broker: Broker, other: Broker
) -> None:
    """Its first messages have offsets that the follower believes to have seen."""
    replaced: list[bool] = []
    for text in (b"a", b"b", b"c"):
        await broker.publish(ANN, text)
    async with following(broker, on_replaced=lambda: replaced.append(True)) as got:
        await until(lambda: len(got) == 3, 20, "the first three")
        await brokers.renew(other)
        new = [str(number).encode() for number in range(6)]
        for text in new:
            await other.publish(ANN, text)
        await until(lambda: got[-1] == new[-1] and new[0] in got, 15, "the new stream")
        assert [text for text in dict.fromkeys(got) if text not in new] == [b"a", b"b", b"c"]
        assert got[-len(new) :] == new
        assert replaced == [True]


class Unaware(MemoryLog):
    """Learns only by asking that the stream was recreated, as one on NATS may."""

    known = ""

    @property
    def epoch(self) -> str:
        return self.known

    async def position(self) -> Position:
        position = await super().position()
        self.known = position.epoch
        return position


async def test_offsets_that_fall_make_it_ask(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBSUB_BROKER = "memory"
    memory.reset_shared_store()
    monkeypatch.setattr("wsgateway.broker.memory.broker.MemoryLog", Unaware)
    broker = MemoryBroker.from_settings(wsgateway_settings)
    await broker.open()
    await broker.inboxes.position()
    for text in (b"a", b"b", b"c"):
        await broker.publish(ANN, text)
    async with following(broker) as got:
        await until(lambda: len(got) == 3, 20, "the first three")
        broker.store.inboxes.start_over()
        for text in (b"1", b"2", b"3", b"4"):
            await broker.publish(ANN, text)
        await until(lambda: got[-4:] == [b"1", b"2", b"3", b"4"], 2, "the new stream")
    await broker.close()
