"""Reads a log from its stream."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from wsgateway.broker.bus import Closable, Handler
from wsgateway.broker.log import Log
from wsgateway.broker.messages import (
    ERROR_HEADER,
    REPLY_TO_HEADER,
    SENDER_HEADER,
    Batch,
    Position,
    Stored,
    read_sender,
)
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.backwards import Backwards
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.levels import Levels
from wsgateway.broker.nats.specs import NANO
from wsgateway.broker.nats.streams import RESTORED_AT, TRIMMED_UNTIL
from wsgateway.broker.shared import Shared
from wsgateway.protocol.frames import FRAME_HEADER
from wsgateway.protocol.subjects import Address, Subjects, Topic
from wsgateway.tracing import TRACEPARENT, find_tracer, sampled

__all__ = ["NatsLog", "handler_of"]

READ_BYTES = 4 * 1024 * 1024
"""Bytes that one read may return, so that a backlog cannot fill the gateway's memory."""
MULTI_LAST = 1024
"""Subjects that the server takes in one ``multi_last``."""
MULTI_LAST_BYTES = 256 * 1024
"""Bytes of subjects in one request; escaped names are long, and the server ends a connection
that exceeds its max_payload."""
MULTI_LAST_REST = 128
"""Bytes of such a request besides its subjects."""

_EARLIEST, _LATEST = dt.datetime(1970, 1, 2, tzinfo=dt.UTC), dt.datetime(2262, 1, 1, tzinfo=dt.UTC)
"""The server counts nanoseconds in 64 bits: later times would be before everything else."""

_SEQUENCE = b"Nats-Sequence"
_PREVIOUS = b"Nats-Last-Sequence"
_KIND = FRAME_HEADER.encode()
_TIME = b"Nats-Time-Stamp"
_SUBJECT = b"Nats-Subject"
_TTL = b"Nats-TTL"
_REPLY_TO = REPLY_TO_HEADER.encode()
_ERROR = ERROR_HEADER.encode()
_SENDER = SENDER_HEADER.encode()
_TRACEPARENT = TRACEPARENT.encode()


