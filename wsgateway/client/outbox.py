"""What a client has sent and the gateway has not confirmed. Pure.

The class of the same purpose in ``wsgateway.js`` behaves alike: ``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import encode_client_message

__all__ = ["ClientOutbox"]


@dataclass(slots=True)
class _Entry:
    text: str
    size: int
    sent: bool = False  # on the present connection


class ClientOutbox:
    """What was sent and is not confirmed, in order.

    Args:
        limit: Messages that may wait; the caller checks `full`.
        window: Messages on the wire without confirmation.
    """

    __slots__ = ("_entries", "_in_flight", "_limit", "_window")

    def __init__(self, limit: int, window: int) -> None:
        self._limit = limit
        self._window = window
        self._entries: dict[str, _Entry] = {}  # by id, oldest first
        self._in_flight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: object) -> bool:
        return id in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def full(self) -> bool:
        """Whether no further message may wait."""
        return len(self._entries) >= self._limit

    def add(self, id: str, frame: Frame, *, request: bool = False) -> None:
        """Append a message; *request* asks the service for a reply."""
        text = encode_client_message(id, frame, request=request)
        self._entries[id] = _Entry(text, len(frame.payload))

    def remove(self, id: str) -> None:
        """Forget a message: it is confirmed, refused, or given up. Idempotent."""
        entry = self._entries.pop(id, None)
        if entry is not None and entry.sent:
            self._in_flight -= 1

    def clear(self) -> None:
        """Forget every message."""
        self._entries.clear()
        self._in_flight = 0

    def connecting(self) -> None:
        """Begin a connection, which has seen none of them."""
        self._in_flight = 0
        for entry in self._entries.values():
            entry.sent = False

    def larger_than(self, size: int) -> list[tuple[str, int]]:
        """Return id and size of messages above *size* bytes."""
        return [(id, entry.size) for id, entry in self._entries.items() if entry.size > size]

    @property
    def due(self) -> bool:
        """Whether there is a frame to write now."""
        return self._in_flight < min(self._window, len(self._entries))

    def next_frame(self) -> str | None:
        """Return the oldest frame to write now, which then counts as sent; None: not now."""
        if not self.due:
            return None
        entry = next(entry for entry in self._entries.values() if not entry.sent)
        entry.sent = True
        self._in_flight += 1
        return entry.text
