"""The broker for code that is in no gateway: views, tasks, commands, threads, forked workers.

A long-lived event loop has a connection of its own; everything else shares the one of the
process's background thread, see `wsgateway.layer.loops`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from django.core.signals import setting_changed

from wsgateway.broker import get_broker, known_broker
from wsgateway.broker.base import Broker
from wsgateway.broker.nats import options_from_settings
from wsgateway.conf import settings
from wsgateway.layer.loops import Node, Target, background_node, current_node

__all__ = ["call", "call_soon", "call_sync", "refuse_in_loop"]

T = TypeVar("T")
Action = Callable[[Broker], Awaitable[T]]

_target: Target | None = None


def _current_target() -> Target:
    global _target
    if _target is None:
        _target = Target(options_from_settings(settings), settings.PREFIX)
    return _target


def _forget_target(**kwargs: Any) -> None:
    """Read the settings again after a test has changed them."""
    global _target
    _target = None


setting_changed.connect(_forget_target)


async def call(action: Action[T], timeout: float | None = None) -> T:
    """Run *action* with a broker that is ready.

    Args:
        action: What to do.
        timeout: Seconds that it may take to become ready; None: see `Broker.wait_ready`.

    Raises:
        BrokerUnavailable: Not ready in time.
    """
    broker = get_broker() if settings.BROKER == "memory" else known_broker()
    if broker is not None:  # a gateway's loop has one already
        await broker.open()
        await broker.wait_ready(timeout)
        return await action(broker)
    node = current_node(_current_target())
    return await node.call(lambda: _run(node, action, timeout))


def call_sync(action: Action[T], timeout: float | None = None) -> T:
    """Run *action* with a broker that is ready, and wait for it.

    Args:
        action: What to do.
        timeout: Seconds; None: no more than the broker's own deadlines.

    Raises:
        RuntimeError: In a running event loop, which it would block.
        BrokerUnavailable: Not ready in time.
    """
    refuse_in_loop()
    if settings.BROKER == "memory":
        return asyncio.run(call(action))
    node = background_node(_current_target())
    return node.call_sync(lambda: _run(node, action), timeout)


def call_soon(action: Action[T]) -> concurrent.futures.Future[T]:
    """Run *action* with a broker that is ready; return at once, from wherever it is called.

    Returns:
        Its result, or `BrokerUnavailable`.
    """
    if settings.BROKER == "nats":
        node = background_node(_current_target())
        return asyncio.run_coroutine_threadsafe(_run(node, action), node.loop)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        done.set_result(asyncio.run(call(action)))
        return done
    return asyncio.run_coroutine_threadsafe(call(action), loop)


def refuse_in_loop() -> None:
    """Refuse a synchronous call that would block a running event loop.

    Raises:
        RuntimeError: It would.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("this call would block the event loop; await the asynchronous one")


async def _run(node: Node, action: Action[T], timeout: float | None = None) -> T:
    await node.ready(timeout)
    await node.broker.wait_ready(timeout)
    return await action(node.broker)
