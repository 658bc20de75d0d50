"""One reader's position in an inbox: backlog, then live, gaps, what is in flight. Pure.

Fed with live messages, batches and announcements, it says what to write next and what to
fetch. Order within an inbox is the stream's order, always: `take` returns rising offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from wsgateway.protocol.credit import WINDOW_BYTES, Credit

__all__ = ["Window", "WindowCounts", "later"]

LAGGING_READS = 8
"""Reads that may end short of an announced offset before it is taken for gone."""

PROMISE = 64 * 1024
"""Bytes that are put aside for a message that nobody has seen yet."""


class _Message(Protocol):
    @property
    def offset(self) -> int: ...
    @property
    def previous(self) -> int | None: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def time(self) -> str: ...


class WindowCounts:
    """What happened to windows that share it."""

    __slots__ = ("filled", "gaps", "stalls")

    def __init__(self) -> None:
        self.gaps = 0
        """Times that a message turned out to be missing between those that came live."""
        self.filled = 0
        """Those gaps that were closed; the others' messages have expired, or were deleted."""
        self.stalls = 0
        """Times that a window was full while messages waited."""


class Window:
    """Decides what one reader gets. Make it, `start` it, then feed it.

    A message is *taken* to be written, then *confirmed*: when it was handed to the ASGI server
    (raw), or when the client acknowledged it. Between the two it fills the window; while that
    is full nothing is buffered here, the messages wait in the stream.

    Args:
        credit: What may be in flight.
        counts: Where it counts; None: a place of its own.
        on_room: Called when a fetch is wanted that had to wait for the credit's other windows.
    """

    __slots__ = (
        "_announced",
        "_announced_time",
        "_behind",
        "_counts",
        "_credit",
        "_gap",
        "_held",
        "_in_flight",
        "_next_size",
        "_on_room",
        "_promised",
        "_ready",
        "_reserved",
        "_stalled",
        "confirmed",
        "fetching",
        "in_flight_bytes",
        "position",
        "reads_short",
        "suspect",
        "time",
    )

    def __init__(
        self,
        credit: Credit,
        counts: WindowCounts | None = None,
        on_room: Callable[[], object] | None = None,
    ) -> None:
        self._credit = credit
        self._on_room = on_room
        self._counts = counts or WindowCounts()
        self._gap = False  # a message is missing between those that came live
        self._stalled = False  # it was full while messages waited, and nothing was confirmed since
        self.position = 0
        """Offset of the newest message queued for writing; everything up to it is."""
        self.time = ""
        """When that message was stored; empty if none was queued since the start."""
        self.suspect: tuple[int, str] | None = None
        """`reached` when the stream's end was last in doubt; None: it is not."""
        self.confirmed = 0
        """Offset up to which the client has everything."""
        self.fetching = True
        """True before `start`, and while a fetch is under way; live messages are held."""
        self._announced = 0  # newest offset known to exist
        self._announced_time = ""  # when it was stored; empty if not known
        self._behind = False  # there may be more behind position, whatever is announced
        # Lists, because an empty deque takes 0.7 KB, and most sockets are idle; each of them is
        # bounded by the window.
        self._held: list[_Message] = []  # live ones that came during a fetch, the first of them
        self._ready: list[_Message] = []  # to be written
        self._in_flight: list[tuple[int, int]] = []  # (offset, bytes) not confirmed
        self.in_flight_bytes = 0
        """Bytes of messages that are queued or taken, and not confirmed."""
        self._reserved = 0  # messages of the credit that the fetch under way may bring
        self._promised = 0  # bytes of the credit that are put aside for the next fetch
        self._next_size = 0  # bytes of the message for which there was no room; 0: not known
        self.reads_short = 0
        """Reads in a row that ended before an offset known to exist: a replica lags."""

    @property
    def sent(self) -> int:
        """Offset of the newest message that was taken; where it began, before the first."""
        if not self._ready:
            return self.position
        taken = self.unconfirmed
        return self._in_flight[taken - 1][0] if taken else self.confirmed

    @property
    def unconfirmed(self) -> int:
        """How many messages are taken, and not confirmed."""
        return len(self._in_flight) - len(self._ready)

    def start(self, offset: int) -> None:
        """Begin after *offset*; a fetch is wanted next, whatever is known."""
        self.position = self.confirmed = offset
        self.time = ""
        self.suspect = None
        self.fetching = False
        self._behind = True
        self._gap = self._stalled = False
        self._next_size = 0
        self.reads_short = 0

    def restart(self, offset: int) -> None:
        """Start again after *offset*: the stream was replaced, or lost its end."""
        self._ready.clear()
        self._let_go()
        if count := len(self._in_flight):
            self._in_flight.clear()
            self._give_back(count, self.in_flight_bytes)
        self._release()
        self._credit.given_back()
        self._announced = 0
        self._announced_time = ""
        self.start(offset)

    def close(self) -> None:
        """Give the credit back, and want nothing any more."""
        self._credit.leave(self)
        self.restart(self.position)
        self.fetching = True

    @property
    def room(self) -> int:
        """How many more messages the window takes."""
        credit, messages = self._credit, len(self._in_flight)
        if credit.messages == messages:  # nobody else has any: the common case, so it is here
            has_bytes = self.in_flight_bytes + credit.bytes < WINDOW_BYTES
            return credit.each - messages if has_bytes else 0
        return credit.room(messages, self.in_flight_bytes)

    @property
    def held(self) -> int:
        """Live messages kept until the fetch ends."""
        return len(self._held)

    @property
    def in_flight(self) -> int:
        """Messages that are queued or taken, and not confirmed."""
        return len(self._in_flight)

    @property
    def wants_fetch(self) -> bool:
        """Whether to read after `position`, `room` messages at most; notes if it waits for room."""
        if self.fetching or not (self._behind or self._announced > self.position):
            return False
        if self._promised or self.room > 0:
            return True
        if self._on_room is not None:
            self._credit.wait(self)
        return False

    def look_again(self) -> None:
        """See `wsgateway.protocol.credit.Waiting`.

        A window that has nothing has waited for bytes. Those of its next message are put aside:
        while it is read, messages that come live to other windows would take the place.
        """
        if self._on_room is None or not self.wants_fetch:
            return
        credit = self._credit
        if not self._in_flight and not self._promised:
            self._promised = self._next_size or PROMISE
            credit.bytes += self._promised
            self._behind = True  # so that it is read, whatever comes live
        self._on_room()

    def live(self, message: _Message) -> bool:
        """Record a message that was just stored; return whether to wake the writer."""
        if message.offset <= self.position:
            if self.time and later(message.time, self.time):
                self.suspect_end()  # an old offset for a new message
            return False
        if self.fetching:
            self._hold(message)
            self._note_live(message)
            return False
        if not self._queue(message):
            self._count_missing()
            self._note_live(message)
            return self.wants_fetch
        if self._gap:
            self._look_at_gap()
        return True

    def _hold(self, message: _Message) -> None:
        """Keep a live message until the fetch ends; it is read, if it is too much."""
        credit, size = self._credit, len(message.payload)
        if len(self._held) < credit.size and credit.held + size <= WINDOW_BYTES:
            self._held.append(message)
            credit.held += size

    def _let_go(self) -> list[_Message]:
        """Return the live messages that were kept, and keep them no longer."""
        held, self._held = self._held, []
        if held:
            self._credit.held -= sum(len(message.payload) for message in held)
        return held

    def _count_missing(self) -> None:
        """Count why a message that is about to be announced cannot be queued."""
        if self.fetching:
            return
        if self.room <= 0:
            self._count_stall()
        elif not (self._gap or self._behind or self._announced > self.position):
            self._gap = True
            self._counts.gaps += 1

    def _look_at_gap(self) -> None:
        """Count a gap that is closed by now."""
        if self._announced <= self.position and not self._behind:
            self._gap = False
            self._counts.filled += 1

    def _count_stall(self) -> None:
        if not self._stalled:
            self._stalled = True
            self._counts.stalls += 1

    def _note_live(self, message: _Message) -> None:
        """Note a message that waits in the stream."""
        if message.offset > self._announced:
            self._announced, self._announced_time = message.offset, message.time
        elif self._announced_time and later(message.time, self._announced_time):
            self.suspect_end()  # as in `live`

    @property
    def reached(self) -> tuple[int, str]:
        """The newest message known to exist: its offset, and when it was stored if that is known.

        If the stream ends before it, messages were lost that this reader may not have had yet.
        """
        if self._announced > self.position:
            return self._announced, self._announced_time
        return self.position, self.time

    def suspect_end(self) -> None:
        """Note where the reader stands, because the stream may have lost what is before it.

        Those offsets may be given out again, and more: what comes then moves the reader on.
        """
        self.suspect = self.suspect or self.reached

    def announce(self, offset: int) -> bool:
        """Record that the inbox reaches to *offset*; return whether to wake the writer."""
        if offset <= max(self.position, self._announced):
            return self.wants_fetch
        self._count_missing()
        self._announced, self._announced_time = offset, ""
        self.reads_short = 0
        return self.wants_fetch

    def invalidate(self) -> bool:
        """Want a fetch, whatever is known; return whether to wake the writer."""
        self._behind = True
        return self.wants_fetch

    def begin_fetch(self) -> tuple[int, int]:
        """Return what to read: after which offset, and how many messages at most."""
        room = max(self.room, 1) if self._promised else self.room
        if room > 0:
            if not self._in_flight:
                self._credit.busy += 1
            self._reserved = room
            self._credit.messages += room
        self.fetching = True
        return self.position, room

    def fetch_failed(self) -> None:
        """End the fetch without a result; what it wanted is still wanted."""
        self._release()
        self.fetching = False
        self._behind = True
        self._let_go()
        self._credit.given_back()

    def fetched(self, messages: Iterable[_Message], *, more: bool) -> None:
        """End the fetch: queue *messages*, then whatever came during it and follows on.

        Args:
            messages: What was read, oldest first; what is more than `begin_fetch` said is read
                again when there is room.
            more: Whether the inbox holds messages behind them.
        """
        room, promised, credit = self._reserved, self._promised, self._credit
        self._release()
        self.fetching = False
        self._next_size = 0
        before = self.position
        for message in messages:
            if message.offset > self.position:
                size = len(message.payload)
                has_bytes = self.in_flight_bytes + credit.bytes < WINDOW_BYTES or size <= promised
                if room <= 0 or not has_bytes:
                    more, self._next_size = True, size
                    break
                room, promised = room - 1, 0
                self._append(message)
        self._behind = more
        for message in self._let_go():
            if message.offset > self.position and not self._queue(message):
                break
        self._credit.given_back()
        if self._gap:
            self._look_at_gap()
        if (more or self._announced > self.position) and self.room <= 0:
            self._count_stall()
        if more or self.position > before or self._announced <= self.position:
            self.reads_short = 0
            return
        self.reads_short += 1
        if self.reads_short >= LAGGING_READS:
            self._announced = self.position  # expired or trimmed in between; sweeps go on
            self._gap = False
            self.reads_short = 0

    def _queue(self, message: _Message) -> bool:
        """Queue a live message if it follows on `position` and the window has room."""
        if message.previous is None or message.previous > self.position or self.room <= 0:
            return False
        self._append(message)
        return True

    def _release(self) -> None:
        """Give back what was put aside for a fetch."""
        self._credit.bytes -= self._promised
        self._promised = 0
        if self._reserved:
            self._credit.messages -= self._reserved
            self._reserved = 0
            if not self._in_flight:
                self._credit.busy -= 1

    def _append(self, message: _Message) -> None:
        size, credit = len(message.payload), self._credit
        if not self._in_flight:
            credit.busy += 1
        credit.messages += 1
        credit.bytes += size
        self.position = message.offset
        self.time = message.time
        self._ready.append(message)
        self._in_flight.append((message.offset, size))
        self.in_flight_bytes += size

    def take(self) -> _Message | None:
        """Return the next message to write; None if there is none now."""
        return self._ready.pop(0) if self._ready else None

    def drop(self, offset: int) -> None:
        """Free the window of a taken message that cannot be written and so never confirmed."""
        for index, (taken, size) in enumerate(self._in_flight):
            if taken == offset:
                del self._in_flight[index]
                self._give_back(1, size)
                break
        if not self._in_flight and not self._ready:
            self.confirmed = max(self.confirmed, offset)

    def confirm(self, offset: int) -> int:
        """Note that the client has everything up to *offset*; return how many that newly were.

        An offset beyond `position` counts as `position`.
        """
        offset = min(offset, self.position)
        count = size = 0
        while self._in_flight and self._in_flight[0][0] <= offset:
            size += self._in_flight.pop(0)[1]
            count += 1
        if count:
            self._stalled = False
            self._give_back(count, size)
        self.confirmed = max(self.confirmed, offset)
        return count

    def _give_back(self, count: int, size: int) -> None:
        """Note that *count* messages of *size* bytes are not in flight any more."""
        self.in_flight_bytes -= size
        self._credit.messages -= count
        self._credit.bytes -= size
        if not self._in_flight and not self._reserved:
            self._credit.busy -= 1
        self._credit.given_back()


def later(one: str, other: str) -> bool:
    """Say whether *one* is the later time; the server leaves out zeros at their end."""
    return one.rstrip("Z") > other.rstrip("Z")