class NatsLog(Log):
    """A stream. See `Log`.

    Args:
        jetstream: Where.
        subjects: Names its subjects.
        stream: Its name.
        everything: The subject, with wildcards, of all that it holds.
        levels: Told of its level.
    """

    def __init__(
        self, jetstream: JetStream, subjects: Subjects, stream: str, everything: str, levels: Levels
    ) -> None:
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._subjects = subjects
        self._everything = everything
        self._levels = levels
        self.name = stream
        self._epoch = ""
        self._last = 0  # its newest offset when it was last asked
        self._max_age = 0.0  # seconds that it keeps a message; 0: for ever
        self._shared_position = Shared(self._ask_position)
        self._backwards = Backwards(jetstream, stream)
        self.on_shortened: Callable[[int], object] = lambda last: None
        """Called with the newest offset of a stream that has lost what came after it."""

    async def read_after(
        self, address: Address, offset: int, *, limit: int, anchor: bool = False
    ) -> Batch:
        inclusive = anchor and offset > 0
        request = {
            "seq": offset if inclusive else offset + 1,
            "next_by_subj": self._subjects.stored(address),
            "batch": limit + inclusive,
            "max_bytes": READ_BYTES,
        }
        found = await self._jetstream.direct(self.name, request)
        replies, anchored = found.replies, False
        if inclusive and replies and hdrs.find_int(replies[0].headers, _SEQUENCE) == offset:
            anchored = self._proves(replies.pop(0).headers)
            if not replies and found.pending:  # it was as large as a whole batch
                rest = await self.read_after(address, offset, limit=limit)
                return rest._replace(anchored=anchored)
        more = found.pending > 0 or len(replies) > limit
        make = _maker(address)
        messages = [make(reply.data, reply.headers, live=False) for reply in replies[:limit]]
        return Batch(messages, more, anchored)

    async def read_last(self, address: Address, limit: int, *, before: int | None = None) -> Batch:
        found, more = await self._backwards.read(self._subjects.stored(address), limit, before)
        make = _maker(address)
        return Batch([make(reply.data, reply.headers, live=False) for reply in found], more)

    async def offset_at(self, address: Address, time: dt.datetime) -> int | None:
        start = min(max(time, _EARLIEST), _LATEST).astimezone(dt.UTC)
        request = {
            "start_time": start.isoformat(),
            "next_by_subj": self._subjects.stored(address),
            "batch": 1,
        }
        found = await self._jetstream.direct(self.name, request)
        return hdrs.find_int(found.replies[0].headers, _SEQUENCE) if found.replies else None

    def _proves(self, raw: bytes | None) -> bool:
        """Say whether a message goes no later than those behind it."""
        if (hdrs.find(raw, _TTL) or b"").lower() == b"never":
            return False
        stamp = hdrs.find(raw, _TIME)
        if not self._max_age or stamp is None:
            return True
        age = dt.datetime.now(dt.UTC) - _time(stamp.decode())
        return age.total_seconds() < self._max_age

    def watch(
        self, address: Address, on_message: Callable[[Stored], None], queue: str = ""
    ) -> Closable:
        subject = self._subjects.republished(address)
        return self._connection.subscribe(subject, handler_of(address, on_message), queue)

    async def last_offsets(self, addresses: Iterable[Address]) -> dict[Address, int]:
        asked = {self._subjects.stored(address): address for address in addresses}
        found = {}
        room = min(MULTI_LAST_BYTES, self._connection.max_payload) - MULTI_LAST_REST
        for subjects in _portions(asked, room):
            async for subject, offset in self._last_offsets(subjects):
                if subject in asked:
                    found[asked[subject]] = offset
        return found

    async def _last_offsets(self, subjects: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Yield the newest offset of each subject that has one.

        The server sends whole messages, and stops at a limit in bytes.
        """
        while subjects:
            request = {"multi_last": subjects, "max_bytes": READ_BYTES}
            batch = await self._jetstream.direct(self.name, request)
            answered = set()
            for reply in batch.replies:
                subject = (hdrs.find(reply.headers, _SUBJECT) or b"").decode()
                answered.add(subject)
                yield subject, hdrs.find_int(reply.headers, _SEQUENCE) or 0
            if not batch.pending or not answered:
                return
            subjects = [subject for subject in subjects if subject not in answered]

    async def position(self) -> Position:
        return await self._shared_position()

    @property
    def epoch(self) -> str:
        return self._epoch

    async def _ask_position(self) -> Position:
        info = await self._jetstream.api(f"STREAM.INFO.{self.name}")
        self.learn(info)
        state = info["state"]
        first, last = max(state["first_seq"], 1), state["last_seq"]
        gaps = last + 1 - first - state["messages"]
        if state["messages"] and self._max_age:
            first = await self._first_young(info)
        mark = (info["config"].get("metadata") or {}).get(TRIMMED_UNTIL, "")
        if mark.isdecimal():
            first = max(first, int(mark) + 1)
        most = max(info["config"].get("max_msgs_per_subject", 0), 0)
        return Position(self._epoch, first, last, gaps, most)

    def learn(self, info: Mapping[str, Any]) -> None:
        """Take what STREAM.INFO says of the stream."""
        epoch, last = _epoch(info), info["state"]["last_seq"]
        if epoch == self._epoch and last < self._last:
            self.on_shortened(last)
        self._epoch, self._last = epoch, last
        self._levels.note(info)
        self._max_age = info["config"].get("max_age", 0) / NANO

    async def _first_young(self, info: Mapping[str, Any]) -> int:
        """Return the offset of the oldest message that the stream's age limit has not reached.

        The oldest of all may be older: it lives for ever, or the server is about to remove it.
        """
        state = info["state"]
        now, oldest = (_time(text) for text in (info["ts"], state["first_ts"]))
        since = now - dt.timedelta(seconds=self._max_age)
        if oldest > since:
            return int(state["first_seq"])
        request = {
            "start_time": since.isoformat(),
            "next_by_subj": self._everything,
            "batch": 1,
        }
        found = await self._jetstream.direct(self.name, request)
        raw = found.replies[0].headers if found.replies else None
        return hdrs.find_int(raw, _SEQUENCE) or int(state["last_seq"]) + 1

    async def count(self, address: Address) -> int:
        subject = self._subjects.stored(address)
        request = {"subjects_filter": subject}
        info = await self._jetstream.api(f"STREAM.INFO.{self.name}", request)
        return int((info["state"].get("subjects") or {}).get(subject, 0))


def _stored(payload: bytes, raw: bytes | None, *, live: bool) -> Stored:
    stamp = hdrs.find(raw, _TIME)
    return Stored(
        hdrs.find_int(raw, _SEQUENCE) or 0,
        # In a batch the header means "the one before in this batch", not in the inbox.
        hdrs.find_int(raw, _PREVIOUS) if live else None,
        payload,
        hdrs.find_text(raw, _KIND),
        "" if stamp is None else stamp.decode(),
        hdrs.find_text(raw, _REPLY_TO),
        hdrs.find_text(raw, _ERROR),
    )


def _traced(payload: bytes, raw: bytes | None, *, live: bool) -> Stored:
    stored = _stored(payload, raw, live=live)
    stored.trace = sampled(hdrs.find_text(raw, _TRACEPARENT))
    return stored


def _written(
    make: Callable[..., Stored], payload: bytes, raw: bytes | None, *, live: bool
) -> Stored:
    stored = make(payload, raw, live=live)
    stored.sender = read_sender(hdrs.find_text(raw, _SENDER))
    return stored


def _maker(address: Address) -> Callable[..., Stored]:
    """Return what makes a `Stored` of what comes for *address*.

    Who does not trace need not look for a trace, and only clients' messages to topics say who sent
    them.
    """
    make = _stored if find_tracer() is None else _traced
    return partial(_written, make) if isinstance(address, Topic) else make


def handler_of(address: Address, on_message: Callable[[Stored], None]) -> Handler:
    """Return what takes messages of *address* from a subscription and hands each on."""
    make = _maker(address)

    def handle(_subject: bytes, _reply: bytes, data: bytes, raw: bytes | None) -> None:
        on_message(make(data, raw, live=True))

    return handle


def _portions(subjects: Iterable[str], room: int) -> Iterator[list[str]]:
    """Cut *subjects* into lists that fit one ``multi_last`` request, by number and by bytes."""
    portion: list[str] = []
    size = 0
    for subject in subjects:
        if portion and (len(portion) == MULTI_LAST or size + len(subject) + 4 > room):
            yield portion
            portion, size = [], 0
        portion.append(subject)
        size += len(subject) + 4  # quotes, comma, space
    if portion:
        yield portion


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _epoch(info: Mapping[str, Any]) -> str:
    """Return what names the stream's life: when it was created and restored, digits only."""
    restored = (info["config"].get("metadata") or {}).get(RESTORED_AT, "")
    return "".join(char for char in f"{info['created']}{restored}" if char.isdigit())
