"""One event loop's connection to the broker, and how other loops and threads use it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wsgateway import counters
from wsgateway.broker.base import Broker
from wsgateway.broker.native import wait_for
from wsgateway.broker.subscriptions import Subscriptions
from wsgateway.broker.targets import Target
from wsgateway.exceptions import BrokerUnavailable, reason_of
from wsgateway.supervision import share

__all__ = ["Action", "Connection", "Loop"]

T = TypeVar("T")
Action = Callable[[Broker], Awaitable[T]]
Loop = asyncio.AbstractEventLoop
Hook = Callable[[], Awaitable[None]]

logger = logging.getLogger("wsgateway.broker")

WAIT_EVERY = 64
"""Calls of `publish_soon` of which one has to wait."""


class Connection:
    """One loop's broker, and what its users share.

    Args:
        loop: Where it lives.
        broker: Not opened.
        target: Where it leads; None: nobody asks for it.
        is_background: Whether it is the background thread's.
        forget: Called before it closes, so that nobody gets it any more.
    """

    def __init__(
        self,
        loop: Loop,
        broker: Broker,
        *,
        target: Target | None = None,
        is_background: bool = False,
        forget: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        self.loop = loop
        self.is_background = is_background
        self.broker = broker
        self.bus = broker.bus
        self.subjects = broker.subjects
        self.subscriptions = Subscriptions(broker)
        """What reads inboxes here: sockets and members of durable groups."""
        self.kept = False
        """Whether somebody closes it at the end of what the loop is there for."""
        self.attached: dict[type[Any], Any] = {}
        """What others keep with it, by type."""
        self._hooks: list[tuple[Hook, Callable[[], None]]] = []
        self.target = target
        self._forget = forget
        self._opening: asyncio.Task[None] | None = None
        self._soon = itertools.count(1)
        self._handed: deque[tuple[str, bytes, str]] = deque()  # by other threads, to publish
        self._taking = False  # whether `_publish_handed` is about to run

    @property
    def usable(self) -> bool:
        """Whether its loop is running and the connection is not closed."""
        return self.loop.is_running() and not self.broker.closed

    async def open(self) -> None:
        """Start connecting; in its loop. Idempotent."""
        if self._opening is None:
            self._opening = share(self.broker.open(), "wsgateway-open")
        await asyncio.shield(self._opening)

    async def connect(self) -> None:
        """Begin to connect if nobody has; wait until connected. In its loop.

        Raises:
            BrokerUnavailable: Not within ``WSGATEWAY_BROKER_TIMEOUT``.
        """
        if not self.bus.is_open:
            await self.open()
            await self.bus.ready()

    async def run(self, action: Action[T], timeout: float | None = None) -> T:
        """Run *action* once the broker is ready; from any loop.

        Args:
            action: What to do.
            timeout: Seconds that it may take to become ready; None: see `Broker.wait_ready`.

        Raises:
            BrokerUnavailable: Not ready in time.
        """

        async def run() -> T:
            await self.open()
            await self.broker.wait_ready(timeout)
            return await action(self.broker)

        return await self.call(run)

    async def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the connection's loop; from any loop."""
        if asyncio.get_running_loop() is self.loop:
            return await function()
        future = asyncio.run_coroutine_threadsafe(function(), self.loop)
        return await asyncio.wrap_future(future)

    def call_sync(
        self, function: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> T:
        """Run a coroutine in the connection's loop; from a thread without a loop."""
        return wait_for(asyncio.run_coroutine_threadsafe(function(), self.loop), timeout)

    def publish_soon(self, subject: str, data: bytes, reply: str) -> bool:
        """Publish on the bus in the connection's loop, without waiting; from any thread.

        What one thread hands over goes out in its order.

        Args:
            subject: Where.
            data: At most the bus' `max_payload`.
            reply: Where answers go; "" for none.

        Returns:
            False if it is not connected, or the caller must wait this time, so that it cannot
            run ahead of the connection; then nothing was done.
        """
        if not self.bus.is_open or next(self._soon) % WAIT_EVERY == 0:
            return False
        self._handed.append((subject, data, reply))
        if not self._taking:
            self._taking = True
            self.loop.call_soon_threadsafe(self._publish_handed)
        return True

    def _publish_handed(self) -> None:
        self._taking = False  # before looking: what is appended after the look calls again
        while self._handed:
            subject, data, reply = self._handed.popleft()
            try:
                self.bus.publish(subject, data, reply=reply)
            except BrokerUnavailable as exc:
                counters.layer.dropped_unsent += 1
                text = "did not send a message on %s: %s"
                logger.info(text, subject, reason_of(exc), extra={"subject": subject})
        self.bus.send_now()

    def on_close(self, before: Hook, after: Callable[[], None]) -> None:
        """Await *before* while it is still connected, and call *after* once it is closed."""
        self._hooks.append((before, after))

    async def close(self) -> None:
        """Flush and disconnect; in its loop. Idempotent."""
        self._forget(self)
        hooks, self._hooks = self._hooks, []
        for before, _ in hooks:
            try:
                await before()
            except Exception:  # the connection ends all the same
                logger.exception("a hook failed while the connection was being closed")
        self.subscriptions.close()
        await self.broker.close()
        for _, after in hooks:
            after()
