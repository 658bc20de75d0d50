"""Which connection serves the code that runs now; nothing else decides that.

A long-lived event loop has one connection, which sockets, the channel layer, workers and
`wsgateway.publish` share. Everything else in a process shares the connection of a background
thread: views, commands, threads, and the loops that `async_to_sync` makes for one call, for each
of which a connection would cost more than the call. After ``fork()`` the child starts with none.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import multiprocessing.util
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import AsyncToSync
from django.core.signals import setting_changed

from wsgateway.broker import (
    isolation,
    project_server,  # noqa: F401 - so that it outlives our connections
)
from wsgateway.broker.background import BackgroundLoop
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action, Connection, Loop
from wsgateway.broker.targets import Target, broker_of, target_of

__all__ = [
    "background",
    "call",
    "call_soon",
    "call_sync",
    "close",
    "connections",
    "current",
    "existing",
    "is_short_lived",
    "on_fork",
    "own",
    "refuse_in_loop",
    "reset",
    "stop_background",
]

T = TypeVar("T")

_lock = threading.Lock()
_connections: dict[Loop, dict[Target, Connection]] = {}
_retired: dict[Loop, list[Connection]] = {}
"""Those that `reset` has forgotten; they end with their loop."""
_background: BackgroundLoop | None = None
_target: Target | None = None
_fork_callbacks: list[Callable[[], None]] = []


def _settings_target() -> Target:
    global _target
    if _target is None:
        _target = target_of()
    return _target


def _forget_target(**kwargs: Any) -> None:
    """Read the settings again after a test has changed them."""
    global _target
    _target = None


setting_changed.connect(_forget_target)


def is_short_lived(loop: Loop) -> bool:
    """Say whether *loop* was made by `async_to_sync` for one call."""
    return loop in AsyncToSync.loop_thread_executors


def current(target: Target | None = None) -> Connection:
    """Return the running loop's connection, or the background's if that loop is short-lived.

    Args:
        target: Where it leads; None: where the settings say.

    Raises:
        BrokerMisconfigured: The settings name no usable broker.
    """
    if is_short_lived(asyncio.get_running_loop()):
        return background(target)
    return own(target)


def own(target: Target | None = None) -> Connection:
    """Return the running loop's connection, even if that loop is short-lived.

    For what lives in the loop itself, such as sockets. Django runs an asynchronous test in a
    short-lived one.

    Args:
        target: The same as for `current`.

    Raises:
        BrokerMisconfigured: The settings name no usable broker.
    """
    loop = asyncio.get_running_loop()
    is_background = _background is not None and _background.loop is loop
    return _connection(loop, target, is_background=is_background)


def background(target: Target | None = None) -> Connection:
    """Return the background thread's connection; starts the thread at the first call."""
    global _background
    with _lock:
        if _background is None:
            _background = BackgroundLoop()
        loop = _background.loop
    return _connection(loop, target, is_background=True)


def existing() -> Connection:
    """Return a connection to where the settings say, made before if possible; from any thread.

    For those who ask so little that another connection would be a waste.
    """
    target = _settings_target()
    known = [each for each in connections() if each.target == target and each.usable]
    known.sort(key=lambda each: (not each.broker.ready, each.is_background))
    return known[0] if known else background(target)


def connections() -> list[Connection]:
    """Return all connections of this process."""
    with _lock:
        return [each for by_target in _connections.values() for each in by_target.values()]


def _all_of(loop: Loop) -> list[Connection]:
    return [*_connections.get(loop, {}).values(), *_retired.get(loop, [])]


def _connection(loop: Loop, target: Target | None, *, is_background: bool) -> Connection:
    target = target or _settings_target()
    with _lock:
        by_target = _connections.get(loop)
        if by_target is None:
            for known in (_connections, _retired):
                for other in [other for other in known if other.is_closed()]:
                    del known[other]
            by_target = _connections[loop] = {}
            if not is_background:
                _close_with(loop)
        found = by_target.get(target)
        if found is None or found.broker.closed:
            found = by_target[target] = Connection(
                loop,
                broker_of(target),
                target=target,
                is_background=is_background,
                forget=_forget,
            )
        return found


def _forget(connection: Connection) -> None:
    with _lock:
        by_target = _connections.get(connection.loop, {})
        target = connection.target
        if target is not None and by_target.get(target) is connection:
            del by_target[target]
            if not by_target:
                del _connections[connection.loop]
        elif connection in _retired.get(connection.loop, []):
            _retired[connection.loop].remove(connection)


