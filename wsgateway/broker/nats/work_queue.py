"""A service's queue: what clients sent it, one durable pull consumer on the work-queue stream."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.consumers import PAUSED, ensure_consumer
from wsgateway.broker.nats.jetstream import NO_MESSAGE, ApiError
from wsgateway.broker.nats.pull_consumer import PullConsumer
from wsgateway.broker.nats.specs import NANO
from wsgateway.broker.work import History, Job, Retaken, Turn, WorkQueue
from wsgateway.exceptions import (
    BrokerError,
    BrokerUnavailable,
    MalformedMessage,
    NameRefused,
    reason_of,
)
from wsgateway.protocol.subjects import Inbox, parse_sender, sender_token

if TYPE_CHECKING:
    from wsgateway.broker.bus import Closable
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["NatsWorkQueue", "job_of", "parse_history"]

logger = logging.getLogger("wsgateway.services")

PULL_EXPIRES = 10.0
"""Seconds that a pull request stays open."""
HOLD = 2.0
"""How long a message that waits for its turn is not redelivered, in times of ACK_WAIT."""
LEAST = 8
"""The part of all room, one in so many, that must be free before more messages are asked for. A
request for each message costs as much as the message."""
MAX_SHOWN = 60
"""Characters that are kept of a user's token that stands for no name."""

ACK = b"+ACK"
IN_PROGRESS = b"+WPI"


def job_of(
    inbox: Inbox, payload: bytes, raw: bytes | None, reply: str, service: str | None = None
) -> Job:
    """Return the delivery that the server wants to be answered on *reply*."""
    tokens = reply.split(".")
    # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence>.<…>.<time>…
    first = 4 if len(tokens) == 9 else 6
    return Job(
        inbox,
        payload,
        hdrs.decode(raw),
        sequence=int(tokens[first + 1]),
        id=".".join((tokens[first - 2], tokens[first + 1], tokens[first + 3])),
        deliveries=int(tokens[first]),
        receipt=reply,
        service=service,
        sent=int(tokens[first + 3]) / NANO,
    )


