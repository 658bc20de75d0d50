"""Messages that no handler could process: set aside, looked at, sent again, purged."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from wsgateway.broker.base import check_headers
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import NOT_DELETED, ApiError
from wsgateway.exceptions import MessageRefused, MessageTooBig, NameRefused, WsGatewayError
from wsgateway.services import failure
from wsgateway.subjects import Inbox

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.broker.nats.link import Reply
    from wsgateway.broker.nats.workqueue import Job

__all__ = [
    "DeadLetter",
    "DeadLetterMissing",
    "DeadLetterShortened",
    "find",
    "letters",
    "purge",
    "retry",
    "set_aside",
]

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
    payload: bytes
    headers: dict[str, str]
    time: str
    attempts: int
    error: str
    traceback: str
    shortened: tuple[str, ...] = ()


async def set_aside(broker: NatsBroker, job: Job, error: BaseException) -> None:
    """Store *job* as a dead letter, shortened as far as it must be. Idempotent.

    Raises:
        BrokerError: It is not stored now: no answer, or the stream is full.
    """
    subject, msg_id = broker.subjects.dead(job.inbox), f"dead.{job.id}"
    limit = broker.link.max_payload
    while True:
        payload, headers = _compose(job, error, limit - len(msg_id))
        try:
            await broker.jetstream.publish(subject, payload, headers, msg_id=msg_id)
            return
        except (MessageTooBig, MessageRefused):  # the stream takes less than the server
            limit //= 2
            if limit < LEAST_LIMIT:
                raise


def _compose(job: Job, error: BaseException, limit: int) -> tuple[bytes, dict[str, str]]:
    """Return payload and headers of a dead letter of *limit* bytes at most."""
    payload, shortened = job.payload, []
    if len(payload) > limit - LEAST_HEADERS:
        payload = payload[: max(0, limit - LEAST_HEADERS)]
        shortened.append("payload")
    room = min(MAX_HEADERS, limit - len(payload)) - 250  # names, numbers, the id's header
    original = _usable(job.headers)
    kept = _fitting(original, room - min(RESERVED, room // 2))
    if len(kept) < len(original):
        shortened.append("headers")
    room -= _size(kept)
    line = failure.fit(failure.one_line(error), min(MAX_ERROR, room))
    return payload, {
        **kept,
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


def _letter(broker: NatsBroker, reply: Reply) -> DeadLetter:
    headers = hdrs.decode(reply.headers)
    original = {
        name: value
        for name, value in headers.items()
        if name not in OURS and not name.startswith("Nats-")
    }
    return DeadLetter(
        offset=int(headers["Nats-Sequence"]),
        inbox=_inbox(broker, headers["Nats-Subject"]),
        payload=reply.data,
        headers=original,
        time=headers.get("Nats-Time-Stamp", ""),
        attempts=hdrs.find_int(reply.headers, ATTEMPTS_HEADER.encode()) or 0,
        error=unquote(headers.get(ERROR_HEADER, "")),
        traceback=unquote(headers.get(TRACEBACK_HEADER, "")),
        shortened=tuple(headers.get(SHORTENED_HEADER, "").split()),
    )


def _inbox(broker: NatsBroker, subject: str) -> Inbox:
    try:
        return broker.subjects.parse(subject)[1]
    except NameRefused:  # somebody else's, on a subject that is not ours
        *_, service, user = subject.split(".")
        return Inbox(service, user)


async def letters(broker: NatsBroker, service: str | None = None) -> AsyncIterator[DeadLetter]:
    """Yield the dead letters of *service* (None: of all), the oldest first."""
    stream, subject = broker.subjects.stream("dead"), broker.subjects.all_of("dead", service)
    offset = 0
    while True:
        request = {"seq": offset + 1, "next_by_subj": subject, "batch": PAGE}
        batch = await broker.jetstream.direct(stream, request)
        for reply in batch.replies:
            letter = _letter(broker, reply)
            offset = letter.offset
            yield letter
        if not batch.pending:
            return


async def find(broker: NatsBroker, offset: int) -> DeadLetter:
    """Return the dead letter at *offset*.

    Raises:
        DeadLetterMissing: There is none.
    """
    batch = await broker.jetstream.direct(broker.subjects.stream("dead"), {"seq": offset})
    if not batch.replies:
        raise DeadLetterMissing(f"there is no dead letter {offset}")
    return _letter(broker, batch.replies[0])


async def retry(broker: NatsBroker, letter: DeadLetter) -> None:
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
    # The time tells it from the letter that has this offset after the stream was made again
    msg_id = f"retry.{letter.time}.{letter.offset}"
    subject = broker.subjects.send(letter.inbox)
    await broker.jetstream.publish(subject, letter.payload, letter.headers, msg_id=msg_id)
    await purge(broker, letter)


async def purge(broker: NatsBroker, letter: DeadLetter) -> None:
    """Forget a dead letter. Idempotent."""
    stream = broker.subjects.stream("dead")
    request = {"seq": letter.offset, "no_erase": True}
    try:
        await broker.jetstream.api(f"STREAM.MSG.DELETE.{stream}", request)
    except ApiError as exc:
        if exc.err_code not in NOT_DELETED:
            raise
        with contextlib.suppress(DeadLetterMissing):
            await find(broker, letter.offset)
            raise
