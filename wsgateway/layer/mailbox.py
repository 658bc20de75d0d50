"""One channel's messages in this process: bounded, safe to cancel, safe between threads.

A waiter is only told that there may be something; it takes the message itself when it runs. So
a reader that is cancelled has not taken anything, and no message is handed to one that has left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from wsgateway import counters

__all__ = ["COMING_VALID", "Mailbox"]

T = TypeVar("T")

COMING_VALID = 1.0
"""Seconds after which a message that was announced and has not come counts as lost."""


class Mailbox(Generic[T]):
    """Messages of one channel, oldest first.

    One thread puts; any loop of any thread takes. There is no lock: a taker registers itself
    before it looks a second time, a putter appends before it looks for takers.

    Args:
        capacity: How many messages it holds at most.
        expired: Says whether a message is too old to be given out.
    """

    __slots__ = (
        *("_coming", "_expired", "_waiters"),
        *("capacity", "queue", "reading", "used"),
    )

    def __init__(self, capacity: int, expired: Callable[[T], bool]) -> None:
        self.capacity = capacity
        self.queue: deque[T] = deque()
        self._coming: deque[float] = deque()  # when each message was announced
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._expired = expired
        self.reading = 0
        """How many readers wait now; they count themselves."""
        self.used = 0.0
        """When something was last taken, or a reader left."""

    @property
    def waiting(self) -> int:
        """How many readers wait; what the others have is on its way to them."""
        return len(self._waiters)

    def put(self, item: T) -> bool:
        """Append *item*; return False if the mailbox is full of what has not expired."""
        queue = self.queue
        if len(queue) >= self.capacity:
            self.purge()
            if len(queue) >= self.capacity:
                return False
        queue.append(item)
        if self._waiters:
            self._wake()
        return True

    def put_always(self, item: T) -> None:
        """Append *item*, whatever the capacity; its owner bounds the number."""
        self.queue.append(item)
        if self._waiters:
            self._wake()

    def is_full(self) -> bool:
        """Say whether `put` would refuse."""
        if len(self.queue) < self.capacity:
            return False
        self.purge()
        return len(self.queue) >= self.capacity

    def has_room(self) -> bool:
        """Say whether one more fits beside what is here and what is announced."""
        if len(self.queue) + len(self._coming) < self.capacity:
            return True
        self.purge()
        lost_before = monotonic() - COMING_VALID
        with contextlib.suppress(IndexError):  # the last one came just now
            while self._coming and self._coming[0] < lost_before:
                self._coming.popleft()
        return len(self.queue) + len(self._coming) < self.capacity

    def announce(self) -> None:
        """Keep room for a message that this process sends now. From any thread."""
        self._coming.append(monotonic())

    def came(self) -> None:
        """Give up the room that was kept for a message: it is here, or was not sent."""
        with contextlib.suppress(IndexError):  # it took too long
            self._coming.popleft()

    def take(self) -> T | None:
        """Return the next message; None if there is none."""
        if self.queue:
            try:
                item = self.queue.popleft()
            except IndexError:  # a taker in another thread was faster
                return None
            self.used = monotonic()
            return item
        return None

    def purge(self) -> int:
        """Drop expired messages from the front; return how many."""
        count = 0
        while self.queue and self._expired(self.queue[0]):
            try:
                item = self.queue.popleft()
            except IndexError:  # a taker in another thread was faster
                break
            if not self._expired(item):  # it took the expired one, and this is the next
                self.queue.appendleft(item)
                break
            count += 1
        counters.layer.dropped_expired += count
        return count

    def remove(self, unwanted: Callable[[T], bool]) -> None:
        """Drop the messages that *unwanted* names, for the thread that puts."""
        for item in list(self.queue):
            if unwanted(item):
                with contextlib.suppress(ValueError):  # taken in another thread
                    self.queue.remove(item)

    async def wait(self) -> None:
        """Return once there may be something to take, or `wake_all` was called.

        A reader that ends without taking, cancelled for example, must call `pass_on`.
        """
        queue = self.queue
        if queue:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if queue:  # put in another thread between the two looks
            self._leave(waiter)
            return
        try:
            await waiter
        except BaseException:
            self._leave(waiter)
            self.pass_on()
            raise

    def pass_on(self) -> None:
        """Wake another waiter if there is something: what woke this one is the next one's."""
        if self.queue and self._waiters:
            self._wake()

    def end_reading(self) -> None:
        """Record that a reader, counted in `reading`, has left, with a message or without."""
        self.reading -= 1
        self.used = monotonic()
        self.pass_on()

    def wake_all(self) -> None:
        """Make every `wait` return."""
        for _ in range(len(self._waiters)):
            self._wake()

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        while True:
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                return
            loop = waiter.get_loop()
            if loop is _running_loop():
                if not waiter.done():
                    waiter.set_result(None)
                    return
                continue
            try:
                loop.call_soon_threadsafe(_release, waiter, self)
            except RuntimeError:  # its loop is closed; nobody waits there any more
                continue
            return


def _release(waiter: asyncio.Future[None], mailbox: Mailbox[T]) -> None:
    if not waiter.done():
        waiter.set_result(None)
    else:
        mailbox.pass_on()


_running_loop = asyncio._get_running_loop
