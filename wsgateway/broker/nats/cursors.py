"""Each device's cursor, in a JetStream key-value bucket: how far it has read its inbox."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from wsgateway.broker.bus import Reply
from wsgateway.broker.messages import Position
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream
from wsgateway.exceptions import BrokerError, BrokerUnavailable, NameRefused, reason_of
from wsgateway.protocol.subjects import Inbox, Subjects, decode_token, encode_token

__all__ = ["Cursors", "Saved"]

logger = logging.getLogger("wsgateway.broker")

REMEMBERED = 100_000
ATTEMPTS = 10
"""Others' writes that one write of a cursor puts up with."""
PAUSE = 0.01
MOST_READ = 1000
"""Cursors of one user that are shown."""
MOST_EVICTED = 1000
"""Cursors that go for one that comes; more only where the limit was lowered."""


class _Entry(NamedTuple):
    """What the bucket holds for a device.

    Attributes:
        revision: The entry's sequence in the bucket, to see others' writes; 0: it has none.
        epoch: Life of the inbox stream that *offset* belongs to.
        offset: Up to where the device has everything; 0: not known.
    """

    revision: int
    epoch: str
    offset: int


class Saved(NamedTuple):
    """A device's cursor and when it was written; see `_Entry`."""

    device: str
    epoch: str
    offset: int
    time: dt.datetime


def _parse(data: bytes) -> tuple[str, int]:
    """Return epoch and offset of an entry; "" and 0 if it is not ours."""
    epoch, _, offset = data.decode("utf-8", "replace").rpartition(" ")
    known = offset.isdecimal() and len(offset) <= hdrs.MAX_DIGITS
    return (epoch, int(offset)) if known else ("", 0)


def _saved(reply: Reply) -> Saved:
    token = (hdrs.find(reply.headers, b"Nats-Subject") or b"").decode().rpartition(".")[2]
    try:
        device = decode_token(token)
    except NameRefused:  # not ours
        device = token
    time = hdrs.find_time(reply.headers) or dt.datetime.fromtimestamp(0, dt.UTC)
    return Saved(device, *_parse(reply.data), time)


