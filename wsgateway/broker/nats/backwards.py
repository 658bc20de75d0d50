"""Reads a subject backwards, for which JetStream has no request.

A direct get of one message says how many of the same subject follow it (``Nats-Num-Pending``). So
a search finds where the wanted ones begin, and one forward read gets them. Deleted and expired
messages, and those of other subjects, do not count, whatever holes they leave. Source: NATS ADR-31.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import OrderedDict
from typing import NamedTuple

from wsgateway.broker.bus import Reply
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import NO_MESSAGE, ApiError, DirectBatch, JetStream
from wsgateway.exceptions import BrokerUnavailable

__all__ = ["MAX_OFFSET", "Backwards", "Place", "look"]

MAX_OFFSET = 2**63 - 1
"""No stream gets that far; the server does not read all that are larger."""
READ_BYTES = 4 * 1024 * 1024
"""Bytes that one read may return."""
SPARE = 8
"""Messages that a read may return besides the wanted ones, so that the search ends sooner."""
INTERPOLATIONS = 8
"""Looks that assume an even distribution, which finds most places in three or four; then the
search halves what is left: 30 more looks suffice for a billion offsets."""
ATTEMPTS = 12
"""Searches for one read, while others store and delete, or messages are large."""
MOST_ROOM = 1000
"""Messages that a read expects to be stored while it looks."""
PAUSE = 0.05
"""Seconds that a replica gets to catch up, times the attempt."""
REMEMBERED = 10_000
"""Places where searches ended."""

_SEQUENCE = b"Nats-Sequence"


class Place(NamedTuple):
    """A position in a stream, seen from one subject.

    Attributes:
        offset: A stream sequence.
        rest: How many messages of the subject are kept from there on.
        time: When the message there was stored; None if it is not that of a message.
        is_first: Whether the subject has none before it.
    """

    offset: int
    rest: int
    time: dt.datetime | None = None
    is_first: bool = False


class Backwards:
    """Reads subjects of one stream backwards.

    Args:
        jetstream: Where.
        stream: The stream's name.
    """

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._jetstream = jetstream
        self._stream = stream
        # Where a read of a subject before an offset began; a hint, so it may be wrong
        self._starts: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def read(self, subject: str, limit: int, before: int | None) -> tuple[list[Reply], bool]:
        """Return the newest messages, oldest first, and whether older ones are kept.

        Args:
            subject: Whose.
            limit: 1-1000 messages; fewer come if they are large.
            before: Stream sequence, exclusive; None: up to the newest.

        Raises:
            BrokerUnavailable: No answer in time, or the replicas contradict each other for long.
        """
        if before is not None and before <= 1:
            return [], False
        before = None if before is None or before > MAX_OFFSET else before
        key = subject, before or 0
        reading = _Reading(self._jetstream, self._stream, subject, limit, before)
        reading.hint = self._starts.get(key, 0)
        found = await reading.run()
        if reading.hint:
            self._starts[key] = reading.hint
            self._starts.move_to_end(key)
            if len(self._starts) > REMEMBERED:
                self._starts.popitem(last=False)
        return found


class _Reading:
    """One read: finds where to begin, reads, and looks whether that was what is wanted."""

    def __init__(
        self, jetstream: JetStream, stream: str, subject: str, limit: int, before: int | None
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._before = before
        self._wanted = limit
        self._least = limit + 1  # messages to begin with: one more shows that there are older ones
        self._spare = max(SPARE, limit // 4)  # messages that the read may begin before those
        self._room = SPARE  # the same at the end, for what is stored while we look
        self.hint = 0
        """Where an earlier read began, and then where this one did; 0: not known."""

    async def run(self) -> tuple[list[Reply], bool]:
        """See `Backwards.read`."""
        for attempt in range(ATTEMPTS):
            start = await self._find_start()
            found = await self._forward(start) if start is not None else DirectBatch([], 0)
            taken = [reply for reply in found.replies if self._is_before(reply)]
            expected = start.rest if start is not None else 0
            at_end = not found.pending or len(taken) < len(found.replies)
            if not at_end and len(taken) < expected:
                self._want_fewer(len(taken))
            elif await self._is_behind(found, taken):
                await asyncio.sleep(PAUSE * (attempt + 1))
            elif not at_end and len(found.replies) == expected + self._room:
                self._room = min(self._room + 2 * found.pending, MOST_ROOM)  # more were stored
            elif start is None or start.is_first or len(taken) >= self._least:
                more = len(taken) > self._wanted or self._least == self._wanted
                return taken[-self._wanted :], more
            else:
                # Stored since we looked, so that too few of the counted ones are before the end
                self._spare += 2 * (expected - len(taken))
        raise BrokerUnavailable(
            f"what stream {self._stream!r} holds changes too fast to read it backwards, or its "
            "replicas differ; try again later"
        )

    def _want_fewer(self, fit: int) -> None:
        """Return less: the messages are so large that one read does not reach the newest."""
        self._wanted = self._least = max(1, min(fit, self._wanted // 2))
        self._spare = 0

    def _is_before(self, reply: Reply) -> bool:
        return self._before is None or _offset(reply) < self._before

    async def _forward(self, start: Place) -> DirectBatch:
        return await self._get(start.offset, start.rest + self._room)

    async def _get(self, offset: int, batch: int) -> DirectBatch:
        request = {"seq": offset, "next_by_subj": self._subject, "batch": batch}
        return await self._jetstream.direct(self._stream, {**request, "max_bytes": READ_BYTES})

    async def _is_behind(self, found: DirectBatch, taken: list[Reply]) -> bool:
        """Say whether the replica that answered lacks messages before `before`.

        A newer message of the subject proves that it does not; without one the leader knows.
        """
        if self._before is None or found.pending or len(taken) < len(found.replies):
            return False
        after = _offset(taken[-1]) + 1 if taken else 1
        request = {"seq": after, "next_by_subj": self._subject}
        try:
            answer = await self._jetstream.api(f"STREAM.MSG.GET.{self._stream}", request)
        except ApiError as exc:
            if exc.err_code == NO_MESSAGE:
                return False
            raise
        return bool(answer["message"]["seq"] < self._before)

    # -- where to begin ------------------------------------------------------------------

    async def _look(self, offset: int) -> Place | None:
        return await look(self._jetstream, self._stream, self._subject, offset)

    async def _end(self) -> Place | None:
        """Return where what is wanted ends, and what comes from there on; None if all is gone."""
        if self._before is not None:
            newer = await self._look(self._before)
            return Place(self._before, newer.rest if newer else 0)
        found = await self._jetstream.direct(self._stream, {"last_by_subj": self._subject})
        return Place(_offset(found.replies[0]) + 1, 0) if found.replies else None

    async def _find_start(self) -> Place | None:
        """Return where to begin, and about how many messages there are from there to the end.

        Returns:
            As many as wanted, and a few more; or the first message of all. None: nothing is kept.
        """
        hint, self.hint = self.hint, 0
        low, end = await asyncio.gather(self._look(max(hint, 1)), self._end())
        if end is None:
            return None
        if hint and (low is None or low.rest - end.rest < self._least):
            hint, low = 0, await self._look(1)
        if low is None or low.rest <= end.rest:
            return None
        is_first = not hint and low.rest - end.rest <= self._least + self._spare
        if not is_first:
            low = await self._search(low, end)
            self.hint = low.offset
        return low._replace(rest=low.rest - end.rest, is_first=is_first)

    async def _search(self, low: Place, end: Place) -> Place:
        """Return the place with enough messages before *end*, and at most a few more.

        Args:
            low: A message with enough.
            end: Where they end.
        """
        most = end.rest + self._least + self._spare
        high, looks = end, 0  # the first place known to have too few
        while low.rest > most and high.offset - low.offset > 1:
            middle = (low.offset + high.offset) // 2
            if looks < INTERPOLATIONS and low.rest > high.rest:
                aim = end.rest + self._least + self._spare // 2
                part = (low.rest - aim) / (low.rest - high.rest)
                middle = low.offset + int((high.offset - low.offset) * part)
                middle = min(max(middle, low.offset + 1), high.offset - 1)
            looks += 1
            found = await self._look(middle)
            if found is None or found.rest - end.rest < self._least:
                high = Place(middle, found.rest if found else 0)
            elif found.offset < high.offset:
                low = found
            else:  # others have stored more since `high` was looked at
                high = Place(middle, found.rest)
        return low


async def look(jetstream: JetStream, stream: str, subject: str, offset: int = 1) -> Place | None:
    """Return the first message of *subject* from *offset* on, and how many there are.

    Args:
        jetstream: Where.
        stream: The stream's name.
        subject: May have wildcards.
        offset: Where to begin.

    Returns:
        None: there is none.
    """
    request = {"seq": offset, "next_by_subj": subject, "batch": 1}
    found = await jetstream.direct(stream, request)
    if not found.replies:
        return None
    raw = found.replies[0].headers
    return Place(_offset(found.replies[0]), 1 + found.pending, hdrs.find_time(raw))


def _offset(reply: Reply) -> int:
    return hdrs.find_int(reply.headers, _SEQUENCE) or 0
