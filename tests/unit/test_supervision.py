"""A long-lived task that fails is logged and begins again."""

from __future__ import annotations

import asyncio

import pytest

from wsgateway import supervision
from wsgateway.supervision import supervise


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)


async def test_it_begins_again_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise KeyError("odd")
        if len(begun) == 2:  # somebody else's future was cancelled, not this task
            raise asyncio.CancelledError

    task = supervise(work, "some-work")
    await asyncio.wait_for(task, 10)
    assert len(begun) == 3
    said = [r for r in caplog.records if r.levelname == "ERROR"]
    assert ["task some-work failed" in r.getMessage() for r in said] == [True, True]
    assert said[0].exc_info is not None
    assert task.get_name() == "some-work"


async def test_cancelling_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)
        await asyncio.sleep(60)

    task = supervise(work, "some-work")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    assert begun == [1]
    assert not caplog.records


async def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        pauses.append(delay)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    # Far beyond what this takes: a task that ran for so long would begin with the first pause
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 100.0)
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 400.0)

    async def work() -> None:
        if len(pauses) < 5:
            raise ValueError

    await asyncio.wait_for(supervise(work, "w"), 10)
    assert pauses == [100.0, 200.0, 400.0, 400.0, 400.0]
