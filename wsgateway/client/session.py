"""What a client keeps across connections: its position, and what is not confirmed. Pure.

`ClientInbox` and `ClientOutbox` decide what is new, what to acknowledge and what to send again.
The classes of the same purpose in ``wsgateway.js`` behave alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wsgateway.codes import CloseCode
from wsgateway.frames import Frame
from wsgateway.protocol import Reason, ServerMessage, Welcome, encode_client_message

__all__ = ["ClientInbox", "ClientOutbox", "Position", "should_reconnect"]

_FINAL = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Standard close codes after which the same client would only be refused again."""


def should_reconnect(code: int) -> bool:
    """Say whether to come back after this close code."""
    if code >= 4000:
        return code < CloseCode.BAD_REQUEST
    return code not in _FINAL


class Position(NamedTuple):
    """Up to where messages were processed; offsets mean something within one epoch only."""

    epoch: str
    offset: int


class ClientInbox:
    """Which messages are new, and up to where they were processed.

    Resuming asks for what follows the last *processed* message, so a client that dies loses
    nothing that it held; what arrives again is recognised by its offset.

    Args:
        position: Where to go on; None: where the gateway says.
    """

    __slots__ = ("_asked", "_held", "_life", "_overtook", "_position", "_received", "_untold")

    def __init__(self, position: Position | None = None) -> None:
        self._position = position
        self._received = position.offset if position else 0  # everything up to it has arrived
        self._asked: int | None = None  # offset this connection asked for, until its welcome
        self._held: dict[int, str | None] = {}  # offset -> time, arrived and not processed
        self._overtook: set[int] = set()  # of those, the ones processed before their turn
        self._life = 0  # changes when offsets begin to mean something else
        self._untold = 0  # messages processed since the last acknowledgement

    @property
    def position(self) -> Position | None:
        """Where a new connection resumes; None before the first welcome."""
        return self._position

    @property
    def untold(self) -> int:
        """How many messages were processed and not acknowledged."""
        return self._untold

    def connecting(self) -> Position | None:
        """Begin a connection; return the position to ask for."""
        self._asked = self._position.offset if self._position else None
        self._untold = 0
        return self._position

    def welcome(self, welcome: Welcome) -> None:
        """Continue if it is what was asked for; otherwise start where it says.

        On an open connection it may only say that messages are missing, and moves nothing.
        """
        same = self._position is not None and welcome.epoch == self._position.epoch
        if same and self._asked is None and welcome.reason == Reason.TRIMMED:
            return
        if not same or welcome.offset != self._asked:
            self._restart(Position(welcome.epoch, welcome.offset))
        self._asked = None
        self._untold = 0

    def _restart(self, position: Position) -> None:
        self._position = position
        self._received = position.offset
        self._held.clear()
        self._overtook.clear()
        self._life += 1

    def accept(self, message: ServerMessage) -> int | None:
        """Return what `settle` wants to know later; None if the message was here before."""
        position = self._position
        if position is None:
            return None  # no welcome yet: the gateway breaks the protocol
        if message.offset <= self._received:
            # Redelivered, unless the stream lost its end and gives the same offsets out again.
            known = self._held.get(message.offset, message) == message.time
            if message.offset <= position.offset or known:
                return None
            self._restart(position)
        self._received = message.offset
        self._held[message.offset] = message.time
        return self._life

    def settle(self, life: int, offset: int) -> None:
        """Note that everything up to *offset* was processed; *life* came from `accept`."""
        position = self._position
        if position is None or life != self._life or offset <= position.offset:
            return
        self._advance(position.epoch, offset)

    def settle_one(self, life: int, offset: int) -> None:
        """Note that *offset* was processed; what came before it, and waits, is not told so."""
        position = self._position
        if position is None or life != self._life or offset not in self._held:
            return
        self._overtook.add(offset)
        self._advance(position.epoch, position.offset)

    def _advance(self, epoch: str, offset: int) -> None:
        """Move the position to *offset*, and over what was processed before its turn."""
        for held in list(self._held):
            if held > offset and held not in self._overtook:
                break
            del self._held[held]
            self._overtook.discard(held)
            offset = max(offset, held)
            self._untold += 1
        self._position = Position(epoch, offset)

    def take_ack(self) -> Position | None:
        """Return what to acknowledge; None if there is nothing to tell."""
        if not self._untold:
            return None
        self._untold = 0
        return self._position


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

    def connecting(self) -> None:
        """Begin a connection, which has seen none of them."""
        self._in_flight = 0
        for entry in self._entries.values():
            entry.sent = False

    def larger_than(self, size: int) -> list[tuple[str, int]]:
        """Return id and size of messages above *size* bytes."""
        return [(id, entry.size) for id, entry in self._entries.items() if entry.size > size]

    def due(self) -> Iterator[str]:
        """Give each frame to write now, oldest first; it then counts as sent.

        Messages may be added and removed between two frames.
        """
        while self._in_flight < self._window:
            entry = next((entry for entry in self._entries.values() if not entry.sent), None)
            if entry is None:
                return
            entry.sent = True
            self._in_flight += 1
            yield entry.text
