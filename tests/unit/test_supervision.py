"""A task that fails is logged; it runs again, or its owner hears of it."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from wsgateway import supervision
from wsgateway.protocol.backoff import Backoff
from wsgateway.supervision import Restarts, share, start, supervise


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "BACKOFF", Backoff(0.001, 2.0, 0.004, jitter=0.0))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def ended(task: asyncio.Task[object]) -> None:
    """Wait until *task* is done and those who watch it know."""
    await asyncio.wait({task}, timeout=10)
    await asyncio.sleep(0)


async def cancel_within() -> None:
    """Await something that somebody else cancels."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


# -- supervise ---------------------------------------------------------------------------


async def test_work_that_fails_runs_again_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise KeyError("odd")
        if len(runs) == 2:
            await cancel_within()

    task = supervise(work, "some-work")
    await asyncio.wait_for(task, 10)
    assert len(runs) == 3
    said = [r for r in caplog.records if r.levelname == "ERROR"]
    assert ["task some-work failed" in r.getMessage() for r in said] == [True, True]
    assert said[0].exc_info is not None
    assert task.get_name() == "some-work"


async def test_cancelling_ends_supervised_work(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)
        await asyncio.sleep(60)

    task = supervise(work, "some-work")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await ended(task)
    assert task.cancelled()
    assert runs == [1]
    assert not caplog.records


def test_pauses_grow_while_it_fails_and_begin_again_after_a_steady_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    restarts = Restarts()
    assert [restarts.pause() for _ in range(4)] == [0.001, 0.002, 0.004, 0.004]
    restarts.begin()
    now += supervision.STEADY + 1
    assert restarts.pause() == 0.001
    restarts.begin()
    now += supervision.STEADY - 1
    assert restarts.pause() == 0.002


# -- start -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_inner_cancellation", [False, True])
async def test_task_that_fails_is_logged_and_its_owner_told(
    caplog: pytest.LogCaptureFixture, is_inner_cancellation: bool
) -> None:
    """Cancelling what a task awaits ends it, too, as if its owner had done that."""
    told: list[BaseException | None] = []

    async def work() -> None:
        if is_inner_cancellation:
            await cancel_within()
        raise KeyError("odd")

    await ended(start(work(), "some-work", on_end=told.append))
    assert errors(caplog) == ["task some-work failed"]
    assert caplog.records[-1].exc_info is not None
    assert [type(error) for error in told] == [
        asyncio.CancelledError if is_inner_cancellation else KeyError
    ]


async def test_task_that_returns_or_is_cancelled_has_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[BaseException | None] = []
    returning = start(asyncio.sleep(0, "result"), "returning", on_end=told.append)
    await ended(returning)
    assert returning.result() == "result"
    for turns in (0, 2):  # before it has begun, and after
        task = start(asyncio.sleep(60), "cancelled", on_end=told.append)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await ended(task)
        assert task.cancelled()
    assert told == [None] * 3
    assert errors(caplog) == []


async def test_task_that_nobody_else_keeps_is_not_collected() -> None:
    done: list[str] = []

    async def work() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        done.append(await future)

    waiting: list[weakref.ref[asyncio.Future[str]]] = []
    start(work(), "some-work")
    await asyncio.sleep(0)
    gc.collect()
    future = waiting[0]()
    assert future is not None, "the task was collected, and its future with it"
    future.set_result("done")
    await asyncio.sleep(0)
    assert done == ["done"]


async def test_tasks_of_an_owner_are_in_its_set_until_they_are_done() -> None:
    tasks: set[asyncio.Task[object]] = set()
    task = start(asyncio.sleep(0), "some-work", tasks=tasks)
    assert tasks == {task}
    await ended(task)
    assert tasks == set()


# -- share -------------------------------------------------------------------------------


async def test_error_of_a_shared_task_belongs_to_those_who_await_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise KeyError("odd")

    task = share(fail(), "some-work")
    found = await asyncio.gather(*(asyncio.shield(task) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in found] == [KeyError, KeyError]
    forgotten = share(fail(), "some-work")
    await ended(forgotten)
    del task, forgotten, found
    gc.collect()  # asyncio would complain of an error that nobody has looked at
    assert errors(caplog) == []