class Cursors:
    """The bucket of cursors.

    Args:
        jetstream: Where.
        subjects: Names the bucket and its keys.
        position: Asks where the inbox stream stands.
        limit: Cursors that one user keeps.
    """

    def __init__(
        self,
        jetstream: JetStream,
        subjects: Subjects,
        position: Callable[[], Awaitable[Position]],
        limit: int,
    ) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        self._position = position
        self._limit = limit
        bucket = f"{subjects.upper}_CURSORS"
        self._stream = f"KV_{bucket}"
        self._keys = f"$KV.{bucket}"
        self._known: OrderedDict[str, _Entry] = OrderedDict()  # as read or written here, by subject

    def _subject(self, inbox: Inbox, device: str) -> str:
        return f"{self._keys}.{self._subjects.cursor_key(inbox, device)}"

    def _all_of(self, inbox: Inbox) -> str:
        return f"{self._keys}.{encode_token(inbox.service)}.{encode_token(inbox.user)}.*"

    async def load(self, inbox: Inbox, device: str) -> int:
        """See `Broker.load_cursor`."""
        subject = self._subject(inbox, device)
        entry = await self._read(subject)
        if not entry.offset:
            return 0
        position = await self._position()  # after the entry, or a new one may seem to be beyond
        if entry.epoch != position.epoch:
            return 0
        if entry.offset <= position.last:
            return entry.offset
        logger.warning(
            "dropped a cursor at %s because the stream ends before it",
            entry.offset,
            extra={**_log_fields(inbox, device), "offset": entry.offset},
        )
        try:
            await self._purge(subject, entry.revision)
        except BrokerError as exc:  # that must not keep its device out
            logger.warning(
                "could not remove the dropped cursor: %s",
                reason_of(exc),
                extra=_log_fields(inbox, device),
            )
        return 0

    async def save(self, inbox: Inbox, device: str, offset: int, epoch: str) -> None:
        """See `Broker.save_cursor`; *epoch* is the stream's."""
        subject = self._subject(inbox, device)
        for attempt in range(ATTEMPTS):
            entry = self._known.get(subject) or await self._read(subject)
            if entry.epoch == epoch and entry.offset >= offset:
                return
            if await self._write(subject, epoch, offset, entry.revision):
                if not entry.revision:
                    await self._evict(inbox)
                return
            # Another gateway moved it (or our own retry did): the further one counts.
            await asyncio.sleep(PAUSE * attempt)  # a replica may not know of it yet
        raise BrokerUnavailable("other gateways move this cursor all the time; save it again later")

    async def drop(self, inbox: Inbox, device: str) -> None:
        """See `Broker.drop_cursor`."""
        subject = self._subject(inbox, device)
        entry = await self._read(subject)
        if entry.revision:
            await self._purge(subject, entry.revision)

    async def saved(self, inbox: Inbox) -> list[Saved]:
        """Return every device's cursor, the most recently written last."""
        request = {"seq": 1, "next_by_subj": self._all_of(inbox), "batch": MOST_READ}
        found = await self._jetstream.direct(self._stream, request)
        return [_saved(reply) for reply in found.replies]

    def forget_beyond(self, offset: int) -> None:
        """Forget cached cursors beyond *offset*, where the stream ends now."""
        for subject in [s for s, entry in self._known.items() if entry.offset > offset]:
            del self._known[subject]

    async def _read(self, subject: str) -> _Entry:
        found = await self._jetstream.direct(self._stream, {"last_by_subj": subject})
        entry = _Entry(0, "", 0)
        if found.replies:
            reply = found.replies[0]
            revision = hdrs.find_int(reply.headers, b"Nats-Sequence") or 0
            entry = _Entry(revision, *_parse(reply.data))
        self._remember(subject, entry)
        return entry

    async def _write(self, subject: str, epoch: str, offset: int, revision: int) -> bool:
        """Replace the entry of *revision*; return False if another was written since."""
        payload = f"{epoch} {offset}".encode()
        try:
            receipt = await self._jetstream.publish(subject, payload, expect_last=revision)
        except ApiError as exc:
            if exc.err_code != WRONG_LAST_SEQUENCE:
                raise
            self._known.pop(subject, None)
            return False
        self._remember(subject, _Entry(receipt.offset, epoch, offset))
        return True

    async def _purge(self, subject: str, revision: int) -> None:
        """Remove an entry, even from a full bucket, unless another was written since."""
        request = {"filter": subject, "seq": revision + 1}
        await self._jetstream.api(f"STREAM.PURGE.{self._stream}", request)
        self._known.pop(subject, None)

    def _remember(self, subject: str, entry: _Entry) -> None:
        self._known[subject] = entry
        self._known.move_to_end(subject)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _evict(self, inbox: Inbox) -> None:
        """Remove a user's cursors beyond the limit, the least recently moved first.

        The bucket keeps one message a key, so their order in the stream is the order of use.
        """
        request = {"seq": 1, "next_by_subj": self._all_of(inbox), "batch": 1}
        try:
            found = await self._jetstream.direct(self._stream, request)
            excess = len(found.replies) + found.pending - self._limit
            if excess <= 0:
                return
            request["batch"] = min(excess, MOST_EVICTED)
            found = await self._jetstream.direct(self._stream, request)
            for reply in found.replies:
                subject = (hdrs.find(reply.headers, b"Nats-Subject") or b"").decode()
                revision = hdrs.find_int(reply.headers, b"Nats-Sequence") or 0
                await self._purge(subject, revision)
        except BrokerError as exc:  # the cursor itself is written, and the next one tries again
            logger.warning(
                "could not remove a user's oldest cursors: %s",
                reason_of(exc),
                extra={"service": inbox.service, "user": inbox.user},
            )


def _log_fields(inbox: Inbox, device: str) -> dict[str, object]:
    return {"service": inbox.service, "user": inbox.user, "device": device}
