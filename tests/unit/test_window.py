"""The window against a model of a stream that loses, delays, repeats, lags and trims."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wsgateway.protocol.credit import WINDOW_BYTES, Credit
from wsgateway.protocol.window import LAGGING_READS, PROMISE, Window, WindowCounts


class Message(NamedTuple):
    offset: int
    previous: int | None
    payload: bytes
    time: str = ""


BIG = bytes(WINDOW_BYTES)
WINDOW = 4


def ready(window: Window) -> list[Message]:
    """Return what can be taken now, without taking it."""
    twin = deepcopy(window)
    found: list[Message] = []
    while (message := twin.take()) is not None:
        assert isinstance(message, Message)
        found.append(message)
    return found


class ReaderModel(RuleBasedStateMachine):
    """One inbox and one window. What may happen at any time is a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: list[Message] = []  # what is kept
        self.last = 0  # newest offset, of any inbox
        self.on_the_way: deque[Message] = deque()  # live messages that were not delivered yet
        self.old: list[Message] = []  # live messages that may come again
        self.reading: tuple[int, int] | None = None
        self.taken: list[int] = []  # since the last start
        self.waiting: deque[int] = deque()  # taken, not confirmed
        self.start_at = 0
        self.window = Window(Credit(WINDOW))

    @initialize(before=st.integers(0, 12), cursor=st.integers(0, 12))
    def begin(self, before: int, cursor: int) -> None:
        for _ in range(before):
            self.publish(0, False, "lost")
        self.start_at = min(cursor, self.last)
        self.window.start(self.start_at)

    # -- the stream ----------------------------------------------------------------------

    @rule(
        gap=st.integers(0, 2),
        big=st.booleans(),
        fate=st.sampled_from(["arrives", "arrives", "waits", "lost", "unknown previous"]),
    )
    def publish(self, gap: int, big: bool, fate: str) -> None:
        """Store a message after *gap* ones of other inboxes; its live copy has a *fate*."""
        self.last += 1 + gap
        previous = self.stream[-1].offset if self.stream else 0
        message = Message(self.last, previous, BIG if big else b"x")
        self.stream.append(message)
        if fate == "lost":
            return
        if fate == "unknown previous":
            message = message._replace(previous=None)
        self.on_the_way.append(message)
        self.old.append(message)
        if fate != "waits":
            self.arrive()

    @precondition(lambda self: self.on_the_way)
    @rule()
    def arrive(self) -> None:
        while self.on_the_way:
            self.window.live(self.on_the_way.popleft())

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        self.window.live(data.draw(st.sampled_from(self.old)))

    @rule(count=st.integers(1, 5))
    def trim(self, count: int) -> None:
        del self.stream[:count]

    @precondition(lambda self: self.stream)
    @rule()
    def expire_the_newest(self) -> None:
        del self.stream[-1]

    @rule()
    def sweep(self) -> None:
        if self.stream:
            self.window.announce(self.stream[-1].offset)

    # -- the shell -----------------------------------------------------------------------

    @precondition(lambda self: self.reading is None and self.window.wants_fetch)
    @rule()
    def begin_fetch(self) -> None:
        self.reading = self.window.begin_fetch()
        assert 1 <= self.reading[1] <= WINDOW

    @precondition(lambda self: self.reading is not None)
    @rule(lag=st.integers(0, 3), limit=st.integers(1, WINDOW))
    def end_fetch(self, lag: int, limit: int) -> None:
        """End with what a replica knows that is *lag* messages behind, or part of it."""
        assert self.reading is not None
        offset, room = self.reading
        self.reading = None
        known = self.stream[: len(self.stream) - lag] if lag else self.stream
        found = [message._replace(previous=None) for message in known if message.offset > offset]
        limit = min(limit, room)
        self.window.fetched(found[:limit], more=len(found) > limit)

    @precondition(lambda self: self.reading is not None)
    @rule()
    def fail_fetch(self) -> None:
        self.reading = None
        self.window.fetch_failed()

    @rule()
    def take(self) -> None:
        message = self.window.take()
        if message is not None:
            assert message.offset > max([self.start_at, *self.taken[-1:]])
            self.taken.append(message.offset)
            self.waiting.append(message.offset)

    @precondition(lambda self: self.waiting)
    @rule(count=st.integers(1, WINDOW))
    def confirm(self, count: int) -> None:
        done = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        assert self.window.confirm(done[-1]) == len(done)
        assert self.window.confirm(done[-1]) == 0
        assert self.window.confirmed >= done[-1]

    @precondition(lambda self: self.waiting)
    @rule()
    def drop(self) -> None:
        """What was taken last turns out to be malformed."""
        self.window.drop(self.waiting.pop())

    @precondition(lambda self: self.reading is None)
    @rule()
    def another_stream(self) -> None:
        """The stream is deleted and recreated; what was on the way is lost with it."""
        self.stream.clear()
        self.on_the_way.clear()
        self.old.clear()
        self.waiting.clear()
        self.taken.clear()
        self.last = self.start_at = 0
        self.window.restart(0)

    # -- what must hold ------------------------------------------------------------------

    @invariant()
    def memory_is_bounded(self) -> None:
        window = self.window
        assert window.held <= WINDOW
        assert len(ready(window)) <= window.in_flight <= WINDOW
        assert window.in_flight_bytes < WINDOW_BYTES + len(BIG)
        assert window.in_flight or not window.in_flight_bytes
        assert window.confirmed <= window.position

    @invariant()
    def nothing_is_passed_over(self) -> None:
        """What is kept up to `position` was queued: nothing between was skipped."""
        queued = {*self.taken, *(message.offset for message in ready(self.window))}
        kept = {m.offset for m in self.stream if self.start_at < m.offset <= self.window.position}
        assert kept <= queued

    def teardown(self) -> None:
        """Once nothing breaks any more, everything that is kept arrives."""
        if self.reading is not None:
            self.fail_fetch()
        self.arrive()
        for _ in range(LAGGING_READS * (len(self.stream) + 2)):
            self.sweep()
            if self.window.wants_fetch:
                self.begin_fetch()
                self.end_fetch(0, WINDOW)
            self.take()
            if self.waiting:
                self.confirm(WINDOW)
        kept = [message.offset for message in self.stream if message.offset > self.start_at]
        assert set(kept) <= set(self.taken)
        assert self.taken == sorted(set(self.taken))
        assert self.window.take() is None


ReaderModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestReader = ReaderModel.TestCase


def live(offset: int, previous: int | None) -> Message:
    return Message(offset, previous, b"x")


def started(offset: int = 0, size: int = WINDOW) -> Window:
    """Return a window that has read all there was."""
    window = Window(Credit(size))
    window.start(offset)
    window.begin_fetch()
    window.fetched([], more=False)
    return window


def test_nothing_is_queued_before_the_start() -> None:
    window = Window(Credit(WINDOW))
    wanted = [window.live(live(1, 0)), window.wants_fetch]
    window.start(0)
    assert [*wanted, window.wants_fetch] == [False, False, True]
    assert window.take() is None


def test_live_message_goes_straight_through() -> None:
    window = started()
    assert window.live(live(5, 0))
    assert window.live(live(9, 5))
    assert not window.wants_fetch
    assert [window.take().offset for _ in range(2)] == [5, 9]  # type: ignore[union-attr]


def test_gap_is_read_first() -> None:
    window = started()
    assert window.live(live(9, 5))
    assert window.take() is None
    assert window.wants_fetch
    assert window.begin_fetch() == (0, WINDOW)
    window.fetched([live(5, None), live(9, None)], more=False)
    assert [window.take().offset for _ in range(2)] == [5, 9]  # type: ignore[union-attr]
    assert not window.wants_fetch


def test_message_that_came_during_a_fetch_is_not_read_again() -> None:
    window = Window(Credit(WINDOW))
    window.start(0)
    window.begin_fetch()
    window.live(live(2, 1))
    window.live(live(3, 2))
    window.fetched([live(1, None)], more=False)
    taken = [message.offset for _ in range(3) if (message := window.take())]
    assert taken == [1, 2, 3]
    assert not window.wants_fetch


def test_rest_of_a_batch_and_a_failed_fetch_are_read_without_a_sweep() -> None:
    window = Window(Credit(WINDOW))
    window.start(0)
    window.begin_fetch()
    window.live(live(9, 8))
    window.fetch_failed()
    assert window.wants_fetch
    window.begin_fetch()
    window.fetched([live(1, None)], more=True)
    assert window.wants_fetch
    window.begin_fetch()
    window.fetched([live(9, None)], more=False)
    assert not window.wants_fetch


