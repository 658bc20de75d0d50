from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wsgateway.deadlines import TICK, Deadlines


async def test_calls_when_time_is_up_and_not_before() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    called: asyncio.Future[float] = loop.create_future()
    begin = loop.time()
    deadlines.add(0.05, lambda: called.set_result(loop.time()))
    assert await asyncio.wait_for(called, 20) - begin >= 0.05


async def test_deadline_that_was_withdrawn_is_not_called() -> None:
    deadlines, called = Deadlines(), list[str]()
    end = asyncio.Event()
    withdraw = deadlines.add(0.01, lambda: called.append("withdrawn"))
    deadlines.add(0.01, lambda: called.append("kept"))
    deadlines.add(0.01 + 2 * TICK, end.set)
    withdraw()
    withdraw()  # idempotent
    await asyncio.wait_for(end.wait(), 20)
    assert called == ["kept"]


async def test_deadline_may_be_added_by_one_that_is_called() -> None:
    deadlines, end = Deadlines(), asyncio.Event()

    def add() -> None:
        deadlines.add(0.0, end.set)

    deadlines.add(0.0, add)
    await asyncio.wait_for(end.wait(), 20)


async def test_deadlines_of_one_tick_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    timers: list[Any] = []
    monkeypatch.setattr(loop, "call_at", lambda *arguments: timers.append(arguments))
    for _ in range(1000):
        deadlines.add(5.0, lambda: None)()
    assert len(timers) <= 2 + 1000 // 100  # a slow machine may pass from one tick to the next
