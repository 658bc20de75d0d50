"""What a broker promises from `open` to `close`, on every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, fill, text
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerUnavailable,
)


class TestLife:
    async def test_open_is_idempotent_and_announced_once(self, brokers: Brokers) -> None:
        broker = brokers.new()
        calls: list[str] = []
        broker.on_ready(lambda: calls.append("kept"))
        ended = broker.on_ready(lambda: calls.append("ended"))
        ended.close()
        ended.close()
        before = broker.ready
        await broker.open()
        await broker.open()
        await broker.wait_ready()
        await broker.open()
        await until(lambda: calls, what="the callback")
        assert (before, broker.ready) == (False, True)
        await broker.inboxes.position()
        assert calls == ["kept"]

    async def test_not_open_yet(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_BROKER_TIMEOUT = 0.2
        broker = brokers.new()
        with pytest.raises(BrokerUnavailable):
            await broker.wait_ready(0.1)
        with pytest.raises(BrokerUnavailable):
            await broker.publish(ANN, b"x")
        with pytest.raises(BrokerUnavailable):
            await broker.inboxes.read_after(ANN, 0, limit=1)

    async def test_set_up_is_idempotent(self, brokers: Brokers) -> None:
        broker = brokers.new()
        for _ in range(2):
            lines = await broker.set_up()
            assert lines
            assert all(": " in line for line in lines)
        await broker.open()
        await broker.wait_ready()
        await fill(broker, ANN, 1)

    async def test_everything_refuses_after_close(self, brokers: Brokers, broker: Broker) -> None:
        await fill(broker, ANN, 1)
        seen: list[Any] = []
        broker.inboxes.watch(ANN, seen.append)
        broker.listen("logout", seen.append)
        await broker.inboxes.position()
        await broker.close()
        await broker.close()
        assert not broker.ready
        for call in CALLS.values():
            with pytest.raises(BrokerClosed, match="already closed"):
                await call(broker)
        for direct in (
            lambda: broker.offer(ANN, text("x"), "x"),
            lambda: broker.broadcast("logout", b"x"),
            lambda: broker.inboxes.watch(ANN, seen.append),
            lambda: broker.listen("logout", seen.append),
        ):
            with pytest.raises(BrokerClosed, match="already closed"):
                direct()
        another = await brokers.open()
        assert await another.inboxes.count(ANN) == 1
        await fill(another, ANN, 1)
        another.broadcast("logout", b"x")
        await another.inboxes.position()
        assert seen == []

    async def test_close_before_open(self, brokers: Brokers) -> None:
        broker = brokers.new()
        await broker.close()
        with pytest.raises(BrokerClosed):
            await broker.open()


CALLS: dict[str, Callable[[Broker], Awaitable[Any]]] = {
    "open": lambda b: b.open(),
    "set_up": lambda b: b.set_up(),
    "wait_ready": lambda b: b.wait_ready(),
    "publish": lambda b: b.publish(ANN, b"x"),
    "read_after": lambda b: b.inboxes.read_after(ANN, 0, limit=10),
    "last_offsets": lambda b: b.inboxes.last_offsets([ANN]),
    "position": lambda b: b.inboxes.position(),
    "count": lambda b: b.inboxes.count(ANN),
    "load_cursor": lambda b: b.load_cursor(ANN, "phone"),
    "save_cursor": lambda b: b.save_cursor(ANN, "tablet", 9),
    "drop_cursor": lambda b: b.drop_cursor(ANN, "tablet"),
}
"""Every method that waits, with arguments."""

STEPS = [0, 1, 2, 3, 4, 6, 9]
PAUSES = [0.0, 0.0002, 0.0005, 0.001, 0.003]


class TestCancellation:
    @pytest.mark.parametrize("name", [n for n in CALLS if n not in ("open", "wait_ready")])
    async def test_cancelled_at_any_point(
        self, brokers: Brokers, broker: Broker, name: str
    ) -> None:
        await fill(broker, ANN, 2)
        ended = cancelled = 0
        for steps in STEPS:
            for pause in PAUSES:
                task = asyncio.ensure_future(CALLS[name](broker))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if pause:
                    await asyncio.sleep(pause)
                task.cancel()
                try:
                    await task
                    ended += 1
                except asyncio.CancelledError:
                    cancelled += 1
        assert ended + cancelled == len(STEPS) * len(PAUSES)
        assert cancelled >= 1  # at least the one that had not begun
        assert broker.ready
        # A read that calls share goes on for the others, and ends by itself
        await until(lambda: brokers.waiting(broker) == 0, 5.0, "nothing waits")
        # Everything still works.
        for call in CALLS.values():
            await call(broker)

    async def test_cancelled_publish_is_stored_at_most_once(self, broker: Broker) -> None:
        for number, pause in enumerate(PAUSES * 3):
            msg_id = f"id {number}"
            task = asyncio.ensure_future(broker.publish(ANN, msg_id.encode(), msg_id=msg_id))
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait({task})
            await broker.publish(ANN, msg_id.encode(), msg_id=msg_id)
        batch = await broker.inboxes.read_after(ANN, 0, limit=1000)
        assert [m.payload for m in batch.messages] == [
            b"id %d" % number for number in range(len(PAUSES) * 3)
        ]

    async def test_closed_while_waiting(self, brokers: Brokers) -> None:
        broker = brokers.new()
        await broker.open()
        tasks = [asyncio.ensure_future(call(broker)) for call in CALLS.values()]
        await asyncio.sleep(0)
        await broker.close()
        done, pending = await asyncio.wait(tasks, timeout=20.0)
        assert not pending
        for task in done:
            assert task.exception() is None or isinstance(task.exception(), BrokerClosed)
