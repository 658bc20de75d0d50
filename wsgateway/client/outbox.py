"""What a client sends and the gateway has not confirmed. Pure.

Behaves like the class ``Outbox`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import encode_client_message

__all__ = ["ClientOutbox"]


@dataclass(slots=True)
class _Entry:
    text: str
    size: int
    sent: bool = False  # on the current connection


class ClientOutbox:
    """Messages that are not confirmed, in order.

    Args:
        limit: Most messages that may wait; the caller checks `full`.
        window: Most messages on the wire without confirmation.
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
        """Whether no more messages may wait."""
        return len(self._entries) >= self._limit

    def add(
        self,
        id: str,
        frame: Frame,
        *,
        request: bool = False,
        trace: Mapping[str, str] | None = None,
    ) -> None:
        """Append a message; *request* asks the service to reply, *trace* is its trace context."""
        text = encode_client_message(id, frame, request=request, trace=trace)
        self._entries[id] = _Entry(text, len(frame.payload))

    def remove(self, id: str) -> None:
        """Forget a message that is confirmed, refused, or given up. Idempotent."""
        entry = self._entries.pop(id, None)
        if entry is not None and entry.sent:
            self._in_flight -= 1

    def clear(self) -> None:
        """Forget every message."""
        self._entries.clear()
        self._in_flight = 0

    def connecting(self) -> None:
        """Start a connection: every message must be sent on it."""
        self._in_flight = 0
        for entry in self._entries.values():
            entry.sent = False

    def larger_than(self, size: int) -> list[tuple[str, int]]:
        """Return id and size of each message above *size* bytes."""
        return [(id, entry.size) for id, entry in self._entries.items() if entry.size > size]

    @property
    def due(self) -> bool:
        """Whether there is a frame to write now."""
        return self._in_flight < min(self._window, len(self._entries))

    def next_frame(self) -> str | None:
        """Return the oldest frame to write now, and count it as sent; None if none is due."""
        if not self.due:
            return None
        entry = next(entry for entry in self._entries.values() if not entry.sent)
        entry.sent = True
        self._in_flight += 1
        return entry.text
