"""What a client sends and the gateway has not confirmed. Pure.

Behaves like the class ``Outbox`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import encode_client_message

__all__ = ["ClientOutbox"]


@dataclass(slots=True)
class _Entry:
    number: int  # rises
    text: str
    size: int
    topic: str | None
    sent: bool = False  # on the current connection


class ClientOutbox:
    """Messages that are not confirmed, in order.

    Args:
        limit: Most messages that may wait; the caller checks `full`.
        window: Most messages on the wire without confirmation.
    """

    __slots__ = ("_blocked", "_count", "_entries", "_in_flight", "_limit", "_ready", "_window")

    def __init__(self, limit: int, window: int) -> None:
        self._limit = limit
        self._window = window
        self._entries: dict[str, _Entry] = {}  # by id, oldest first
        self._ready: dict[str, _Entry] = {}  # those that may be sent, oldest first
        self._blocked: dict[str, dict[str, _Entry]] = {}  # by topic: those that wait for it
        self._in_flight = 0
        self._count = 0  # numbers the messages

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
        topic: str | None = None,
    ) -> None:
        """Append a message.

        Args:
            id: Its id.
            frame: What to send.
            request: Whether the service is asked to reply.
            trace: The trace context in which it is sent.
            topic: To which topic; None: to the client's service.
        """
        self._count += 1
        text = encode_client_message(id, frame, request=request, trace=trace, topic=topic)
        entry = self._entries[id] = _Entry(self._count, text, len(frame.payload), topic)
        self._line_of(entry)[id] = entry

    def _line_of(self, entry: _Entry) -> dict[str, _Entry]:
        return self._ready if entry.topic is None else self._blocked.get(entry.topic, self._ready)

    def remove(self, id: str) -> None:
        """Forget a message that is confirmed, refused, or given up. Idempotent."""
        entry = self._entries.pop(id, None)
        if entry is None:
            return
        if entry.sent:
            self._in_flight -= 1
        else:
            del self._line_of(entry)[id]

    def clear(self) -> None:
        """Forget every message."""
        self._entries.clear()
        self.connecting(())

    def connecting(self, topics: Iterable[str]) -> None:
        """Start a connection: every message must be sent on it, those of *topics* after `unblock`.

        Args:
            topics: Those that the gateway must accept first.
        """
        self._in_flight = 0
        self._ready = {}
        self._blocked = {topic: {} for topic in topics}
        for id, entry in self._entries.items():
            entry.sent = False
            self._line_of(entry)[id] = entry

    def block(self, topic: str) -> None:
        """Send nothing to *topic* until `unblock`. Idempotent."""
        if topic not in self._blocked:
            unsent = [id for id, entry in self._ready.items() if entry.topic == topic]
            self._blocked[topic] = {id: self._ready.pop(id) for id in unsent}

    def unblock(self, topic: str) -> None:
        """Send what waits for *topic*. Idempotent."""
        unsent = self._blocked.pop(topic, {})
        if unsent:
            lines = (self._ready | unsent).items()
            self._ready = dict(sorted(lines, key=lambda line: line[1].number))

    def sent_to(self, topic: str) -> list[str]:
        """Return the ids of messages to *topic*."""
        return [id for id, entry in self._entries.items() if entry.topic == topic]

    def larger_than(self, size: int) -> list[tuple[str, int]]:
        """Return id and size of each message above *size* bytes."""
        return [(id, entry.size) for id, entry in self._entries.items() if entry.size > size]

    @property
    def due(self) -> bool:
        """Whether there is a frame to write now."""
        return bool(self._ready) and self._in_flight < self._window

    def next_frame(self) -> str | None:
        """Return the oldest frame to write now, and count it as sent; None if none is due."""
        if not self.due:
            return None
        entry = self._ready.pop(next(iter(self._ready)))
        entry.sent = True
        self._in_flight += 1
        return entry.text