def test_full_window_leaves_messages_in_the_stream() -> None:
    window = started(size=2)
    for offset in range(1, 6):
        window.live(live(offset, offset - 1))
    assert (window.room, window.wants_fetch) == (0, False)
    assert [window.take().offset for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    assert window.take() is None
    window.confirm(1)
    assert window.wants_fetch
    assert window.begin_fetch() == (2, 1)


def test_what_is_more_than_was_asked_for_is_read_again() -> None:
    """Who resume together share what is read, and one of them may have less room."""
    window = Window(Credit(2))
    window.start(0)
    assert window.begin_fetch() == (0, 2)
    window.fetched([live(n, None) for n in (1, 2, 3)], more=False)
    assert (window.position, window.in_flight, window.wants_fetch) == (2, 2, False)
    window.confirm(1)
    assert window.wants_fetch
    assert window.begin_fetch() == (2, 1)


def test_bytes_in_flight_close_the_window_too() -> None:
    window = started(size=100)
    window.live(Message(1, 0, BIG))
    assert window.room == 0
    window.take()
    window.confirm(1)
    assert window.room == 100


def test_announced_offset_that_is_never_found_is_given_up() -> None:
    window = started()
    window.announce(7)
    reads = 0
    while window.wants_fetch:
        window.begin_fetch()
        window.fetched([], more=False)
        reads += 1
        assert window.reads_short == reads % LAGGING_READS
    assert reads == LAGGING_READS
    window.announce(7)  # the next sweep asks again
    assert window.wants_fetch


def test_confirming_what_was_never_sent_counts_as_all() -> None:
    window = started(10)
    window.live(live(11, 10))
    window.take()
    assert window.confirm(10**9) == 1
    assert window.confirmed == window.position == 11


def test_time_is_that_of_the_message_at_the_position() -> None:
    window = started(3)
    assert window.time == ""
    window.live(Message(5, 3, b"x", "t5"))
    assert (window.position, window.time) == (5, "t5")
    window.restart(0)
    assert (window.position, window.time) == (0, "")


def test_invalidate_wants_a_fetch_though_nothing_is_known_to_be_behind() -> None:
    window = started(3)
    assert not window.wants_fetch
    assert window.invalidate()
    assert window.begin_fetch() == (3, WINDOW)
    window.fetched([], more=False)
    assert not window.wants_fetch


def test_dropped_message_at_the_end_counts_as_had() -> None:
    window = started()
    window.live(live(1, 0))
    window.take()
    window.drop(1)
    assert (window.room, window.confirmed) == (WINDOW, 1)


def test_reached_is_the_newest_message_known_of() -> None:
    window = started(offset=5, size=1)
    window.fetched([], more=False)
    assert window.reached == (5, "")
    window.live(live(6, 5))
    assert window.reached == (6, window.time)
    window.live(live(9, 6))  # the window is full: it waits in the stream
    assert window.reached == (9, live(9, 6).time)
    window.announce(12)
    assert window.reached == (12, "")
    window.suspect_end()
    assert window.suspect == (12, "")


# -- several windows ---------------------------------------------------------------------


def feed(window: Window, stored: int) -> int:
    """Let *window* have what it wants of an inbox with so many messages; return how many it got."""
    got = 0
    while window.wants_fetch:
        after, room = window.begin_fetch()
        found = [live(n, None) for n in range(after + 1, min(after + room, stored) + 1)]
        window.fetched(found, more=after + len(found) < stored)
        while window.take() is not None:
            got += 1
    return got


def test_window_that_is_alone_has_all_of_the_credit() -> None:
    credit = Credit(8)
    window, _ = Window(credit), Window(credit)  # a quiet one takes nothing
    window.start(0)
    assert feed(window, 100) == 8
    assert window.confirm(3) == 3
    assert feed(window, 100) == 3


def test_busy_window_leaves_its_fair_share_to_the_next() -> None:
    """Without shares, a client that leaves one topic unread would hear nothing of the others."""
    credit = Credit(8)
    greedy, other = Window(credit), Window(credit)
    greedy.start(0)
    assert feed(greedy, 100) == 8
    other.start(0)
    assert feed(other, 100) == 1, "at once, though nothing is free"
    had = {"greedy": 0, "other": 0}
    for _ in range(12):
        greedy.confirm(greedy.confirmed + 1)
        had["greedy"] += feed(greedy, 100)
        had["other"] += feed(other, 100)
    assert other.in_flight == greedy.in_flight == 4


def test_credit_comes_back_from_a_window_that_starts_again_or_cannot_read() -> None:
    credit = Credit(8)
    one, other = Window(credit), Window(credit)
    one.start(0)
    feed(one, 5)
    one.restart(0)
    assert (credit.messages, credit.bytes, credit.busy) == (0, 0, 0)
    one.begin_fetch()
    assert (credit.messages, credit.busy) == (8, 1)
    other.start(0)
    assert other.room == 1
    one.fetch_failed()
    assert (credit.messages, credit.busy) == (0, 0)
    assert other.room == 8


def of_size(offset: int, size: int) -> Message:
    return Message(offset, None, bytes(size))


HALF, QUARTER = WINDOW_BYTES // 2, WINDOW_BYTES // 4


class Reader:
    """A window, and a topic that it reads: what a session does, one step at a time."""

    def __init__(self, credit: Credit, sizes: list[int]) -> None:
        self.sizes = sizes  # of the messages that are kept
        self.woken = 0
        self.reading: tuple[int, int] | None = None
        self.window = Window(credit, on_room=self._on_room)
        self.window.start(0)

    def _on_room(self) -> None:
        self.woken += 1

    def publish(self, size: int, *, live: bool = True) -> None:
        self.sizes.append(size)
        if live:
            offset = len(self.sizes)
            self.window.live(Message(offset, offset - 1, bytes(size)))

    def begin(self) -> None:
        if self.window.wants_fetch:
            self.reading = self.window.begin_fetch()

    def end(self) -> None:
        if self.reading is not None:
            after, room = self.reading
            self.reading = None
            offsets = range(after + 1, len(self.sizes) + 1)
            found = [of_size(offset, self.sizes[offset - 1]) for offset in offsets]
            self.window.fetched(found[:room], more=len(found) > room)
            assert self.window.wants_fetch in (True, False)  # it waits, unless there is room

    def fail(self) -> None:
        if self.reading is not None:
            self.reading = None
            self.window.fetch_failed()
            assert self.window.wants_fetch in (True, False)

    def fetch(self) -> None:
        self.begin()
        self.end()

    def confirm(self, count: int) -> None:
        self.window.confirm(self.window.confirmed + count)


def test_client_that_reads_nothing_holds_no_message_of_each_topic_beyond_the_bytes() -> None:
    """200 topics with a message of 900 kB each were 180 MB for one client."""
    credit = Credit(1024)
    readers = [Reader(credit, [900_000]) for _ in range(200)]
    for reader in readers:
        reader.begin()
    for reader in readers:
        reader.end()
    assert credit.bytes < WINDOW_BYTES + 900_000
    assert credit.bytes == sum(reader.window.in_flight_bytes for reader in readers)
    assert not any(reader.window.wants_fetch for reader in readers)


def test_window_leaves_as_many_bytes_free_as_it_has() -> None:
    """A topic that the client does not acknowledge must not stop the others."""
    credit = Credit(100)
    greedy, other = Reader(credit, [QUARTER] * 9), Reader(credit, [QUARTER] * 9)
    greedy.fetch()
    assert greedy.window.in_flight_bytes == HALF
    for number in range(1, 9):
        other.fetch()
        assert other.window.position >= number
        other.confirm(1)


def test_message_of_any_size_goes_if_nothing_is_in_flight() -> None:
    credit = Credit(100)
    reader, other = Reader(credit, [2 * WINDOW_BYTES, 1]), Reader(credit, [1])
    reader.fetch()
    other.fetch()
    assert (reader.window.in_flight, other.window.in_flight) == (1, 0)
    assert not other.window.wants_fetch
    reader.confirm(1)
    assert other.woken == 1
    other.fetch()
    assert other.window.in_flight == 1


def test_who_waits_for_bytes_gets_them_in_turn_whatever_comes_live_to_others() -> None:
    """Live messages took all that was confirmed, before what was read for the others came."""
    credit = Credit(100)
    busy = Reader(credit, [])
    busy.fetch()
    waiting = [Reader(credit, [HALF]) for _ in range(3)]
    busy.publish(WINDOW_BYTES)
    for reader in waiting:
        reader.fetch()
    served: list[int] = []
    for _ in range(12):
        busy.confirm(1)
        for reader in waiting:
            reader.begin()
        busy.publish(WINDOW_BYTES)  # comes while they are read
        for number, reader in enumerate(waiting):
            reader.end()
            if reader.window.in_flight:
                served.append(number)
                reader.confirm(1)
        busy.fetch()
    assert served == [0, 1, 2]
    assert busy.window.position > 3


def test_bytes_that_were_put_aside_come_back_if_they_are_not_needed() -> None:
    for end in (Window.fetch_failed, Window.close, lambda window: window.restart(0)):
        credit = Credit(100)
        busy, waiting = Reader(credit, [WINDOW_BYTES]), Reader(credit, [HALF])
        waiting.begin()
        busy.fetch()
        waiting.end()
        busy.confirm(1)
        assert credit.bytes == HALF
        waiting.begin()
        end(waiting.window)
        assert (credit.messages, credit.bytes, credit.busy) == (0, 0, 0)


SIZES = st.sampled_from([1, 1000, QUARTER, HALF, HALF + 1, WINDOW_BYTES, 2 * WINDOW_BYTES])
READER_STEPS = st.tuples(
    st.integers(0, 3), st.sampled_from(["live", "miss", "begin", "end", "fail", "confirm"]), SIZES
)


@given(st.lists(READER_STEPS, max_size=60), st.integers(1, 12))
def test_bytes_are_kept_and_nobody_starves_whatever_the_windows_do(
    steps: list[tuple[int, str, int]], messages: int
) -> None:
    credit, largest = Credit(messages), 0
    readers = [Reader(credit, []) for _ in range(4)]
    windows = [reader.window for reader in readers]
    for which, step, size in steps:
        reader = readers[which]
        if step in ("live", "miss"):
            largest = max(largest, size)
            reader.publish(size, live=step == "live")
        elif step == "confirm":
            reader.confirm(1)
        else:
            getattr(reader, step)()
        in_flight = sum(window.in_flight_bytes for window in windows)
        assert in_flight < WINDOW_BYTES + max(largest, 1)
        assert in_flight <= credit.bytes < WINDOW_BYTES + max(largest, PROMISE)
        assert credit.held <= WINDOW_BYTES
    for reader in readers:
        reader.fail()
        reader.window.announce(len(reader.sizes))
    for _ in range(20 * (len(steps) + 1)):  # the others' clients acknowledge, the first's does not
        for reader in readers[1:]:
            reader.confirm(1)
            reader.fetch()
        readers[0].fetch()
        if not credit.bytes < WINDOW_BYTES:
            readers[0].confirm(1)
    for reader in readers:
        assert reader.window.position == len(reader.sizes) or reader is readers[0]
        reader.confirm(len(reader.sizes))
        assert reader.window.in_flight == 0
        reader.window.close()
    assert credit.messages == credit.bytes == credit.busy == credit.held == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60), st.integers(1, 12))
