"""The NATS JetStream broker: joins connection, streams, publishing and direct gets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Bus, Closable, Hook
from wsgateway.broker.messages import (
    ERROR_HEADER,
    REPLY_TO_HEADER,
    Batch,
    Position,
    Receipt,
    Stored,
    check_published,
)
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.connection import ConnectionOptions, ConnectionState, NatsConnection
from wsgateway.broker.nats.consumers import set_up_consumers
from wsgateway.broker.nats.cursors import Cursors
from wsgateway.broker.nats.dead_letters import NatsDeadLetters
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.propagation import Propagation
from wsgateway.broker.nats.registry import TOPIC, Registry
from wsgateway.broker.nats.shared import Shared
from wsgateway.broker.nats.specs import NANO, StreamSpec
from wsgateway.broker.nats.streams import TRIMMED_UNTIL, WARN_LEVEL, Streams, fill_level
from wsgateway.broker.nats.work_queue import NatsWorkQueue
from wsgateway.broker.work import DeadLetters, Job, WorkQueue
from wsgateway.declared import NOTHING, Declared
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    BrokerMisconfigured,
    BrokerUnavailable,
    QueueFull,
    ServiceUnknown,
)
from wsgateway.protocol.frames import FRAME_HEADER, Frame
from wsgateway.protocol.subjects import Inbox, Subjects
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
MULTI_LAST_REST = 128
"""Bytes of such a request that are no subjects."""
OFFER_HEADERS = 4096
"""Bytes of headers that a client's message has at most: its ids, device and resolver, escaped."""
RECHECK = 5.0
"""Seconds until a misconfigured server is checked again."""
LOOK_EACH = 30.0
"""Seconds between two looks at the streams, if nothing gives reason to look sooner."""
LOOK_EACH_NEARLY_FULL = 2.0
"""The same while one is nearly full: publishers notice that soon."""
RESERVE = 0.05
"""Part of the inbox stream's limit in bytes that is left for services' replies."""
WARN_EACH = 600.0
"""Seconds between two warnings about the same stream that is nearly full."""
LOOK_PAUSE = 0.5
"""Seconds between two looks, however much reason there is."""

_SEQUENCE = b"Nats-Sequence"
_PREVIOUS = b"Nats-Last-Sequence"
_KIND = FRAME_HEADER.encode()
_TIME = b"Nats-Time-Stamp"
_SUBJECT = b"Nats-Subject"
_TTL = b"Nats-TTL"
_REPLY_TO = REPLY_TO_HEADER.encode()
_ERROR = ERROR_HEADER.encode()


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


