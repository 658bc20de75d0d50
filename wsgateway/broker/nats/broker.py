"""The NATS JetStream broker: joins link, streams, publishing and direct gets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from wsgateway.broker.base import (
    ERROR_HEADER,
    REPLY_TO_HEADER,
    Batch,
    Broker,
    Closable,
    Position,
    Receipt,
    Stored,
    check_published,
)
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream
from wsgateway.broker.nats.link import Link, LinkOptions, Reply
from wsgateway.broker.nats.streams import Streams, StreamSpec
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerMisconfigured, BrokerUnavailable
from wsgateway.frames import FRAME_HEADER, Frame
from wsgateway.subjects import Inbox, Subjects
from wsgateway.supervision import supervise

__all__ = ["NatsBroker"]

logger = logging.getLogger("wsgateway.broker")

LEAST_VERSION = (2, 11, 0)
READ_BYTES = 4 * 1024 * 1024
"""Bytes that one read may return, so that a backlog cannot fill the gateway's memory."""
MULTI_LAST = 1024
"""Subjects that the server takes in one ``multi_last``."""
MULTI_LAST_BYTES = 256 * 1024
"""Bytes of subjects in one request; escaped names are long, and the server's max_payload ends
the connection of whoever exceeds it."""
REMEMBERED_CURSORS = 100_000
CURSOR_ATTEMPTS = 10
"""Others' writes that one write of a cursor puts up with."""
CURSOR_PAUSE = 0.01
RECHECK = 5.0
"""Seconds until a misconfigured server is checked again."""

_SEQUENCE = b"Nats-Sequence"
_PREVIOUS = b"Nats-Last-Sequence"
_KIND = FRAME_HEADER.encode()
_TIME = b"Nats-Time-Stamp"
_SUBJECT = b"Nats-Subject"
_REPLY_TO = REPLY_TO_HEADER.encode()
_ERROR = ERROR_HEADER.encode()


