"""When to acknowledge what was processed. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from wsgateway.client.inbox import ClientInbox
from wsgateway.protocol.v1 import encode_client_ack

__all__ = ["Acks"]


class _Log(NamedTuple):
    """The inbox, or a topic, of which something was processed."""

    inbox: ClientInbox
    topic: str | None


class Acks:
    """The acknowledgements of a client: of the inbox and its topics, all at the same time.

    Args:
        every: Acknowledge after this many messages at the latest.
        interval: Acknowledge after this many seconds at the latest.
    """

    __slots__ = ("_due_at", "_every", "_frames", "_interval", "_logs", "window")

    def __init__(self, every: int, interval: float) -> None:
        self._every = every
        self._interval = interval
        self.window = math.inf
        """Messages that the gateway sends without acknowledgement."""
        self._logs: dict[int, _Log] = {}  # by number: 0 is the inbox
        self._due_at = math.inf  # when to acknowledge these
        self._frames: deque[str] = deque()  # to write

    def clear(self) -> None:
        """Forget all: the connection has ended, and the next one delivers again."""
        self._logs.clear()
        self._due_at = math.inf
        self._frames.clear()

    def forget(self, number: int) -> None:
        """Do not acknowledge messages of the log *number*. Idempotent."""
        self._logs.pop(number, None)

    def note(
        self,
        inbox: ClientInbox,
        now: float,
        *,
        number: int = 0,
        topic: str | None = None,
    ) -> None:
        """Acknowledge soon what was processed of *inbox*, if anything was.

        Args:
            inbox: Whose messages were processed.
            now: The value of the clock.
            number: Of the log; acknowledgements are in this order.
            topic: Its name; None: the client's inbox.
        """
        if not inbox.unacked:
            return
        self._logs[number] = _Log(inbox, topic)
        # At most *every* logs: each has something to acknowledge
        if sum(log.inbox.unacked for log in self._logs.values()) >= self._limit:
            self._due_at = now
        elif self._due_at == math.inf:
            self._due_at = now + self._interval

    @property
    def _limit(self) -> float:
        return min(self._every, (self.window + 1) // 2)

    @property
    def write_at(self) -> float:
        """When `next_frame` has a frame; ``-inf``: now, ``inf``: not until something changes."""
        return -math.inf if self._frames else self._due_at

    def next_frame(self, now: float) -> str | None:
        """Return the next acknowledgement to write; None if none is due."""
        if self._due_at <= now:
            self._frames.extend(self.take())
        return self._frames.popleft() if self._frames else None

    def take(self) -> list[str]:
        """Return the acknowledgements of all that was processed, due or not."""
        frames = []
        for _, (inbox, topic) in sorted(self._logs.items()):
            if (position := inbox.take_ack()) is not None:
                frames.append(encode_client_ack(position.offset, position.epoch, topic))
        self._logs.clear()
        self._due_at = math.inf
        return frames
