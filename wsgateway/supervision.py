"""The owner of every task that outlives the call that starts it.

Nothing else in the package creates tasks, except in an `asyncio.TaskGroup`, which waits for them.
`supervise` is for work that goes on as long as its owner, `start` for work that ends, and `share`
for a result that several callers await. Each task has a name, is kept from garbage collection,
and is logged with its error if it fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from wsgateway.protocol.backoff import Backoff

__all__ = ["Restarts", "is_cancelled", "share", "start", "supervise"]

logger = logging.getLogger("wsgateway")

T = TypeVar("T")

BACKOFF = Backoff(initial=0.1, factor=2.0, cap=10.0, jitter=0.5)
"""Pauses between two runs of what fails."""
STEADY = 20.0
"""Seconds after which a run that fails counts as the first failure."""

_tasks: set[asyncio.Task[Any]] = set()
"""Those that nobody else keeps: an event loop holds its tasks weakly."""


def supervise(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    """Run *work* in a task until it returns or the task is cancelled.

    If it raises, the error is logged and *work* begins again after a pause that grows while it
    keeps failing.

    Args:
        work: Called for each run. It must leave nothing behind when it raises.
        name: The task's name, also in the log.
    """
    return start(_restart(work, name), name)


def start(
    work: Coroutine[Any, Any, T],
    name: str,
    *,
    on_end: Callable[[BaseException | None], object] | None = None,
    tasks: set[asyncio.Task[Any]] = _tasks,
) -> asyncio.Task[T]:
    """Run *work* once in a task. If it raises, the error is logged.

    Args:
        work: A coroutine that ends by itself, or is cancelled by its owner.
        name: The task's name, also in the log.
        on_end: Called when the task has ended, even if it was cancelled before it began; for an
            owner that closes with it. Gets the error; None if *work* returned or the task was
            cancelled.
        tasks: A set of the owner's that holds the task until it is done.
    """
    task = asyncio.create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(partial(_on_end, tasks, on_end))  # one: each costs a turn of the loop
    return task


def share(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run *work* once in a task whose result several callers await, each with `asyncio.shield`.

    Its error is theirs, so it is not logged here; if all of them have left, nobody misses it.
    """
    task = asyncio.create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(_on_shared_end)
    return task


class Restarts:
    """The pauses before something that failed runs again."""

    def __init__(self) -> None:
        self._attempt = 0  # failures in a row
        self._begun = time.monotonic()  # of the current run

    def begin(self) -> None:
        """Record that a run begins."""
        self._begun = time.monotonic()

    def pause(self) -> float:
        """Return how many seconds to wait after a run that failed."""
        if time.monotonic() - self._begun > STEADY:
            self._attempt = 0
        self._attempt += 1
        return BACKOFF.delay(self._attempt - 1)


def is_cancelled() -> bool:
    """Say whether somebody cancels the running task.

    Otherwise a `CancelledError` comes from something that it awaited: an error like any other.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _restart(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    restarts = Restarts()
    while True:
        restarts.begin()
        try:
            await work()
            return
        except (Exception, asyncio.CancelledError) as exc:
            if isinstance(exc, asyncio.CancelledError) and is_cancelled():
                raise
            # Otherwise nobody cancelled this task, but something that it awaited
            pause = restarts.pause()
            logger.exception("task %s failed and restarts in %.1f s", name, pause)
        await asyncio.sleep(pause)


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """Return what ended *task*; None if it returned, or was cancelled by somebody."""
    if not task.cancelled():
        return task.exception()
    return None if task.cancelling() else asyncio.CancelledError("something it awaited")


def _on_shared_end(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    _error_of(task)


def _on_end(
    tasks: set[asyncio.Task[Any]],
    on_end: Callable[[BaseException | None], object] | None,
    task: asyncio.Task[Any],
) -> None:
    tasks.discard(task)
    error = _error_of(task)
    if error is not None:
        logger.error("task %s failed", task.get_name(), exc_info=error)
    if on_end is not None:
        on_end(error)
