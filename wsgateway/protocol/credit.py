"""What may be on its way to one reader, whatever it reads. Pure."""

from __future__ import annotations

from itertools import islice
from typing import Protocol

__all__ = ["WINDOW_BYTES", "Credit"]

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in flight to one socket, and one message more: so a larger one goes, too."""


class Waiting(Protocol):
    """A window that wants a fetch, and has no room for one."""

    def look_again(self) -> None:
        """There may be room now: take it, if only in advance."""


class Credit:
    """What one reader may have in flight, shared by its windows.

    Each window that has messages in flight may have an equal share. One that has none gets one
    message at once, and more as what is above the others' shares is confirmed. So the sum is
    *size*, and one more for each window at most.

    Bytes are kept more strictly, as messages may be large. No window has more of them than it
    leaves free, and once `WINDOW_BYTES` are used up, even those that have nothing wait for their
    turn, in the order in which they came.

    Args:
        size: Messages in flight.
        each: Messages in flight in one window; None: as many as in all.
    """

    __slots__ = ("_waiting", "busy", "bytes", "each", "held", "messages", "size")

    def __init__(self, size: int, each: int | None = None) -> None:
        self.size = size
        self.each = size if each is None else min(each, size)
        self.messages = 0
        """In flight, or being fetched."""
        self.bytes = 0
        """In flight, or promised to a window whose turn it is: less than `WINDOW_BYTES`, without
        the message that came last."""
        self.held = 0
        """Bytes of live messages that wait for the end of a fetch; `WINDOW_BYTES` at most."""
        self.busy = 0
        """Windows that have such messages."""
        self._waiting: dict[Waiting, None] | None = None  # in this order; made at the first one

    def room(self, messages: int, size: int) -> int:
        """Return how many more messages a window may have that has *messages* of *size* bytes."""
        if size + self.bytes >= WINDOW_BYTES:
            return 0
        free = self.size - self.messages
        if not messages:
            share = min(self.size // (self.busy + 1), self.each)
            return max(min(share, free), 1)
        return min(min(self.size // self.busy, self.each) - messages, free)

    def wait(self, window: Waiting) -> None:
        """Have *window* look again when something has been given back."""
        if self._waiting is None:
            self._waiting = {}
        self._waiting[window] = None

    def leave(self, window: Waiting) -> None:
        """Undo `wait`. Idempotent."""
        if self._waiting:
            self._waiting.pop(window, None)

    def given_back(self) -> None:
        """Let as many windows look again as there is room for, those first that waited longest."""
        if self._waiting:
            count = max(self.size - self.messages, 1)
            for window in list(islice(self._waiting, count)):
                if self.bytes >= WINDOW_BYTES:
                    break
                self._waiting.pop(window, None)
                window.look_again()
