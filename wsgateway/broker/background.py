"""A thread with an event loop that lives as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from wsgateway.broker.native import native_sleep, start_native_thread, wait_for
from wsgateway.supervision import Restarts

__all__ = ["BackgroundLoop"]

logger = logging.getLogger("wsgateway.broker")

EXIT_TIMEOUT = 2.0
"""Seconds that the end of the process may wait for what is still to be sent."""


class BackgroundLoop:
    """Starts with its thread; `stop` ends both."""

    def __init__(self) -> None:
        self._ending = False
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._ended: Future[None] = Future()
        start_native_thread(self._run, "wsgateway-background")
        self.loop = wait_for(self._started)

    def _run(self) -> None:
        # Made here: gevent's sockets belong to the thread they are made in
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._started.set_result(loop)
        restarts = Restarts()
        while not self._ending:
            restarts.begin()
            try:
                loop.run_forever()
            except BaseException:  # SystemExit in a callback: every synchronous caller waits here
                pause = restarts.pause()
                logger.exception("the background loop stopped and restarts in %.1f s", pause)
                native_sleep(pause)
        self._ended.set_result(None)

    def stop(self, close: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run *close* in the loop, then end loop and thread."""
        with contextlib.suppress(Exception):
            wait_for(asyncio.run_coroutine_threadsafe(close(), self.loop), EXIT_TIMEOUT)
        self._ending = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        with contextlib.suppress(TimeoutError):
            wait_for(self._ended, EXIT_TIMEOUT)
            self.loop.close()
