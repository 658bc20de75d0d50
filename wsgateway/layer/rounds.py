"""One round trip for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Rounds"]

T = TypeVar("T")


class Rounds(Generic[T]):
    """Shares the runs of a function; one run at a time, in one loop.

    A run that began before the call may have missed what the caller did just before, so a caller
    always gets the result of a run that begins after the call.

    Args:
        run: What to share.
        name: Of the tasks.
    """

    def __init__(self, run: Callable[[], Awaitable[T]], name: str) -> None:
        self._run = run
        self._name = name
        self._next: asyncio.Task[T] | None = None  # has not begun: callers may still join it
        self._last: asyncio.Task[T] | None = None  # has begun

    async def join(self) -> T:
        """Return what a run returns that begins from now on; raise what it raises.

        May be cancelled: the run goes on for the others.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._last), name=self._name)
            self._next.add_done_callback(_look)
        return await asyncio.shield(self._next)

    async def _round(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait({before})
        self._last, self._next = self._next, None
        return await self._run()


def _look(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()  # all who waited for it may have been cancelled
