"""What may be on its way to one reader, whatever it reads. Pure."""

from __future__ import annotations

__all__ = ["WINDOW_BYTES", "Credit"]

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in flight to one socket; a single larger message still goes."""


class Credit:
    """What one reader may have in flight, shared by its windows.

    Each window that has messages in flight may have an equal share. One that has none gets one
    message at once, and more as what is above the others' shares is confirmed. So the sum is
    *size*, and one more for each window at most.

    Args:
        size: Messages in flight.
    """

    __slots__ = ("busy", "bytes", "messages", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.messages = 0
        """In flight, or being fetched."""
        self.bytes = 0
        """In flight; `WINDOW_BYTES`, unless the last message of a window is larger."""
        self.busy = 0
        """Windows that have such messages."""

    def room(self, messages: int, size: int) -> int:
        """Return how many more messages a window may have that has *messages* of *size* bytes."""
        free = self.size - self.messages
        if not messages:
            share = self.size // (self.busy + 1)
            return max(min(share, free), 1) if self.bytes < WINDOW_BYTES else 1
        if self.bytes >= WINDOW_BYTES or size * self.busy >= WINDOW_BYTES:
            return 0
        return min(self.size // self.busy - messages, free)
