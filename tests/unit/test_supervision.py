"""A long-lived task that fails is logged and begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from wsgateway import supervision
from wsgateway.supervision import run_once, supervise


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


async def wait_for_end(work: Coroutine[Any, Any, None], *, cancel: bool = False) -> object:
    ends: asyncio.Queue[BaseException | None] = asyncio.Queue()
    task = run_once(work, "some-work", ends.put_nowait)
    assert task.get_name() == "some-work"
    if cancel:
        task.cancel()  # before its first step
    end = await asyncio.wait_for(ends.get(), 10)
    assert ends.empty()
    return end


async def test_the_owner_hears_of_every_end(caplog: pytest.LogCaptureFixture) -> None:
    async def works() -> None:
        await asyncio.sleep(0)

    assert await wait_for_end(works()) is None
    assert await wait_for_end(works(), cancel=True) is None
    assert not caplog.records


@pytest.mark.parametrize("error", [KeyError("odd"), asyncio.CancelledError()], ids=repr)
async def test_a_failure_is_logged_and_given_to_the_owner(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise error

    end = await wait_for_end(fails())
    assert type(end) is type(error)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "task some-work failed")
    assert record.exc_info is not None
    assert record.exc_info[1] is end
