"""Runs workers as a process of their own: until a signal, or beside Django's reloader."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import threading
from concurrent.futures import Future
from typing import Protocol

from wsgateway.conf import settings
from wsgateway.services.runner import Say

__all__ = ["Runs", "run_beside_reloader", "run_until_signal"]

THREADS_WITHIN = 1.0
"""Seconds that threads may take to end after the workers have."""


class Runs(Protocol):
    """What a process runs."""

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""

    def end(self) -> None:
        """Let `run` return; from its loop."""

    async def run(self) -> None:
        """Run until `end`."""


def run_until_signal(runner: Runs, say: Say) -> None:
    """Run until SIGINT or SIGTERM; a second one ends the process at once.

    Args:
        runner: What to run.
        say: Tells the operator.
    """
    asyncio.run(_run(runner, say))


async def _run(runner: Runs, say: Say) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, runner, number, say)
    await runner.run()
    # Python would wait for threads in which a handler hangs, however long that takes
    watch = threading.Timer(THREADS_WITHIN, _leave_threads, (say,))
    watch.daemon = True
    watch.start()


def _on_signal(runner: Runs, number: int, say: Say) -> None:
    if runner.ending:
        say("ended by a second signal", event="killed")
        os._exit(128 + number)
    runner.end()


def _leave_threads(say: Say) -> None:
    say("ending without the handlers that still run in threads", event="abandoned")
    logging.shutdown()
    os._exit(0)


def run_beside_reloader(runner: Runs) -> None:
    """Run in a thread beside the reloader, which ends the process from the main thread."""
    ended: Future[None] = Future()
    loop = asyncio.new_event_loop()

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(runner.end)
        ended.result(settings.CLOSE_TIMEOUT)

    atexit.register(end)
    try:
        loop.run_until_complete(runner.run())
    finally:
        atexit.unregister(end)
        loop.close()
        ended.set_result(None)