def test_credit_is_kept_whatever_the_windows_do(steps: list[tuple[int, int]], size: int) -> None:
    credit = Credit(size)
    windows = [Window(credit) for _ in range(4)]
    for window in windows:
        window.start(0)
    for which, count in steps:
        window = windows[which]
        feed(window, 40)
        assert window.in_flight or window.position == 40, "nobody starves"
        window.confirm(window.confirmed + count)
        assert credit.messages == sum(each.in_flight for each in windows)
        assert credit.bytes == sum(each.in_flight_bytes for each in windows)
        assert credit.busy == sum(bool(each.in_flight) for each in windows)
        assert credit.messages <= size + len(windows)


# -- what is counted ---------------------------------------------------------------------


def counted(size: int = WINDOW) -> tuple[Window, WindowCounts]:
    """Return a window that has read all there was, and where it counts."""
    counts = WindowCounts()
    window = Window(Credit(size), counts)
    window.start(0)
    window.begin_fetch()
    window.fetched([], more=False)
    return window, counts


def test_gap_counts_once_and_is_filled_once() -> None:
    window, counts = counted(size=10)
    window.live(live(1, 0))
    assert (counts.gaps, counts.filled, counts.stalls) == (0, 0, 0)
    window.live(live(3, 2))
    window.live(live(4, 3))
    assert (counts.gaps, counts.filled) == (1, 0)
    window.begin_fetch()
    window.fetched([live(2, None), live(3, None), live(4, None)], more=False)
    assert (counts.gaps, counts.filled, counts.stalls) == (1, 1, 0)
    window.announce(5)  # its end was lost, which only a sweep finds
    assert counts.gaps == 2


