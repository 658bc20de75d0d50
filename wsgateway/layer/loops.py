"""Event loop to connection: one node per long-lived loop, one background loop for the rest.

`async_to_sync` in a plain thread makes a loop for each call; a connection for each would cost
more than the call, and leak. Such loops, and synchronous callers, share the node of a
background thread. After ``fork()`` the child starts with no node at all.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing.util
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

from asgiref.sync import AsyncToSync

from wsgateway.broker import embedded  # noqa: F401 - so that its server outlives our connections
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.link import LinkOptions, LinkState, new_inbox
from wsgateway.broker.nats.streams import wanted_streams
from wsgateway.conf import settings
from wsgateway.declared import declared_services
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer.blobs import Blobs
from wsgateway.layer.fullness import FullChannels
from wsgateway.layer.native import start_native_thread, wait_for
from wsgateway.layer.propagation import Propagation
from wsgateway.subjects import Subjects

__all__ = [
    "Node",
    "Target",
    "background_node",
    "current_node",
    "full_channels",
    "is_short_lived",
    "on_fork",
]

logger = logging.getLogger("wsgateway.layer")

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

EXIT_TIMEOUT = 2.0
"""Seconds that the end of the process may wait for what is still to be sent."""
YIELD_EVERY = 64
"""Publishes after which the publisher lets the connection write."""


class User(Protocol):
    """A layer that uses a node."""

    async def node_closing(self, node: Node) -> None:
        """Give back what *node* has fetched, as long as it is connected."""

    def node_closed(self, node: Node) -> None:
        """Record that *node* is closed."""


class Target(NamedTuple):
    """What a node connects to; nodes are shared by all layers of a loop with the same one."""

    options: LinkOptions
    prefix: str


class Node:
    """One loop's connection.

    Args:
        loop: Where it lives; every method but `call` must be called there.
        target: Where it connects to.
        is_background: True for the background thread's.
    """

    def __init__(self, loop: Loop, target: Target, *, is_background: bool) -> None:
        self.loop = loop
        self.is_background = is_background
        self.subjects = Subjects(target.prefix)
        specs = wanted_streams(self.subjects, settings)
        self.broker = NatsBroker(target.options, self.subjects, specs, declared=declared_services())
        self.blobs = Blobs(self.broker)
        self.link = self.broker.link
        self.publish = self.link.publish
        self.notices = _notices
        """Where owners of channels answer what this process sends to them."""
        self.link.subscribe(self.notices, _on_notice)
        self._propagation = Propagation(self.link, self.subjects)
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        """The layers that share it."""
        self._target = target
        self._opening: asyncio.Task[None] | None = None
        self._published = 0  # since the last yield
        self._soon = itertools.count(1)
        self._handed: deque[tuple[str, bytes, str]] = deque()  # by other threads, to publish
        self._taking = False  # whether `_take_handed` is about to run

    @property
    def usable(self) -> bool:
        """Whether its loop runs now, and the connection is kept up."""
        return self.loop.is_running() and self.link.state is not LinkState.CLOSED

    async def ready(self, timeout: float | None = None) -> None:
        """Connect if that is still to be done; wait until connected.

        Args:
            timeout: Seconds; None: ``WSGATEWAY_BROKER_TIMEOUT``.

        Raises:
            BrokerUnavailable: Not within the timeout.
        """
        if self._opening is None:
            self._opening = self.loop.create_task(self.broker.open())
        if not self.link.is_open:
            await asyncio.shield(self._opening)
            await self.link.ready(timeout)

    async def in_effect(self) -> None:
        """Return once the subscriptions made here are in effect, wherever somebody sends.

        If the connection is lost, waits until it is back: the subscriptions are, too.

        Raises:
            BrokerUnavailable: Not within the timeout.
        """
        try:
            await self._propagation.complete()
        except BrokerUnavailable:
            await self.ready()
            await self._propagation.complete()

    def is_breathless(self) -> bool:
        """Say whether to call `breathe`; ask after each publish."""
        self._published += 1
        return self._published >= YIELD_EVERY

    def publish_soon(self, subject: str, data: bytes, reply: str) -> bool:
        """Publish in the node's loop, without waiting; from any thread, in its order.

        Args:
            subject: Where.
            data: At most the link's `max_payload`.
            reply: Where answers go; "" for none.

        Returns:
            False if it is not connected, or the caller must wait this time, so that it cannot
            run ahead of the connection; then nothing was done.
        """
        if not self.link.is_open or next(self._soon) % YIELD_EVERY == 0:
            return False
        self._handed.append((subject, data, reply))
        if not self._taking:
            self._taking = True
            self.loop.call_soon_threadsafe(self._take_handed)
        return True

    def _take_handed(self) -> None:
        self._taking = False  # before looking: what is appended after the look calls again
        while self._handed:
            subject, data, reply = self._handed.popleft()
            self._published += 1
            try:
                self.publish(subject, data, b"", reply)
            except BrokerUnavailable as exc:
                logger.info("a message on %s was not sent: %s", subject, exc)
        self.link.send_now()

    async def breathe(self) -> None:
        """Let the connection write; wait while the server is far behind."""
        self._published = 0
        await asyncio.sleep(0)
        await self.link.pressure()

    async def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the node's loop; from any loop."""
        if asyncio.get_running_loop() is self.loop:
            return await function()
        future = asyncio.run_coroutine_threadsafe(function(), self.loop)
        return await asyncio.wrap_future(future)

    def call_sync(self, function: Callable[[], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        """Run a coroutine in the node's loop; from a thread without a loop."""
        return wait_for(asyncio.run_coroutine_threadsafe(function(), self.loop), timeout)

    async def close(self) -> None:
        """Send what is buffered and disconnect. Idempotent."""
        _forget(self)
        for user in list(self.users):
            await user.node_closing(self)
        await self.broker.close()
        for user in list(self.users):
            user.node_closed(self)
        if not _nodes:
            full_channels.until.clear()  # nobody here hears what becomes of them


class _Background:
    """A thread with a loop that lives as long as the process."""

    def __init__(self) -> None:
        self._ending = False
        self._started: concurrent.futures.Future[Loop] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        start_native_thread(self._run, "wsgateway-background")
        self.loop = wait_for(self._started)

    def _run(self) -> None:
        loop = (
            asyncio.new_event_loop()
        )  # here: gevent's sockets belong to the thread they are made in
        asyncio.set_event_loop(loop)
        self._started.set_result(loop)
        while not self._ending:
            try:
                loop.run_forever()
            except BaseException:  # SystemExit in a callback: every synchronous caller waits here
                logger.exception("the background loop stopped; restarting it")
        self._ended.set_result(None)

    def stop(self) -> None:
        """Close every node of the loop, then end the thread."""

        async def close() -> None:
            await asyncio.gather(*(node.close() for node in _nodes_of(self.loop)))

        with contextlib.suppress(Exception):
            wait_for(asyncio.run_coroutine_threadsafe(close(), self.loop), EXIT_TIMEOUT)
        self._ending = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        with contextlib.suppress(TimeoutError):
            wait_for(self._ended, EXIT_TIMEOUT)
            self.loop.close()


full_channels = FullChannels()
"""Other processes' channels that have no room, as far as this one has heard."""
_notices = new_inbox()  # all nodes listen: the one that has sent may be gone


def _on_notice(_subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
    if headers is None:  # otherwise it is the server's: nobody owns the channel
        full_channels.hear(data)


_lock = threading.Lock()
_nodes: dict[Loop, dict[Target, Node]] = {}
_background: _Background | None = None
_fork_callbacks: list[Callable[[], None]] = []


def _nodes_of(loop: Loop) -> list[Node]:
    return list(_nodes.get(loop, {}).values())


def _forget(node: Node) -> None:
    with _lock:
        nodes = _nodes.get(node.loop, {})
        if nodes.get(node._target) is node:
            del nodes[node._target]
            if not nodes:
                del _nodes[node.loop]


def is_short_lived(loop: Loop) -> bool:
    """Say whether *loop* was made by `async_to_sync` for one call."""
    return loop in AsyncToSync.loop_thread_executors


def current_node(target: Target) -> Node:
    """Return the running loop's node, or the background's if that loop is short-lived."""
    loop = asyncio.get_running_loop()
    if is_short_lived(loop):
        return background_node(target)
    return _node(loop, target, is_background=_is_background(loop))


def background_node(target: Target) -> Node:
    """Return the background thread's node; starts the thread at the first call."""
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
        background = _background
    return _node(background.loop, target, is_background=True)


def _is_background(loop: Loop) -> bool:
    return _background is not None and _background.loop is loop


def _node(loop: Loop, target: Target, *, is_background: bool) -> Node:
    with _lock:
        nodes = _nodes.get(loop)
        if nodes is None:
            for other in [other for other in _nodes if other.is_closed()]:
                del _nodes[other]
            nodes = _nodes[loop] = {}
            if not is_background:
                _close_nodes_with(loop)
        node = nodes.get(target)
        if node is None or node.link.state is LinkState.CLOSED:
            node = nodes[target] = Node(loop, target, is_background=is_background)
        return node


def _close_nodes_with(loop: Loop) -> None:
    """Make ``loop.close()`` close the loop's nodes first, so that no task is destroyed."""
    original = loop.close

    def close() -> None:
        nodes = _nodes_of(loop)
        if nodes and not loop.is_running() and not loop.is_closed():
            for node in nodes:
                loop.run_until_complete(node.close())
        original()

    with contextlib.suppress(AttributeError):  # a loop that forbids it closes without us
        loop.close = close  # type: ignore[method-assign]


def on_fork(callback: Callable[[], None]) -> None:
    """Call *callback* in every child process right after the fork."""
    _fork_callbacks.append(callback)


def _after_fork() -> None:
    global _background, _lock, _notices
    _lock = threading.Lock()  # another thread may have held it
    _notices = new_inbox()
    for nodes in _nodes.values():
        for node in nodes.values():
            node.link.forget_inherited()
    _nodes.clear()
    _background = None
    for callback in _fork_callbacks:
        callback()
    _register_exit()  # multiprocessing clears its finalizers in the child


def _stop_background() -> None:
    global _background
    background, _background = _background, None
    if background is not None:
        background.stop()


def _register_exit() -> None:
    # multiprocessing's children end without atexit
    multiprocessing.util.Finalize(None, _stop_background, exitpriority=10)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop_background)
_register_exit()
