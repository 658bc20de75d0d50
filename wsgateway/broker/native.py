"""Threads of the operating system, also where gevent has replaced those of Python.

gevent's "threads" take turns in one thread, where asyncio runs one loop at a time: one that never
ends keeps out all others, and with them every `async_to_sync` of the process.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from wsgateway.exceptions import BrokerMisconfigured

__all__ = ["native_sleep", "start_native_thread", "wait_for"]

T = TypeVar("T")


def start_native_thread(run: Callable[[], None], name: str) -> None:
    """Run *run* in a daemon thread.

    Raises:
        BrokerMisconfigured: eventlet has replaced Python's threads.
    """
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        # Its locks work within one thread only, so nobody could wait for the other
        raise BrokerMisconfigured(
            "eventlet has replaced Python's threads, and the connection to NATS needs a real one; "
            "use gevent, threads or processes instead, for example celery --pool gevent or "
            "gunicorn --worker-class gthread"
        )
    monkey = _gevent_monkey()
    if monkey is None:
        threading.Thread(target=run, name=name, daemon=True).start()
    else:
        monkey.get_original("_thread", "start_new_thread")(run, ())


def native_sleep(seconds: float) -> None:
    """Sleep in a native thread, where gevent's own ``sleep`` would start another hub."""
    monkey = _gevent_monkey()
    sleep = time.sleep if monkey is None else monkey.get_original("time", "sleep")
    sleep(seconds)


def wait_for(future: concurrent.futures.Future[T], timeout: float | None = None) -> T:
    """Return the result of a future that a native thread sets.

    Raises:
        TimeoutError: Not within *timeout* seconds.
        Exception: What the future holds.
    """
    if _gevent_monkey() is None:
        return future.result(timeout)
    hub, event = (import_module(f"gevent{name}") for name in (".hub", ".event"))
    # Without a watcher gevent takes a thread that nobody in it can wake for blocked for ever
    done, watcher = event.Event(), hub.get_hub().loop.async_()

    def wake(_: object) -> None:
        with contextlib.suppress(Exception):  # closed: nobody waits any more
            watcher.send()

    watcher.start(done.set)
    try:
        future.add_done_callback(wake)
        if not future.done():
            done.wait(timeout)
    finally:
        watcher.stop()
        watcher.close()
    return future.result(0)


def _gevent_monkey() -> ModuleType | None:
    """Return gevent's module if it has replaced Python's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("threading") else None
