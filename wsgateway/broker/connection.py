"""One event loop's connection to the broker, and how other loops and threads use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wsgateway.broker.base import Broker
from wsgateway.broker.native import wait_for
from wsgateway.broker.subscriptions import Subscriptions
from wsgateway.broker.targets import Target
from wsgateway.supervision import share

__all__ = ["Action", "Connection", "Loop"]

T = TypeVar("T")
Action = Callable[[Broker], Awaitable[T]]
Loop = asyncio.AbstractEventLoop
Hook = Callable[[], Awaitable[None]]


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

    @property
    def usable(self) -> bool:
        """Whether its loop is running and the connection is not closed."""
        return self.loop.is_running() and not self.broker.closed

    async def open(self) -> None:
        """Start connecting; in its loop. Idempotent."""
        if self._opening is None:
            self._opening = share(self.broker.open(), "wsgateway-open")
        await asyncio.shield(self._opening)

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

    def on_close(self, before: Hook, after: Callable[[], None]) -> None:
        """Await *before* while it is still connected, and call *after* once it is closed."""
        self._hooks.append((before, after))

    async def close(self) -> None:
        """Flush and disconnect; in its loop. Idempotent."""
        self._forget(self)
        hooks, self._hooks = self._hooks, []
        for before, _ in hooks:
            await before()
        self.subscriptions.close()
        await self.broker.close()
        for _, after in hooks:
            after()
