"""Long-lived tasks that do not die unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["run_once", "supervise"]

logger = logging.getLogger("wsgateway")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0


def supervise(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    """Run *work* in a task until it returns or the task is cancelled.

    If it raises, the error is logged and *work* begins again, after a pause that grows while it
    keeps failing.

    Args:
        work: Called for each beginning. It must leave nothing behind when it raises.
        name: The task's name, also in the log.
    """
    return asyncio.create_task(_supervised(work, name), name=name)


async def _supervised(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    loop = asyncio.get_running_loop()
    pause = FIRST_PAUSE
    while True:
        begin = loop.time()
        try:
            await work()
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this task: something that it awaited was cancelled
            logger.exception("task %s failed; restarting in %.1f s", name, pause)
        except Exception:
            logger.exception("task %s failed; restarting in %.1f s", name, pause)
        await asyncio.sleep(pause)
        recovered = loop.time() - begin > LONGEST_PAUSE + pause
        pause = FIRST_PAUSE if recovered else min(2 * pause, LONGEST_PAUSE)


def run_once(
    work: Coroutine[Any, Any, None], name: str, on_end: Callable[[BaseException | None], object]
) -> asyncio.Task[None]:
    """Run *work* in a task, for an owner that must close or start over when it ends.

    Args:
        work: What to run.
        name: The task's name, also in the log.
        on_end: Called when the task has ended, even if it was cancelled before it began. Gets the
            error, which has been logged; None if *work* returned or the task was cancelled.
    """
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda task: on_end(_failure(task)))
    return task


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    """Return why *task* failed, and log it."""
    if not task.cancelled():
        error = task.exception()
    elif task.cancelling():
        return None
    else:  # nobody cancelled this task: something that it awaited was cancelled
        error = asyncio.CancelledError()
    if error is not None:
        logger.error("task %s failed", task.get_name(), exc_info=error)
    return error
