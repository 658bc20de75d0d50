"""Messages that no handler could process: set aside, looked at, sent again, purged."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from wsgateway.broker.nats import headers as hdrs
from wsgateway.exceptions import WsGatewayError
from wsgateway.subjects import Inbox

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.broker.nats.link import Reply
    from wsgateway.broker.nats.workqueue import Job

__all__ = ["DeadLetter", "DeadLetterMissing", "find", "letters", "purge", "retry", "set_aside"]

ATTEMPTS_HEADER = "Ws-Attempts"
ERROR_HEADER = "Ws-Exception"
TRACEBACK_HEADER = "Ws-Traceback"
"""Percent-encoded, because a header cannot hold line breaks."""
SEQUENCE_HEADER = "Ws-Sequence"
OURS = (ATTEMPTS_HEADER, ERROR_HEADER, TRACEBACK_HEADER, SEQUENCE_HEADER)
MAX_TRACEBACK = 16_000
PAGE = 100


class DeadLetterMissing(WsGatewayError, LookupError):
    """There is no such dead letter (any more)."""


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
    """

    offset: int
    inbox: Inbox
    payload: bytes
    headers: dict[str, str]
    time: str
    attempts: int
    error: str
    traceback: str


async def set_aside(broker: NatsBroker, job: Job, error: BaseException) -> None:
    """Store *job* as a dead letter. Idempotent.

    Raises:
        BrokerError: It is not stored.
    """
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    line = traceback.format_exception_only(error)[-1].strip()
    headers = {
        **{name: value for name, value in job.headers.items() if not name.startswith("Nats-")},
        ATTEMPTS_HEADER: str(job.attempt),
        ERROR_HEADER: quote(line, safe=" '\"()[]{}<>:;,.!?=/*+-_@#$&"),
        TRACEBACK_HEADER: quote(text, safe=" "),
        SEQUENCE_HEADER: str(job.sequence),
    }
    subject = broker.subjects.dead(job.inbox)
    msg_id = f"dead.{broker.epoch}.{job.sequence}"
    await broker.jetstream.publish(subject, job.payload, headers, msg_id=msg_id)


def _letter(broker: NatsBroker, reply: Reply) -> DeadLetter:
    headers = hdrs.decode(reply.headers)
    _, inbox = broker.subjects.parse(headers["Nats-Subject"])
    original = {
        name: value
        for name, value in headers.items()
        if name not in OURS and not name.startswith("Nats-")
    }
    return DeadLetter(
        offset=int(headers["Nats-Sequence"]),
        inbox=inbox,
        payload=reply.data,
        headers=original,
        time=headers.get("Nats-Time-Stamp", ""),
        attempts=int(headers.get(ATTEMPTS_HEADER, 0)),
        error=unquote(headers.get(ERROR_HEADER, "")),
        traceback=unquote(headers.get(TRACEBACK_HEADER, "")),
    )


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

    Raises:
        BrokerError: Nothing was lost; perhaps it is in both places.
    """
    msg_id = f"retry.{broker.epoch}.{letter.offset}"
    subject = broker.subjects.send(letter.inbox)
    await broker.jetstream.publish(subject, letter.payload, letter.headers, msg_id=msg_id)
    await purge(broker, letter)


async def purge(broker: NatsBroker, letter: DeadLetter) -> None:
    """Forget a dead letter. Idempotent."""
    stream = broker.subjects.stream("dead")
    request = {"seq": letter.offset, "no_erase": True}
    await broker.jetstream.api(f"STREAM.MSG.DELETE.{stream}", request)
