"""How far a partition is acknowledged. Pure."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Lane"]


class Lane:
    """The records of one partition that were handed out, while it belongs to this bridge.

    Kafka keeps one offset per partition: everything before it is done. So what is acknowledged
    behind a record that is not counts only once that record is acknowledged, too.

    Args:
        name: For people and for `Bus.consume`: ``ws.recv/3``.
    """

    __slots__ = ("_open", "committed", "is_lost", "name", "next")

    def __init__(self, name: str) -> None:
        self.name = name
        self.next: int | None = None  # the offset after the last record that was handed out
        self.committed: int | None = None  # the position that Kafka has from us
        self.is_lost = False  # whether another bridge may have it
        self._open: OrderedDict[int, int] = OrderedDict()  # offset: bytes, not acknowledged

    def __len__(self) -> int:
        """Return how many records are not acknowledged."""
        return len(self._open)

    @property
    def position(self) -> int | None:
        """The offset of the first record that is not done; None if none was handed out."""
        return next(iter(self._open), self.next)

    @property
    def span(self) -> int:
        """How many offsets lie between the position and the last record that was handed out.

        All of these come again after a crash.
        """
        return 0 if self.next is None else self.next - (self.position or 0)

    def hand_out(self, offset: int, size: int) -> None:
        """Record that the record at *offset*, of *size* bytes, is handed out."""
        self._open[offset] = size
        self.next = offset + 1

    def ack(self, offset: int) -> int | None:
        """Acknowledge a record; return its size, or None if it was not in hand."""
        return self._open.pop(offset, None)

    def sizes(self) -> int:
        """Return the bytes that are not acknowledged."""
        return sum(self._open.values())
