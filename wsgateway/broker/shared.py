"""One request for many callers that ask the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from wsgateway.supervision import share

__all__ = ["Shared"]

T = TypeVar("T")


class _Round(Generic[T]):
    """A request that has not begun, or is under way, and how many wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiters = 0


class Shared(Generic[T]):
    """Makes one request for all callers that come during the previous one.

    So no caller gets an answer from before its call. May be cancelled at any point: a request
    that nobody waits for any more is cancelled too.

    Args:
        ask: Makes the request.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()  # held while a request is under way
        self._next: _Round[T] | None = None  # the one that has not begun

    async def __call__(self) -> T:
        """Return the answer to a request that begins after this call."""
        current = self._next
        if current is None or current.task.done():
            current = self._next = _Round(share(self._run(), "wsgateway-shared"))
        current.waiters += 1
        try:
            return await asyncio.shield(current.task)
        finally:
            current.waiters -= 1
            if not current.waiters and not current.task.done():
                current.task.cancel()
                if self._next is current:
                    self._next = None

    async def _run(self) -> T:
        async with self._turn:
            self._next = None
            return await self._ask()
