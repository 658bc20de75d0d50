"""Which messages of an inbox or topic are new to a client, and which were processed. Pure.

Behaves like the class ``Inbox`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.protocol.v1 import Reason, ServerMessage

__all__ = ["ClientInbox", "Position"]


class Position(NamedTuple):
    """Up to where messages were processed; offsets are comparable within one epoch only.

    *inbox* is the gateway's name for the user's inbox; None if the gateway gave none.
    """

    epoch: str
    offset: int
    inbox: str | None = None

    def is_comparable(self, other: Position) -> bool:
        """Whether offsets of both mean the same, as far as is known."""
        return self.epoch == other.epoch and (
            self.inbox == other.inbox or self.inbox is None or other.inbox is None
        )


class ClientInbox:
    """Which messages are new, and up to where they were processed.

    A client resumes after the last *processed* message, so a crash loses nothing that it held.
    Messages that arrive again are recognised by their offsets.

    Args:
        position: Where to resume; None: where the gateway says.
    """

    __slots__ = (
        "_asked",
        "_generation",
        "_held",
        "_overtook",
        "_position",
        "_received",
        "_unacked",
    )

    def __init__(self, position: Position | None = None) -> None:
        self._position = position
        self._received = position.offset if position else 0  # everything up to it has arrived
        self._asked: int | None = None  # offset this connection asked for, until its welcome
        self._held: dict[int, str | None] = {}  # offset -> time, arrived and not processed
        self._overtook: set[int] = set()  # of those, the ones processed out of turn
        self._generation = 0  # changes when offsets change their meaning
        self._unacked = 0  # processed since the last acknowledgement

    @property
    def position(self) -> Position | None:
        """Where a new connection resumes; None before the first welcome."""
        return self._position

    @property
    def unacked(self) -> int:
        """How many messages are processed and not acknowledged."""
        return self._unacked

    def connecting(self) -> Position | None:
        """Start a connection; return the position to ask for."""
        self._asked = self._position.offset if self._position else None
        self._unacked = 0
        return self._position

    def welcome(self, position: Position, reason: str | None) -> None:
        """Continue if the gateway grants the position; otherwise start at the gateway's.

        On an open connection, a welcome that only reports missing messages moves nothing.
        """
        known = self._position
        same = known is not None and known.is_comparable(position)
        if same and self._asked is None and reason == Reason.TRIMMED:
            return
        if not same or position.offset != self._asked:
            self._restart(position)
        elif known is not None and position.inbox is not None:  # earlier gateways give none
            self._position = known._replace(inbox=position.inbox)
        self._asked = None
        self._unacked = 0

    def subscribed(
        self, position: Position, reason: str | None, *, recovered: bool, answers: bool
    ) -> None:
        """Do the same for a topic, whose epoch may have another name on each connection.

        Args:
            position: Where the gateway begins.
            reason: Why *recovered* is false; None if it is true.
            recovered: Whether the gateway goes on where the client asked for.
            answers: Whether this answers the question of this connection.
        """
        known = self._position
        if known is None or not (
            recovered and position.offset == self._asked
            if answers
            else position.epoch == known.epoch and reason not in (Reason.EPOCH, Reason.AHEAD)
        ):
            self.welcome(position, reason)
            return
        self._position = known._replace(epoch=position.epoch)
        if answers:
            self._asked = None
            self._unacked = 0

    def _restart(self, position: Position) -> None:
        self._position = position
        self._received = position.offset
        self._held.clear()
        self._overtook.clear()
        self._generation += 1

    def accept(self, message: ServerMessage) -> int | None:
        """Return the generation, for `mark_processed`; None if the message is not new."""
        position = self._position
        if position is None:
            return None  # no welcome yet: the gateway violates the protocol
        if message.offset <= self._received:
            # Redelivered, unless the stream lost its end and reuses offsets
            if message.offset <= position.offset:
                self._unacked += 1  # it fills the window until it is acknowledged again
                return None
            if self._held.get(message.offset, message) == message.time:
                return None
            self._restart(position)
        self._received = message.offset
        self._held[message.offset] = message.time
        return self._generation

    def mark_processed(self, generation: int, offset: int) -> None:
        """Record that everything up to *offset* is processed; *generation* is from `accept`."""
        position = self._position
        if position is None or generation != self._generation or offset <= position.offset:
            return
        self._advance(position, offset)

    def mark_newest_processed(self) -> None:
        """Record that the message just accepted is processed, but none that wait before it."""
        position = self._position
        assert position is not None, "a message was accepted"
        self._overtook.add(self._received)
        self._advance(position, position.offset)

    def _advance(self, position: Position, offset: int) -> None:
        """Move *position* to *offset*, and past what was processed out of turn."""
        for held in list(self._held):
            if held > offset and held not in self._overtook:
                break
            del self._held[held]
            self._overtook.discard(held)
            offset = max(offset, held)
            self._unacked += 1
        self._position = Position(position.epoch, offset, position.inbox)

    def take_ack(self) -> Position | None:
        """Return the position to acknowledge; None if there is nothing new."""
        if not self._unacked:
            return None
        self._unacked = 0
        return self._position
