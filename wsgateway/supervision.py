"""Long-lived tasks that do not die unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["supervise"]

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