def _close_with(loop: Loop) -> None:
    """Make ``loop.close()`` close the loop's connections first, so that no task is destroyed."""
    original = loop.close
    if getattr(original, "__module__", "") == __name__:  # for connections that are closed by now
        return

    def close() -> None:
        found = _all_of(loop)
        if found and not loop.is_running() and not loop.is_closed():
            for connection in found:
                loop.run_until_complete(connection.close())
        original()

    with contextlib.suppress(AttributeError):  # a loop that forbids it closes without us
        loop.close = close  # type: ignore[method-assign]


async def _close_all(loop: Loop) -> None:
    await asyncio.gather(*(connection.close() for connection in _all_of(loop)))


async def close(broker: Broker) -> None:
    """Close the running loop's *broker*, after its users have flushed."""
    for connection in _all_of(asyncio.get_running_loop()):
        if connection.broker is broker:
            await connection.close()
            return
    await broker.close()


def reset() -> None:
    """Make the next call read the settings again and open a new connection. For tests."""
    _forget_target()
    with _lock:
        for loop, by_target in _connections.items():
            _retired.setdefault(loop, []).extend(by_target.values())
        _connections.clear()
        retired = [] if _background is None else list(_retired.get(_background.loop, ()))
    for each in retired:
        # Of a test in memory: its loop outlives all tests, and would keep what they have stored
        if each.target is not None and each.target.options is None:
            asyncio.run_coroutine_threadsafe(each.close(), each.loop)


isolation.resets.append(reset)


# -- for those who do not keep one -------------------------------------------------------


async def call(action: Action[T], timeout: float | None = None) -> T:
    """Run *action* with a broker that is ready.

    Args:
        action: What to do.
        timeout: Seconds that it may take to become ready; None: see `Broker.wait_ready`.

    Raises:
        BrokerUnavailable: Not ready in time.
    """
    return await current().run(action, timeout)


def call_sync(action: Action[T], timeout: float | None = None, *, name: str = "") -> T:
    """Run *action* with a broker that is ready, and wait for it.

    Args:
        action: What to do.
        timeout: Seconds; None: no more than the broker's own deadlines.
        name: The function that a caller should have awaited in a loop, without its ``a``.

    Raises:
        RuntimeError: In a running event loop, which it would block.
        BrokerUnavailable: Not ready in time.
    """
    if name:
        refuse_in_loop(f"{name}()", f"use `await a{name}(...)`")
    refuse_in_loop()
    connection = background()
    return connection.call_sync(lambda: connection.run(action), timeout)


def call_soon(action: Action[T]) -> concurrent.futures.Future[T]:
    """Run *action* with a broker that is ready; return at once, from wherever it is called.

    Returns:
        Its result, or `BrokerUnavailable`.
    """
    connection = background()
    return asyncio.run_coroutine_threadsafe(connection.run(action), connection.loop)


def refuse_in_loop(
    call: str = "this call", instead: str = "await the asynchronous function"
) -> None:
    """Refuse a synchronous call that would block a running event loop.

    Args:
        call: What was called.
        instead: What to do in a loop.

    Raises:
        RuntimeError: It would.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{call} would block the event loop; {instead}")


# -- fork and exit -----------------------------------------------------------------------


def on_fork(callback: Callable[[], None]) -> None:
    """Call *callback* in every child process right after the fork."""
    _fork_callbacks.append(callback)


def _after_fork() -> None:
    global _background, _lock
    _lock = threading.Lock()  # another thread may have held it
    for loop in {*_connections, *_retired}:
        for connection in _all_of(loop):
            connection.broker.forget_inherited()
    _connections.clear()
    _retired.clear()
    _background = None
    for callback in _fork_callbacks:
        callback()
    _register_exit()  # multiprocessing clears its finalizers in the child


def stop_background() -> None:
    """Close the background connections and end their thread; the next call starts another."""
    global _background
    running, _background = _background, None
    if running is not None:
        running.stop(lambda: _close_all(running.loop))


def _register_exit() -> None:
    # multiprocessing's children end without atexit
    multiprocessing.util.Finalize(None, stop_background, exitpriority=10)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(stop_background)
_register_exit()
