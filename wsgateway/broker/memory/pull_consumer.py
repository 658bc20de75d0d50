"""What takes messages in memory, as the NATS broker's pull consumer: as far as there is room."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["MemoryPullConsumer", "Waiting", "taking"]


@dataclass
class Waiting:
    """A message that stays until somebody acknowledges it.

    Attributes:
        payload: Bytes.
        sequence: Its offset.
        deliveries: How often it was taken.
        due: Monotonic time from which on it may be taken.
    """

    payload: bytes
    sequence: int
    deliveries: int = 0
    due: float = 0.0


W = TypeVar("W", bound=Waiting)

taking = threading.RLock()
"""Held while messages are stored, taken or removed: each thread may have a broker on one store."""


class MemoryPullConsumer(Generic[W]):
    """Takes messages in the loop in which it was made.

    Args:
        waiting: Returns the messages, oldest first.
        room: Says how many may come now.
        on_message: Called with each message that was taken.
        ack_wait: Seconds after which a message is due again.
    """

    def __init__(
        self,
        waiting: Callable[[], Iterable[W]],
        room: Callable[[], int],
        on_message: Callable[[W], None],
        ack_wait: float,
    ) -> None:
        self._waiting = waiting
        self._room = room
        self._on_message = on_message
        self._ack_wait = ack_wait
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def look(self, delay: float = 0.0) -> None:
        """Take messages after *delay* seconds, and from then on as they become due."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay, self._take)

    def stop(self) -> None:
        """Take no more. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _take(self) -> None:
        room, now = max(0, self._room()), time.monotonic()
        with taking:
            taken = list(islice((each for each in self._waiting() if each.due <= now), room))
            for message in taken:
                message.due = now + self._ack_wait
                message.deliveries += 1
        for message in taken:
            self._on_message(message)
        with taking:
            due = min((message.due for message in self._waiting()), default=None)
        if due is not None and self._room() > 0:
            self.look(max(0.0, due - time.monotonic()))