class NatsWorkQueue(WorkQueue):
    """What waits for one service.

    Args:
        broker: Open, in the running loop.
        service: Whose queue.
        on_job: See `Broker.work_queue`.
        on_turn: The same.
        ack_wait: The same.
        on_pause: The same.
        on_retaken: The same.
    """

    def __init__(
        self,
        broker: NatsBroker,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[Inbox], None],
        ack_wait: float,
        on_pause: Callable[[], None] | None,
        on_retaken: Callable[[Retaken], None] | None,
    ) -> None:
        self.service = service
        self._connection = broker.connection
        self._broker = broker
        self._on_job = on_job
        self._on_turn = on_turn
        self._on_pause = on_pause
        self._on_retaken = on_retaken
        self._wanted_ack_wait = ack_wait
        self.ack_wait = ack_wait
        self._stream = broker.subjects.queue(service)
        self._consumer = broker.subjects.consumer(service)
        self._created = ""  # when the stream was made
        self._life = 0  # how many streams there have been
        self._room = 0  # messages that may still come
        self._least = 1  # for fewer, none are asked for
        self._turn = broker.subjects.turn(service)
        self._turns: Closable | None = None
        self._bucket = broker.subjects.bucket("tries")
        self._pull = PullConsumer(
            self._connection,
            f"service {service}",
            prepare=self._prepare,
            room=self._free,
            on_message=self._on_message,
            expires=PULL_EXPIRES,
            logger=logger,
            log_fields={"service": service},
        )
        self.ready = asyncio.Event()

    def open(self, room: int) -> None:
        self._turns = self._connection.subscribe(self._turn, self._on_passed_on)
        self._room, self._least = room, max(1, room // LEAST)
        self._pull.open()

    async def close(self) -> None:
        self._room = 0
        if self._turns is not None:
            self._turns.close()
        await self._pull.close()

    def add_room(self, count: int) -> None:
        self._room += count
        self._pull.look()

    def _free(self) -> int:
        return self._room if self._room >= self._least else 0

    # -- messages ------------------------------------------------------------------------

    def ack(self, job: Job) -> None:
        self._answer(job, ACK)
        self._pass_on(job)

    async def ack_now(self, job: Job) -> None:
        if self.holds(job):
            try:
                await self._connection.request(job.receipt, ACK)
            except BrokerUnavailable:
                if self.holds(job):  # otherwise it was moved, and comes again
                    raise
        self._pass_on(job)

    def _pass_on(self, job: Job) -> None:
        """Tell other workers; fails if the connection that carried the answer is lost."""
        self._connection.publish(self._turn, sender_token(job.inbox, self.service).encode())

    def _on_passed_on(
        self, _subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None
    ) -> None:
        if data == PAUSED:
            if self._on_pause is not None:
                self._on_pause()
            return
        sender, *delivery = data.decode("utf-8", "replace").split(" ")
        # What names nobody is another version's, or a look for workers: those who wait look anyway
        with contextlib.suppress(NameRefused, ValueError, IndexError):
            inbox = parse_sender(sender, self.service)
            if not delivery:
                self._on_turn(inbox)
            elif self._on_retaken is not None:
                id, deliveries = delivery
                key = self._life, int(id.split(".")[1])
                self._on_retaken(Retaken(inbox, key, id, int(deliveries)))

    def _tell_retaken(self, job: Job) -> None:
        """Tell other workers that this one has a message which one of them may have, too.

        The server forgets what it was told of a delivery when it loses a message from a worker, or
        the leader that had it.
        """
        sender = sender_token(job.inbox, self.service)
        with contextlib.suppress(BrokerError):  # then this delivery is lost as well
            self._connection.publish(self._turn, f"{sender} {job.id} {job.deliveries}".encode())

    def give_back(self, job: Job, delay: float) -> None:
        self._answer(job, b'-NAK {"delay": %d}' % int(delay * NANO))

    def extend(self, job: Job) -> None:
        self._answer(job, IN_PROGRESS)

    def hold(self, job: Job) -> None:
        self.give_back(job, HOLD * self.ack_wait)

    def _answer(self, job: Job, answer: bytes) -> None:
        if not self.holds(job):
            return  # the server would take it for an answer to another message
        try:
            self._connection.publish(job.receipt, answer)
        except BrokerError as exc:  # it will be delivered again
            logger.debug(
                "did not send an acknowledgement: %s", reason_of(exc), extra=job.log_fields
            )

    def holds(self, job: Job) -> bool:
        """Say whether *job* is of the stream that the service has now.

        It is not if that was recreated, or if `setup_streams` has moved it: then it comes again.
        """
        return job.key[0] == self._life

    async def turn(self, job: Job) -> Turn:
        # A replica that lags may say LATER for a while; never anything else that is wrong
        if not self.holds(job):
            return Turn.GONE
        subject = self._broker.subjects.send(job.inbox, self.service)
        batch = await self._broker.jetstream.direct(
            self._stream, {"seq": 1, "next_by_subj": subject}
        )
        if not batch.replies:  # a replica may not have the message yet
            return Turn.LATER if await self._holds_any(subject) else Turn.GONE
        oldest = hdrs.find_int(batch.replies[0].headers, b"Nats-Sequence") or 0
        if oldest == job.sequence:
            return Turn.NOW
        return Turn.LATER if oldest < job.sequence else Turn.GONE

    async def _holds_any(self, subject: str) -> bool:
        """Say whether the stream holds a message of *subject*, as its leader knows it."""
        request = {"subjects_filter": subject}
        info = await self._broker.jetstream.api(f"STREAM.INFO.{self._stream}", request)
        return bool(info["state"].get("subjects"))

    # -- histories -----------------------------------------------------------------------

    def _history_subject(self, job: Job) -> str:
        return self._broker.subjects.tries_key(self.service, job.id)

    async def history(self, job: Job) -> History:
        name, request = (
            f"STREAM.MSG.GET.{self._bucket}",
            {"last_by_subj": self._history_subject(job)},
        )
        try:
            answer = await self._broker.jetstream.api(name, request)
        except ApiError as exc:
            if exc.err_code == NO_MESSAGE:
                return History()
            raise
        return parse_history(base64.b64decode(answer["message"].get("data", "")))

    async def note(self, job: Job, history: History) -> None:
        text = f"{history.tries} {history.deliveries} {int(history.started)}"
        await self._broker.jetstream.publish(self._history_subject(job), text.encode())

    async def forget(self, job: Job) -> None:
        request = {"filter": self._history_subject(job)}
        await self._broker.jetstream.api(f"STREAM.PURGE.{self._bucket}", request)

    # -- pulling -------------------------------------------------------------------------

    async def _prepare(self) -> str:
        await self._broker.wait_ready(60.0)
        await self._create()
        return f"{self._stream}.{self._consumer}"

    async def _create(self) -> None:
        """Make the consumer, or use it as it is."""
        consumer = await ensure_consumer(self._broker, self.service, self._wanted_ack_wait)
        if self._created != consumer.created:
            self._created, self._stream = consumer.created, consumer.stream
            self._life += 1
        if consumer.ack_wait not in (self.ack_wait, self._wanted_ack_wait):
            logger.warning(
                "service %s: its consumer redelivers messages after %g s without a heartbeat, not "
                "after WSGATEWAY_ACK_WAIT (%g s). To change it, run "
                '"manage.py setup_streams"',
                self.service,
                consumer.ack_wait,
                self._wanted_ack_wait,
                extra={"service": self.service},
            )
        self.ack_wait = consumer.ack_wait
        self.ready.set()

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, raw: bytes | None) -> None:
        self._room -= 1
        problem = None
        try:
            _, inbox = self._broker.subjects.parse_sent(subject.decode())
        except (NameRefused, UnicodeDecodeError) as exc:
            user = subject.decode("utf-8", "replace").rpartition(".")[2]
            inbox = Inbox(self.service, user[:MAX_SHOWN])
            problem = MalformedMessage(f"nobody can have sent this: {exc}")
        job = job_of(inbox, data, raw, reply.decode(), self.service)
        job.key = self._life, job.sequence
        job.problem = problem or job.malformed()
        if job.deliveries > 1 and problem is None:
            self._tell_retaken(job)
        self._on_job(job)


def parse_history(data: bytes) -> History:
    """Return what a record of tries says; an empty history if it is not ours."""
    try:
        tries, deliveries, started = map(int, data.split())
    except ValueError:
        return History()
    return History(tries, deliveries, bool(started))