def test_gap_that_late_messages_close_is_filled() -> None:
    window, counts = counted()
    window.live(live(2, 1))
    window.live(live(1, 0))
    window.live(live(2, 1))
    assert (counts.gaps, counts.filled) == (1, 1)


def test_gap_whose_message_is_gone_is_never_filled() -> None:
    window, counts = counted()
    window.announce(7)
    while window.wants_fetch:
        window.begin_fetch()
        window.fetched([], more=False)
    assert (counts.gaps, counts.filled) == (1, 0)
    window.live(live(9, 8))
    assert counts.gaps == 2


def test_backlog_and_its_announcements_are_no_gap() -> None:
    counts = WindowCounts()
    window = Window(Credit(WINDOW), counts)
    window.live(live(9, 8))
    window.start(0)
    window.begin_fetch()
    window.announce(12)
    window.live(live(13, 12))
    window.fetched([live(5, None)], more=True)
    assert (counts.gaps, counts.stalls) == (0, 0)


def test_full_window_stalls_once_until_something_is_confirmed() -> None:
    window, counts = counted(size=2)
    for offset in range(1, 3):
        window.live(live(offset, offset - 1))
    assert counts.stalls == 0  # full, but nothing waits
    for offset in range(3, 6):
        window.live(live(offset, offset - 1))
    assert (counts.stalls, counts.gaps) == (1, 0)
    window.take()
    window.confirm(1)
    window.begin_fetch()
    window.fetched([live(3, None)], more=True)
    assert (counts.stalls, counts.gaps) == (2, 0)


