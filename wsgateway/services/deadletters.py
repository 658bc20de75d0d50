"""Messages that no handler could process: set aside, looked at, sent again, purged."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from wsgateway import counters
from wsgateway.broker.messages import TOPIC_HEADER, check_headers, read_topic
from wsgateway.exceptions import MessageRefused, MessageTooBig, WsGatewayError
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import failure

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import DeadEntry, Job

__all__ = [
    "DeadLetter",
    "DeadLetterMissing",
    "DeadLetterShortened",
    "act_on",
    "find",
    "letters",
    "purge",
    "retry",
    "set_aside",
]

logger = logging.getLogger("wsgateway.services")

ATTEMPTS_HEADER = "Ws-Attempts"
ERROR_HEADER = "Ws-Exception"
TRACEBACK_HEADER = "Ws-Traceback"
"""Percent-encoded, because a header cannot hold line breaks."""
SEQUENCE_HEADER = "Ws-Sequence"
SHORTENED_HEADER = "Ws-Shortened"
"""Which parts of the message did not fit: ``payload``, ``headers``."""
OURS = (ATTEMPTS_HEADER, ERROR_HEADER, TRACEBACK_HEADER, SEQUENCE_HEADER, SHORTENED_HEADER)
PAGE = 100

MAX_HEADERS = 60_000
"""Bytes of headers in a dead letter; NATS stores their size in 16 bits."""
LEAST_HEADERS = 700
"""Bytes that our own headers need at least; a payload that leaves less room is shortened."""
RESERVED = 6_000
"""Bytes of headers that the original ones leave for error and traceback."""
MAX_ERROR = 1_500
LEAST_LIMIT = 1_000


class DeadLetterMissing(WsGatewayError, LookupError):
    """There is no such dead letter (any more)."""


class DeadLetterShortened(WsGatewayError):
    """The dead letter holds a part of its message only, so it cannot be sent again."""


@dataclass(frozen=True)
class DeadLetter:
    """A message that was set aside.

    Attributes:
        offset: Its sequence in the stream of dead letters; names it.
        inbox: Who sent it.
        service: Who could not handle it: the inbox's service, or that of the topic that it was
            sent to.
        payload: Its bytes.
        headers: The original ones.
        time: When it was set aside, RFC 3339 text.
        attempts: How often a handler had it.
        error: The last exception, one line.
        traceback: Where it came from.
        shortened: What of the message did not fit: ``payload``, ``headers``.
    """

    offset: int
    inbox: Inbox
    service: str
    payload: bytes
    headers: dict[str, str]
    time: str
    attempts: int
    error: str
    traceback: str
    shortened: tuple[str, ...] = ()

    @property
    def topic(self) -> Topic | None:
        """The topic that it was sent to; None if it was not sent to one."""
        return read_topic(self.headers.get(TOPIC_HEADER))

    @property
    def sender(self) -> str:
        """Who sent it, for people: the user's name; with its service if that is another one."""
        service, user = self.inbox
        return user if service == self.service else f"{user} ({service})"

    @property
    def target(self) -> str:
        """Whom it was sent to, for people: the service or the topic."""
        return str(self.topic or self.service)


async def set_aside(broker: Broker, job: Job, error: BaseException) -> None:
    """Store *job* as a dead letter, shortened as far as it must be. Idempotent.

    Raises:
        BrokerError: It is not stored now: no answer, or the stream is full.
    """
    msg_id = f"dead.{job.id}"
    limit = broker.dead_letters.max_size
    while True:
        payload, headers = _compose(job, error, limit - len(msg_id))
        try:
            await broker.dead_letters.add(job.inbox, payload, headers, msg_id, job.service)
            break
        except (MessageTooBig, MessageRefused):  # the stream takes less than the server
            limit //= 2
            if limit < LEAST_LIMIT:
                raise
    if SHORTENED_HEADER in headers:
        counters.service(job.service).shortened += 1
        logger.error(
            "a dead letter of %s lacks a part of its message (%s), which did not fit: %d of %d "
            "bytes of its payload are kept",
            job.service,
            headers[SHORTENED_HEADER],
            len(payload),
            len(job.payload),
            extra=job.log_fields,
        )


