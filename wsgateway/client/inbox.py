"""Which messages of the inbox are new to a client, and up to where they were processed. Pure.

The class of the same purpose in ``wsgateway.js`` behaves alike: ``tests/vectors/client.json``.
"""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.protocol.v1 import Reason, ServerMessage, Welcome

__all__ = ["ClientInbox", "Position"]


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
        self._untold = 0  # processed ones that arrived since the last acknowledgement

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
            if message.offset <= position.offset:
                self._untold += 1  # it takes room in the window until it is acknowledged again
                return None
            if self._held.get(message.offset, message) == message.time:
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

    def settle_newest(self) -> None:
        """Note that the message just accepted was processed, and none that waits before it."""
        position = self._position
        assert position is not None, "a message was accepted"
        self._overtook.add(self._received)
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