class _Ended:
    """A `Closable` from a function."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def close(self) -> None:
        self._end()


def _stored(payload: bytes, raw: bytes | None, *, live: bool) -> Stored:
    stamp = hdrs.find(raw, _TIME)
    return Stored(
        hdrs.find_int(raw, _SEQUENCE) or 0,
        # In a batch the header means "the one before in this batch", not in the inbox.
        hdrs.find_int(raw, _PREVIOUS) if live else None,
        payload,
        _text(raw, _KIND),
        "" if stamp is None else stamp.decode(),
        _text(raw, _REPLY_TO),
        _text(raw, _ERROR),
    )


def _text(raw: bytes | None, name: bytes) -> str | None:
    value = hdrs.find(raw, name)
    return None if value is None else value.decode("utf-8", "replace")


class NatsBroker(Broker):
    """See `Broker`.

    Args:
        options: Where and how to connect.
        subjects: Names below the installation's prefix.
        specs: The streams that must be there, as `streams.wanted_streams` makes them.
    """

    def __init__(
        self, options: LinkOptions, subjects: Subjects, specs: Iterable[StreamSpec]
    ) -> None:
        self.subjects = subjects
        self.link = Link(options)
        self.jetstream = JetStream(self.link, options.timeout, options.publish_timeout)
        self.streams = Streams(self.jetstream, specs)
        self._timeout = options.timeout
        self._recv = subjects.stream("recv")
        self._bucket = f"{subjects.upper}_CURSORS"
        self._epoch = ""
        self._opened = False
        self._settled = asyncio.Event()  # connected, and streams checked: ready or _problem
        self._problem: BrokerMisconfigured | None = None  # why it will not become ready
        self._delay = ""  # why it is not ready yet, as far as known
        self._preparing: asyncio.Task[None] | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._keys = itertools.count()
        # Cursors that were read or written here: revision, to see others' writes; epoch; offset.
        self._cursors: OrderedDict[str, tuple[int, str, int]] = OrderedDict()

    # -- life cycle ----------------------------------------------------------------------

    async def open(self) -> None:
        await self.link.open()
        if not self._opened:
            self._opened = True
            self.link.on_open(self._on_open)
            self.link.on_lost(self._on_lost)
            if self.link.is_open:  # since `set_up`
                self._on_open()

    async def close(self) -> None:
        self._settled.clear()
        await self.link.close(min(2.0, self._timeout))
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing}, timeout=1.0)
        self._problem = None
        self._settled.set()  # those who wait look, and find the link closed

    def _on_open(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing = supervise(self._prepare, "wsgateway-prepare")

    def _on_lost(self) -> None:
        self._settled.clear()
        self._problem = None  # the next server may be another
        self._delay = ""

    async def _prepare(self) -> None:
        """Check server and streams until they are as wanted; then announce ready."""
        while True:
            try:
                await self._check()
                break
            except BrokerMisconfigured as exc:
                if str(exc) != str(self._problem):
                    logger.error("%s", exc)
                self._problem = exc
                self._settled.set()
            except BrokerClosed:
                return
            except BrokerError as exc:
                if not self.link.is_open:
                    return  # the next connection prepares again
                self._note_delay(exc)
            await asyncio.sleep(RECHECK if self._problem else 0.25)
        self._problem = None
        self._settled.set()
        for callback in list(self._callbacks.values()):
            try:
                callback()
            except Exception:  # the others must hear of it all the same
                logger.exception("a callback on a broker that became ready failed")

    def _note_delay(self, exc: BrokerError) -> None:
        """Log what keeps the streams from being ready, each reason once."""
        if str(exc) != self._delay:
            log = logger.debug if isinstance(exc, BrokerUnavailable) else logger.error
            log("the streams are not ready yet: %s", exc)
        self._delay = str(exc)

    async def _check(self) -> None:
        self._require_server()
        infos = await self.streams.ensure()
        if self._recv in infos:
            self._epoch = _epoch(infos[self._recv])

    def _require_server(self) -> None:
        version = self.link.server_version
        if version < LEAST_VERSION:
            raise BrokerMisconfigured(
                f"NATS {'.'.join(map(str, version))} at {self.link.address} is too old: batched "
                "direct get and per-message TTL need 2.11 or later; upgrade the server"
            )
        if not self.link.jetstream_offered:
            raise BrokerMisconfigured(
                f"NATS at {self.link.address} runs without JetStream; start it with -js"
            )

    async def set_up(self) -> list[str]:
        await self.link.open()
        await self.link.ready()
        self._require_server()
        patience = self.jetstream.publish_timeout  # an operator's command outlasts an election
        jetstream = JetStream(self.link, patience, patience)
        return await Streams(jetstream, self.streams.specs).setup()

    @property
    def ready(self) -> bool:
        return self._settled.is_set() and self._problem is None and self.link.is_open

    async def wait_ready(self, timeout: float | None = None) -> None:
        if self.ready:
            return
        if self._problem is not None:
            raise self._problem
        limit = self.jetstream.publish_timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        await self.link.ready(timeout)  # first and alone: its error says why it is not connected
        try:
            async with asyncio.timeout_at(deadline):
                await self._settled.wait()
        except TimeoutError as exc:
            await self.link.ready(0)  # lost meanwhile?
            raise BrokerUnavailable(
                f"the streams at {self.link.address} were not ready within {limit:g} s: "
                f"{self._delay or 'no answer yet'}"
            ) from exc
        await self.link.ready(0)  # woken by close?
        if self._problem is not None:
            raise self._problem

    def on_ready(self, callback: Callable[[], None]) -> Closable:
        key = next(self._keys)
        self._callbacks[key] = callback
        return _Ended(lambda: self._callbacks.pop(key, None) and None)

    # -- publish -------------------------------------------------------------------------

    async def publish(
        self,
        inbox: Inbox,
        payload: bytes,
        *,
        kind: str | None = None,
        msg_id: str | None = None,
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        subject = self.subjects.recv(inbox)
        check_published(headers, ttl, msg_id)
        pairs = dict(headers or {})
        if kind is not None:
            pairs[FRAME_HEADER] = kind
        if ttl is not None:
            pairs["Nats-TTL"] = f"{int(ttl * 1000)}ms"
        if msg_id:  # the server compares ids across the whole stream
            msg_id = f"{msg_id}@{subject}"
        if not self.ready:
            await self.wait_ready()
        return await self.jetstream.publish(subject, payload, pairs, msg_id=msg_id)

    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        pairs = {"Nats-Msg-Id": msg_id, FRAME_HEADER: frame.kind, **(headers or {})}
        return self.jetstream.offer(self.subjects.send(inbox), frame.payload, pairs)

    # -- read ----------------------------------------------------------------------------

    async def read_after(self, inbox: Inbox, offset: int, *, limit: int) -> Batch:
        request = {
            "seq": offset + 1,
            "next_by_subj": self.subjects.recv(inbox),
            "batch": limit,
            "max_bytes": READ_BYTES,
        }
        found = await self.jetstream.direct(self._recv, request)
        messages = [_stored(reply.data, reply.headers, live=False) for reply in found.replies]
        return Batch(messages, found.pending > 0)

    def watch(self, inbox: Inbox, on_message: Callable[[Stored], None]) -> Closable:
        def handle(_subject: bytes, _reply: bytes, data: bytes, raw: bytes | None) -> None:
            on_message(_stored(data, raw, live=True))

        return self.link.subscribe(self.subjects.live(inbox), handle)

    async def last_offsets(self, inboxes: Iterable[Inbox]) -> dict[Inbox, int]:
        found = {}
        for subjects in _portions(self.subjects.recv(inbox) for inbox in inboxes):
            batch = await self.jetstream.direct(self._recv, {"multi_last": subjects})
            for reply in batch.replies:
                subject = hdrs.find(reply.headers, _SUBJECT) or b""
                _, inbox = self.subjects.parse(subject.decode())
                found[inbox] = hdrs.find_int(reply.headers, _SEQUENCE) or 0
        return found

    async def position(self) -> Position:
        info = await self.jetstream.api(f"STREAM.INFO.{self._recv}")
        state = info["state"]
        self._epoch = _epoch(info)
        return Position(self._epoch, state["first_seq"], state["last_seq"])

    @property
    def epoch(self) -> str:
        return self._epoch

    async def count(self, inbox: Inbox) -> int:
        subject = self.subjects.recv(inbox)
        request = {"subjects_filter": subject}
        info = await self.jetstream.api(f"STREAM.INFO.{self._recv}", request)
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    # -- cursors -------------------------------------------------------------------------

    async def load_cursor(self, inbox: Inbox, device: str) -> int:
        key = self.subjects.cursor_key(inbox, device)
        found = await self.jetstream.direct(
            f"KV_{self._bucket}", {"last_by_subj": f"$KV.{self._bucket}.{key}"}
        )
        revision, epoch, offset = 0, "", 0
        if found.replies:
            revision, epoch, offset = _read_cursor(found.replies[0])
        self._remember(key, revision, epoch, offset)
        return offset if epoch == self._epoch else 0

    def _remember(self, key: str, revision: int, epoch: str, offset: int) -> None:
        self._cursors[key] = (revision, epoch, offset)
        self._cursors.move_to_end(key)
        if len(self._cursors) > REMEMBERED_CURSORS:
            self._cursors.popitem(last=False)

    async def save_cursor(self, inbox: Inbox, device: str, offset: int) -> None:
        key, epoch = self.subjects.cursor_key(inbox, device), self._epoch
        subject, payload = f"$KV.{self._bucket}.{key}", f"{epoch} {offset}".encode()
        for attempt in range(CURSOR_ATTEMPTS):
            if key not in self._cursors:
                await self.load_cursor(inbox, device)
            revision, of_epoch, known = self._cursors[key]
            if of_epoch == epoch and known >= offset:
                return
            try:
                receipt = await self.jetstream.publish(subject, payload, expect_last=revision)
            except ApiError as exc:
                if exc.err_code != WRONG_LAST_SEQUENCE:
                    raise
                # Another gateway moved it (or our own retry did): the further one counts.
                self._cursors.pop(key, None)
                await asyncio.sleep(CURSOR_PAUSE * attempt)  # a replica may not know of it yet
            else:
                self._remember(key, receipt.offset, epoch, offset)
                return
        raise BrokerUnavailable("other gateways move this cursor all the time; save it again later")

    # -- gateway to gateway --------------------------------------------------------------

    def _topic(self, topic: str) -> str:
        return f"{self.subjects.prefix}.all.{topic}"

    def broadcast(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(BrokerUnavailable):
            self.link.publish(self._topic(topic), payload)

    def listen(self, topic: str, on_message: Callable[[bytes], None]) -> Closable:
        def handle(_subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None) -> None:
            on_message(data)

        return self.link.subscribe(self._topic(topic), handle)


def _portions(subjects: Iterable[str]) -> Iterator[list[str]]:
    """Cut *subjects* into lists that fit one ``multi_last`` request, by number and by bytes."""
    portion: list[str] = []
    size = 0
    for subject in subjects:
        if len(portion) == MULTI_LAST or size + len(subject) > MULTI_LAST_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(subject)
        size += len(subject) + 4  # quotes, comma, space
    if portion:
        yield portion


def _read_cursor(reply: Reply) -> tuple[int, str, int]:
    epoch, _, offset = reply.data.decode("utf-8", "replace").rpartition(" ")
    revision = hdrs.find_int(reply.headers, _SEQUENCE) or 0
    return (revision, epoch, int(offset)) if offset.isdecimal() else (revision, "", 0)


def _epoch(info: Mapping[str, Any]) -> str:
    """Return what names the stream's life: its creation time, digits only."""
    return "".join(char for char in str(info["created"]) if char.isdigit())