def _compose(job: Job, error: BaseException, limit: int) -> tuple[bytes, dict[str, str]]:
    """Return payload and headers of a dead letter of *limit* bytes at most."""
    payload, shortened = job.payload, []
    original = _usable(job.headers)
    topic = {TOPIC_HEADER: original.pop(TOPIC_HEADER)} if job.topic is not None else {}
    least = LEAST_HEADERS + _size(topic)  # without its topic, it could not be sent again
    if len(payload) > limit - least:
        payload = payload[: max(0, limit - least)]
        shortened.append("payload")
    room = min(MAX_HEADERS, limit - len(payload)) - _size(topic)
    room -= 250  # names, numbers, the id's header
    kept = _fitting(original, room - min(RESERVED, room // 2))
    if len(kept) < len(original):
        shortened.append("headers")
    room -= _size(kept)
    line = failure.fit(failure.one_line(error), min(MAX_ERROR, room))
    return payload, {
        **kept,
        **topic,
        ATTEMPTS_HEADER: str(job.attempt),
        SEQUENCE_HEADER: str(job.sequence),
        ERROR_HEADER: line,
        TRACEBACK_HEADER: failure.fit(failure.trace(error), room - len(line)),
        **({SHORTENED_HEADER: " ".join(shortened)} if shortened else {}),
    }


def _usable(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a dead letter keeps; the server's own would be commands to it."""
    found = {}
    for name, value in headers.items():
        if name.lower().startswith("nats-") or name in OURS:
            continue
        value = " ".join(value.splitlines())
        try:
            check_headers({name: value})
        except ValueError:
            continue
        found[name] = value
    return found


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())


def _fitting(headers: Mapping[str, str], room: int) -> dict[str, str]:
    """Return *headers* without the largest ones, so that they take *room* bytes at most."""
    kept = dict(headers)
    for name in sorted(headers, key=lambda name: -_size({name: headers[name]})):
        if _size(kept) <= room:
            break
        del kept[name]
    return kept


def _count(text: str) -> int:
    """Return a number that anybody may have written; 0 if it is not one."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _letter(entry: DeadEntry) -> DeadLetter:
    headers = entry.headers
    return DeadLetter(
        offset=entry.offset,
        inbox=entry.inbox,
        service=entry.service,
        payload=entry.payload,
        headers={name: value for name, value in headers.items() if name not in OURS},
        time=entry.time,
        attempts=_count(headers.get(ATTEMPTS_HEADER, "")),
        error=unquote(headers.get(ERROR_HEADER, "")),
        traceback=unquote(headers.get(TRACEBACK_HEADER, "")),
        shortened=tuple(headers.get(SHORTENED_HEADER, "").split()),
    )


async def letters(
    broker: Broker, service: str | None = None, after: int = 0, user: str | None = None
) -> AsyncIterator[DeadLetter]:
    """Yield the dead letters behind offset *after*, oldest first.

    Args:
        broker: Ready.
        service: Only those of this service; None: of all.
        after: The offset.
        user: Only those of this user; None: of all.

    Raises:
        NameRefused: No service, or no user, can have this name.
    """
    offset, more = after, True
    while more:
        entries, more = await broker.dead_letters.read(service, offset, PAGE, user)
        for entry in entries:
            offset = entry.offset
            yield _letter(entry)


async def find(broker: Broker, offset: int) -> DeadLetter:
    """Return the dead letter at *offset*.

    Raises:
        DeadLetterMissing: There is none.
    """
    entry = await broker.dead_letters.find(offset) if offset > 0 else None  # NATS refuses 0
    if entry is None:
        raise DeadLetterMissing(f"there is no dead letter {offset}")
    return _letter(entry)


async def retry(broker: Broker, letter: DeadLetter) -> None:
    """Put the message into its service's queue again, and forget the dead letter.

    Idempotent within WSGATEWAY_DUPLICATE_WINDOW.

    Raises:
        DeadLetterShortened: It holds a part of the message only; nothing was changed.
        BrokerError: Nothing was lost; perhaps it is in both places.
    """
    if "payload" in letter.shortened:
        raise DeadLetterShortened(
            f"dead letter {letter.offset} holds only the first {len(letter.payload)} bytes of its "
            "message, because the rest did not fit; it can be purged, but not put back"
        )
    # The time tells it from the letter that has this offset after the stream was recreated
    msg_id = f"retry.{letter.time}.{letter.offset}"
    await broker.dead_letters.requeue(
        letter.inbox, letter.payload, letter.headers, msg_id, letter.service
    )
    await purge(broker, letter)


async def purge(broker: Broker, letter: DeadLetter) -> None:
    """Forget a dead letter. Idempotent."""
    await broker.dead_letters.remove(letter.offset)


async def act_on(
    broker: Broker,
    action: Callable[[Broker, DeadLetter], Awaitable[None]],
    offsets: Iterable[int] | None = None,
    service: str | None = None,
    *,
    user: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[int, list[str]]:
    """Do *action*, `retry` or `purge`, to several dead letters.

    Args:
        broker: Ready.
        action: What to do to each.
        offsets: Which ones; None: all.
        service: If all: only those of this service.
        user: If all: only those of this user.
        progress: Called after each with how many it was tried on so far, and how many there are.

    Returns:
        To how many it was done, and for each of the others why not.
    """
    done, problems = 0, []
    if offsets is None:
        chosen = [letter async for letter in letters(broker, service, user=user)]
    else:
        chosen = []
        for offset in offsets:
            try:
                chosen.append(await find(broker, offset))
            except DeadLetterMissing as exc:
                problems.append(str(exc))
    for number, letter in enumerate(chosen, 1):
        try:
            await action(broker, letter)
            done += 1
        except DeadLetterShortened as exc:
            problems.append(str(exc))
        progress(number, len(chosen))
    return done, problems