def test_unconfirmed_are_those_that_were_written() -> None:
    window, _ = counted()
    for offset in range(1, 4):
        window.live(live(offset, offset - 1))
    assert window.unconfirmed == 0
    window.take()
    window.take()
    assert window.unconfirmed == 2
    window.confirm(1)
    assert window.unconfirmed == 1


def test_sent_and_unconfirmed_tell_how_far_the_client_is() -> None:
    window = Window(Credit(WINDOW))
    window.start(5)
    window.begin_fetch()
    assert (window.sent, window.unconfirmed) == (5, 0)
    window.fetched([Message(offset, None, b"x") for offset in (7, 9, 12)], more=False)
    assert (window.sent, window.unconfirmed) == (5, 0)  # nothing was taken yet
    window.take()
    assert (window.sent, window.unconfirmed) == (7, 1)
    window.take()
    window.confirm(7)
    assert (window.sent, window.unconfirmed) == (9, 1)
    window.take()
    assert (window.sent, window.unconfirmed) == (12, 2)
    window.confirm(12)
    assert (window.sent, window.unconfirmed) == (12, 0)


def sharing(credit: Credit, stored: int) -> tuple[Window, list[int]]:
    """Return a window that has as much of *stored* messages as it may, and when it was woken."""
    woken: list[int] = []
    window = Window(credit, on_room=lambda: woken.append(1))
    window.start(0)
    feed(window, stored)
    return window, woken


def test_window_that_waits_for_the_others_is_woken_when_they_give_back() -> None:
    """Each acknowledgement looked at all windows of the session, which may be a thousand."""
    credit = Credit(8)
    first, _ = sharing(credit, 8)
    second, woken = sharing(credit, 3)
    assert (first.in_flight, second.in_flight) == (8, 1)
    assert not second.wants_fetch
    assert woken == []
    first.confirm(5)
    assert woken == [1]
    assert second.wants_fetch


def test_as_many_windows_are_woken_as_there_are_places() -> None:
    credit = Credit(40)
    first, _ = sharing(credit, 40)
    waiting = [sharing(credit, 8) for _ in range(10)]
    assert not any(window.wants_fetch for window, _ in waiting)
    first.confirm(10)
    assert not any(woken for _, woken in waiting), "each of them has a message, so none is free"
    first.confirm(15)
    assert sum(len(woken) for _, woken in waiting) == 5


def test_window_never_has_more_than_its_own_limit() -> None:
    credit = Credit(8, each=3)
    first, _ = sharing(credit, 8)
    second, _ = sharing(credit, 8)
    assert (first.in_flight, second.in_flight) == (3, 3)


def test_closed_window_gives_its_credit_back() -> None:
    credit = Credit(4)
    first, _ = sharing(credit, 4)
    second, woken = sharing(credit, 3)
    first.close()
    assert (credit.messages, credit.busy, woken) == (1, 1, [1])
    assert not first.wants_fetch
    second.close()
    assert (credit.messages, credit.bytes, credit.busy) == (0, 0, 0)
