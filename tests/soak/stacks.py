"""On SIGUSR1, a process of a soak run prints where each of its tasks is."""

from __future__ import annotations

import asyncio
import signal
import sys
from types import FrameType


def show(_number: int, _frame: FrameType | None) -> None:
    """Print every task of the running loop."""
    try:
        tasks = asyncio.all_tasks(asyncio.get_running_loop())
    except RuntimeError:
        return
    for task in tasks:
        coroutine: object = task.get_coro()
        print(f"task {task.get_name()}", file=sys.stderr)
        while coroutine is not None:
            frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
            if frame is not None:
                code = frame.f_code
                print(f"  {code.co_filename}:{frame.f_lineno} {code.co_name}", file=sys.stderr)
            coroutine = getattr(coroutine, "cr_await", None) or getattr(
                coroutine, "gi_yieldfrom", None
            )


def install() -> None:
    """Listen to SIGUSR1."""
    signal.signal(signal.SIGUSR1, show)
