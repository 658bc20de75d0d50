"""What may be on its way to one reader, whatever it reads. Pure."""

from __future__ import annotations

from itertools import islice
from typing import Protocol

__all__ = ["WINDOW_BYTES", "Credit"]

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in flight to one socket; a single larger message still goes."""


class Waiting(Protocol):
    """A window that wants a fetch, and has no room for one."""

    def look_again(self) -> None:
        """There may be room now."""


class Credit:
    """What one reader may have in flight, shared by its windows.

    Each window that has messages in flight may have an equal share. One that has none gets one
    message at once, and more as what is above the others' shares is confirmed. So the sum is
    *size*, and one more for each window at most.

    Args:
        size: Messages in flight.
        each: Messages in flight in one window; None: as many as in all.
    """

    __slots__ = ("_waiting", "busy", "bytes", "each", "messages", "size")

    def __init__(self, size: int, each: int | None = None) -> None:
        self.size = size
        self.each = size if each is None else min(each, size)
        self.messages = 0
        """In flight, or being fetched."""
        self.bytes = 0
        """In flight; `WINDOW_BYTES`, unless the last message of a window is larger."""
        self.busy = 0
        """Windows that have such messages."""
        self._waiting: dict[Waiting, None] | None = None  # in this order; made at the first one

    def room(self, messages: int, size: int) -> int:
        """Return how many more messages a window may have that has *messages* of *size* bytes."""
        free = self.size - self.messages
        if not messages:
            share = min(self.size // (self.busy + 1), self.each)
            return max(min(share, free), 1) if self.bytes < WINDOW_BYTES else 1
        if self.bytes >= WINDOW_BYTES or size * self.busy >= WINDOW_BYTES:
            return 0
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
                self._waiting.pop(window, None)
                window.look_again()
