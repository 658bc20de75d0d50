"""One reader's position in an inbox: backlog, then live, gaps, what is in flight. Pure.

Fed with live messages, batches and announcements, it says what to write next and what to
fetch. Order within an inbox is the stream's order, always: `take` returns rising offsets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["Window", "later"]

WINDOW_BYTES = 4 * 1024 * 1024
"""Bytes in flight to one socket; a single larger message still goes."""
LAGGING_READS = 8
"""Reads that may end short of an announced offset before it is taken for gone."""


class _Message(Protocol):
    @property
    def offset(self) -> int: ...
    @property
    def previous(self) -> int | None: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def time(self) -> str: ...


class Window:
    """Decides what one reader gets. Make it, `start` it, then feed it.

    A message is *taken* to be written, then *confirmed*: when it was handed to the ASGI server
    (raw), or when the client acknowledged it. Between the two it fills the window; while that
    is full nothing is buffered here, the messages wait in the stream.

    Args:
        size: Messages in flight at most.
    """

    __slots__ = (
        "_announced",
        "_announced_time",
        "_behind",
        "_held",
        "_in_flight",
        "_reads_short",
        "_ready",
        "_size",
        "confirmed",
        "fetching",
        "in_flight_bytes",
        "position",
        "suspect",
        "time",
    )

    def __init__(self, size: int) -> None:
        self._size = size
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
        self._held: list[_Message] = []  # live ones that came during a fetch, the newest
        self._ready: list[_Message] = []  # to be written
        self._in_flight: list[tuple[int, int]] = []  # (offset, bytes) not confirmed
        self.in_flight_bytes = 0
        """Bytes of messages that are queued or taken, and not confirmed."""
        self._reads_short = 0  # reads in a row that ended before _announced

    def start(self, offset: int) -> None:
        """Begin after *offset*; a fetch is wanted next, whatever is known."""
        self.position = self.confirmed = offset
        self.time = ""
        self.suspect = None
        self.fetching = False
        self._behind = True
        self._reads_short = 0

    def restart(self, offset: int) -> None:
        """Start again after *offset*: the stream was replaced, or lost its end."""
        self._ready.clear()
        self._held.clear()
        self._in_flight.clear()
        self.in_flight_bytes = 0
        self._announced = 0
        self._announced_time = ""
        self.start(offset)

    @property
    def room(self) -> int:
        """How many more messages the window takes."""
        if self.in_flight_bytes >= WINDOW_BYTES:
            return 0
        return self._size - len(self._in_flight)

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
        """Whether to read after `position`, `room` messages at most."""
        wanted = self._behind or self._announced > self.position
        return wanted and not self.fetching and self.room > 0

    @property
    def lagging(self) -> bool:
        """Whether the last read ended before an offset known to exist; wait before the next."""
        return self._reads_short > 0

    def live(self, message: _Message) -> bool:
        """Record a message that was just stored; return whether to wake the writer."""
        if message.offset <= self.position:
            if self.time and later(message.time, self.time):
                self.suspect_end()  # an old offset for a new message
            return False
        if self.fetching:
            if len(self._held) >= self._size:
                del self._held[0]
            self._held.append(message)
            self._note_live(message)
            return False
        if not self._queue(message):
            self._note_live(message)
            return self.room > 0
        return True

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
        self._announced, self._announced_time = offset, ""
        self._reads_short = 0
        return self.wants_fetch

    def invalidate(self) -> bool:
        """Want a fetch, whatever is known; return whether to wake the writer."""
        self._behind = True
        return self.wants_fetch

    def begin_fetch(self) -> tuple[int, int]:
        """Return what to read: after which offset, and how many messages at most."""
        self.fetching = True
        return self.position, self.room

    def fetch_failed(self) -> None:
        """End the fetch without a result; what it wanted is still wanted."""
        self.fetching = False
        self._behind = True
        self._held.clear()

    def fetched(self, messages: Iterable[_Message], *, more: bool) -> None:
        """End the fetch: queue *messages*, then whatever came during it and follows on.

        Args:
            messages: What was read, oldest first.
            more: Whether the inbox holds messages behind them.
        """
        self.fetching = False
        self._behind = more
        before = self.position
        for message in messages:
            if message.offset > self.position:
                self._append(message)
        held, self._held = self._held, []
        for message in held:
            if message.offset > self.position and not self._queue(message):
                break
        if more or self.position > before or self._announced <= self.position:
            self._reads_short = 0
            return
        self._reads_short += 1
        if self._reads_short >= LAGGING_READS:
            self._announced = self.position  # expired or trimmed in between; sweeps go on
            self._reads_short = 0

    def _queue(self, message: _Message) -> bool:
        """Queue a live message if it follows on `position` and the window has room."""
        if message.previous is None or message.previous > self.position or self.room <= 0:
            return False
        self._append(message)
        return True

    def _append(self, message: _Message) -> None:
        size = len(message.payload)
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
                self.in_flight_bytes -= size
                break
        if not self._in_flight and not self._ready:
            self.confirmed = max(self.confirmed, offset)

    def confirm(self, offset: int) -> int:
        """Note that the client has everything up to *offset*; return how many that newly were.

        An offset beyond `position` counts as `position`.
        """
        offset = min(offset, self.position)
        count = 0
        while self._in_flight and self._in_flight[0][0] <= offset:
            self.in_flight_bytes -= self._in_flight.pop(0)[1]
            count += 1
        self.confirmed = max(self.confirmed, offset)
        return count


def later(one: str, other: str) -> bool:
    """Say whether *one* is the later time; the server leaves out zeros at their end."""
    return one.rstrip("Z") > other.rstrip("Z")