class NatsBroker(Broker):
    """See `Broker`.

    Args:
        options: Where and how to connect.
        subjects: Names below the installation's prefix.
        specs: The streams that must be there, as `streams.wanted_streams` makes them.
        max_devices: Cursors that one user keeps.
        declared: The services among them.
        max_message_size: Bytes of a client's message that the server should take.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        subjects: Subjects,
        specs: Iterable[StreamSpec],
        max_devices: int = 100,
        declared: Declared = NOTHING,
        max_message_size: int = 0,
    ) -> None:
        self.subjects = subjects
        self.connection = NatsConnection(options)
        self.jetstream = JetStream(self.connection, options.timeout, options.publish_timeout)
        self.streams = Streams(self.jetstream, subjects, specs)
        self.services = Registry(self.jetstream, subjects, declared)
        self._timeout = options.timeout
        self._max_message_size = max_message_size
        self._told = -1  # `largest_offer` that the log has a warning of
        self._recv = subjects.stream("recv")
        self._epoch = ""
        self._opened = False
        self._settled = asyncio.Event()  # connected, and streams checked: ready or _problem
        self._problem: BrokerMisconfigured | None = None  # why it will not become ready
        self._delay = ""  # why it is not ready yet, as far as known
        self._preparing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._doubt = asyncio.Event()  # a stream may be gone
        self._created: dict[str, str] = {}  # stream to what names its life
        self._warned: dict[str, float] = {}  # nearly full stream to when that was logged
        self._is_reserved = False  # what room the inboxes' stream has left is for replies
        self.jetstream.on_missing = self._doubt.set
        self._propagation: Propagation | None = None  # once somebody uses the bus
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._keys = itertools.count()
        self._last = 0  # the stream's newest offset when it was last asked
        self._max_age = 0.0  # seconds that the stream keeps a message; 0: for ever
        self._dead_letters = NatsDeadLetters(self.jetstream, subjects)
        self.cursors = Cursors(self.jetstream, subjects, self.position, max_devices)
        self._shared_position = Shared(self._ask_position)

    # -- life cycle ----------------------------------------------------------------------

    async def open(self) -> None:
        await self.connection.open()
        if not self._opened:
            self._opened = True
            self.connection.on_open(self._on_open)
            self.connection.on_lost(self._on_lost)
            self.listen(TOPIC, lambda _: self.services.doubt())
            self._looking = supervise(self._look_after_streams, "wsgateway-streams")
            if self.connection.is_open:  # since `set_up`
                self._on_open()

    async def close(self) -> None:
        self._settled.clear()
        await self.connection.close(min(2.0, self._timeout))
        tasks = {task for task in (self._preparing, self._looking) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._problem = None
        self._settled.set()  # those who wait look, and find the connection closed

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
        self._warn_of_limit()
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
                if not self.connection.is_open:
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

    async def _look_after_streams(self) -> None:
        """Notice streams that are gone or were replaced, and prepare again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EACH_NEARLY_FULL if self._warned else LOOK_EACH):
                    await self._doubt.wait()
            self._doubt.clear()
            try:
                if self.ready:
                    await self._look()
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("cannot check the streams now: %s", exc)
            await asyncio.sleep(LOOK_PAUSE)

    async def _look(self) -> None:
        infos = await self.streams.infos()
        for name in self.streams.watched:
            infos[name] = await self.streams.own_info(name)
        for info in infos.values():
            if info is not None:
                self._note_level(info)
        found = {name: info["created"] for name, info in infos.items() if info is not None}
        changed = [name for name, created in self._created.items() if found.get(name) != created]
        if not changed or not self.ready:
            return
        logger.error("streams are gone or were replaced: %s; setting up again", ", ".join(changed))
        self._settled.clear()
        self._delay = "a stream is gone"
        self._on_open()

    def _note_level(self, info: Mapping[str, Any]) -> None:
        """Warn about a stream that is nearly full, and leave the inboxes' last room to replies."""
        name, level = info["config"]["name"], fill_level(info)
        if name == self._recv:
            self._is_reserved = level >= 1 - RESERVE
        if level < WARN_LEVEL:
            self._warned.pop(name, None)
            return
        now = asyncio.get_running_loop().time()
        if now >= self._warned.get(name, -math.inf) + WARN_EACH:
            self._warned[name] = now
            self._doubt.set()  # the pauses between looks are shorter from now on
            limit = info["config"]["max_bytes"]
            logger.warning(
                "stream %r is %.0f %% full (limit %s bytes); when full, it refuses messages or "
                "drops the oldest; raise its limit, or find out who does not read",
                name,
                100 * level,
                limit,
            )

    async def _check(self) -> None:
        self._require_server()
        infos, created = await self.streams.ensure()
        self._created = {name: info["created"] for name, info in infos.items()}
        for info in infos.values():
            self._note_level(info)
        await self.services.refresh()
        if created:
            self.broadcast(TOPIC, b"")
        if self._recv in infos:
            self._learn(infos[self._recv])

    def _require_server(self) -> None:
        version = self.connection.server.version
        if version < LEAST_VERSION:
            raise BrokerMisconfigured(
                f"NATS {'.'.join(map(str, version))} at {self.connection.address} is too old: "
                "batched direct get and per-message TTL need 2.11 or later; upgrade the server"
            )
        if not self.connection.server.has_jetstream:
            raise BrokerMisconfigured(
                f"NATS at {self.connection.address} runs without JetStream; start it with -js"
            )

    def _warn_of_limit(self) -> None:
        """Say so if the server takes less than the settings promise to clients."""
        if self.largest_offer < self._max_message_size and self._told != self.largest_offer:
            self._told = self.largest_offer
            logger.warning(
                "NATS at %s takes messages of %s bytes with their headers, so clients may send %s "
                "bytes only, not WSGATEWAY_MAX_MESSAGE_SIZE (%s): set max_payload to %s or more in "
                "the server's configuration, or lower the setting",
                self.connection.address,
                self.connection.max_payload,
                self.largest_offer,
                self._max_message_size,
                self._max_message_size + OFFER_HEADERS,
            )

    async def set_up(self, ack_wait: float | None = None) -> list[str]:
        await self.connection.open()
        await self.connection.ready()
        self._require_server()
        self._warn_of_limit()
        jetstream = self.jetstream.patient  # an operator's command outlasts an election
        lines = await Streams(jetstream, self.subjects, self.streams.specs).setup()
        self.broadcast(TOPIC, b"")
        if ack_wait is not None:
            lines += await set_up_consumers(self, ack_wait)
        return lines

    @property
    def where(self) -> str:
        return f"NATS at {self.connection.address}"

    @property
    def closed(self) -> bool:
        return self.connection.state is ConnectionState.CLOSED

    def forget_inherited(self) -> None:
        self.connection.forget_inherited()

    @property
    def connected(self) -> bool:
        return self.connection.is_open

    @property
    def ready(self) -> bool:
        return self._settled.is_set() and self._problem is None and self.connection.is_open

    async def wait_ready(self, timeout: float | None = None) -> None:
        if self.ready:
            return
        if self._problem is not None:
            raise self._problem
        limit = self.jetstream.publish_timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        # First and alone: its error says why it is not connected
        await self.connection.ready(timeout)
        try:
            async with asyncio.timeout_at(deadline):
                await self._settled.wait()
        except TimeoutError as exc:
            await self.connection.ready(0)  # lost meanwhile?
            raise BrokerUnavailable(
                f"the streams at {self.connection.address} were not ready within {limit:g} s: "
                f"{self._delay or 'no answer yet'}"
            ) from exc
        await self.connection.ready(0)  # woken by close?
        if self._problem is not None:
            raise self._problem

    def on_ready(self, callback: Callable[[], None]) -> Closable:
        key = next(self._keys)
        self._callbacks[key] = callback
        return Hook(lambda: self._callbacks.pop(key, None) and None)

    def on_lost(self, callback: Callable[[], None]) -> Closable:
        return self.connection.on_lost(callback)

    # -- bus ------------------------------------------------------------------------------

    @property
    def bus(self) -> Bus:
        return self.connection

    def take_part(self) -> None:
        if self._propagation is None:
            self._propagation = Propagation(self.connection, self.subjects)

    async def in_effect(self) -> None:
        self.take_part()
        assert self._propagation is not None
        try:
            await self._propagation.complete()
        except BrokerUnavailable:
            await self.connection.ready()
            await self._propagation.complete()

    # -- services ------------------------------------------------------------------------

    def known_service(self, service: str) -> bool | None:
        return self.services.known(service)

    @property
    def service_names(self) -> frozenset[str]:
        return self.services.names

    def on_new_service(self, callback: Callable[[], None]) -> Closable:
        def hear(_payload: bytes) -> None:
            self.services.doubt()  # our own listener may be called later than this one
            callback()

        return self.listen(TOPIC, hear)

    async def service_exists(self, service: str) -> bool:
        if self.connected and not self.connection.server.has_jetstream:
            return False  # its streams would say so
        return await self.services.exists(service)

    async def _require_service(self, service: str) -> None:
        if not await self.services.exists(service):
            raise ServiceUnknown(service, self.services.names)

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
        reserved: bool = False,
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
        if self.services.known(inbox.service) is not True:
            await self._require_service(inbox.service)
        if self._is_reserved and not reserved:
            raise QueueFull(
                f"stream {self._recv!r} is full except for the room kept for replies; nothing was "
                "stored, try again later"
            )
        return await self.jetstream.publish(subject, payload, pairs, msg_id=msg_id)

    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        pairs = {"Nats-Msg-Id": msg_id, FRAME_HEADER: frame.kind, **(headers or {})}
        return self.jetstream.offer(self.subjects.send(inbox), frame.payload, pairs)

    # -- read ----------------------------------------------------------------------------

    async def read_after(
        self, inbox: Inbox, offset: int, *, limit: int, anchor: bool = False
    ) -> Batch:
        inclusive = anchor and offset > 0
        request = {
            "seq": offset if inclusive else offset + 1,
            "next_by_subj": self.subjects.recv(inbox),
            "batch": limit + inclusive,
            "max_bytes": READ_BYTES,
        }
        found = await self.jetstream.direct(self._recv, request)
        replies, anchored = found.replies, False
        if inclusive and replies and hdrs.find_int(replies[0].headers, _SEQUENCE) == offset:
            anchored = self._proves(replies.pop(0).headers)
            if not replies and found.pending:  # it was as large as a whole batch
                rest = await self.read_after(inbox, offset, limit=limit)
                return rest._replace(anchored=anchored)
        more = found.pending > 0 or len(replies) > limit
        messages = [_stored(reply.data, reply.headers, live=False) for reply in replies[:limit]]
        return Batch(messages, more, anchored)

    def _proves(self, raw: bytes | None) -> bool:
        """Whether a message goes no later than those behind it."""
        if (hdrs.find(raw, _TTL) or b"").lower() == b"never":
            return False
        stamp = hdrs.find(raw, _TIME)
        if not self._max_age or stamp is None:
            return True
        age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(stamp.decode())
        return age.total_seconds() < self._max_age

    def watch(self, inbox: Inbox, on_message: Callable[[Stored], None]) -> Closable:
        def handle(_subject: bytes, _reply: bytes, data: bytes, raw: bytes | None) -> None:
            on_message(_stored(data, raw, live=True))

        return self.connection.subscribe(self.subjects.live(inbox), handle)

    async def last_offsets(self, inboxes: Iterable[Inbox]) -> dict[Inbox, int]:
        found = {}
        room = min(MULTI_LAST_BYTES, self.connection.max_payload) - MULTI_LAST_REST
        for subjects in _portions((self.subjects.recv(inbox) for inbox in inboxes), room):
            async for subject, offset in self._last_offsets(subjects):
                found[self.subjects.parse(subject)[1]] = offset
        return found

    async def _last_offsets(self, subjects: list[str]) -> AsyncIterator[tuple[str, int]]:
        """Yield the newest offset of each subject that has one.

        The server sends whole messages, and stops at a limit in bytes.
        """
        while subjects:
            request = {"multi_last": subjects, "max_bytes": READ_BYTES}
            batch = await self.jetstream.direct(self._recv, request)
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

    async def _ask_position(self) -> Position:
        info = await self.jetstream.api(f"STREAM.INFO.{self._recv}")
        self._learn(info)
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

    def _learn(self, info: Mapping[str, Any]) -> None:
        """Note what STREAM.INFO of the inbox stream says."""
        epoch, last = _epoch(info), info["state"]["last_seq"]
        if epoch == self._epoch and last < self._last:
            self.cursors.forget_beyond(last)
        self._epoch, self._last = epoch, last
        self._note_level(info)
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
            "next_by_subj": self.subjects.all_of("recv"),
            "batch": 1,
        }
        found = await self.jetstream.direct(self._recv, request)
        raw = found.replies[0].headers if found.replies else None
        return hdrs.find_int(raw, _SEQUENCE) or int(state["last_seq"]) + 1

    @property
    def largest_offer(self) -> int:
        return max(0, self.connection.max_payload - OFFER_HEADERS)

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
        return await self.cursors.load(inbox, device)

    async def save_cursor(
        self, inbox: Inbox, device: str, offset: int, *, epoch: str | None = None
    ) -> None:
        if epoch in (None, self._epoch):
            await self.cursors.save(inbox, device, offset, self._epoch)

    async def drop_cursor(self, inbox: Inbox, device: str) -> None:
        await self.cursors.drop(inbox, device)

    # -- gateway to gateway --------------------------------------------------------------

    def _topic(self, topic: str) -> str:
        return f"{self.subjects.prefix}.all.{topic}"

    # -- work ----------------------------------------------------------------------------

    def work_queue(
        self,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[str], None],
        ack_wait: float,
    ) -> WorkQueue:
        return NatsWorkQueue(self, service, on_job, on_turn, ack_wait)

    @property
    def dead_letters(self) -> DeadLetters:
        return self._dead_letters

    def broadcast(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(BrokerUnavailable):
            self.connection.publish(self._topic(topic), payload)

    def listen(self, topic: str, on_message: Callable[[bytes], None]) -> Closable:
        def handle(_subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None) -> None:
            on_message(data)

        return self.connection.subscribe(self._topic(topic), handle)


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
    """Return what names the stream's life: its creation time, digits only."""
    return "".join(char for char in str(info["created"]) if char.isdigit())
