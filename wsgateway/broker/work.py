"""What workers need from a broker: queues, the histories of messages, dead letters."""

from __future__ import annotations

import asyncio
import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from wsgateway.broker.messages import CONNECTION_HEADER, TOPIC_HEADER, read_topic
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.frames import FRAME_HEADER, Frame
from wsgateway.protocol.subjects import Inbox, Topic

__all__ = [
    "DeadEntry",
    "DeadLetters",
    "DeadPage",
    "History",
    "Job",
    "Retaken",
    "Turn",
    "WorkQueue",
]


class Turn(enum.Enum):
    """Whether a message may be handled."""

    NOW = "now"
    LATER = "later"
    """An earlier message of the same sender is still in the queue."""
    GONE = "gone"
    """It has left the queue: it expired, an operator removed it, another worker has handled it
    while this one hung, or the queue's stream was recreated."""


class Job:
    """One delivery of a message that a client sent.

    Attributes:
        inbox: Who sent it, and where answers go.
        service: Whose queue it comes from: the inbox's service; or that of a topic, to which a
            user of another service has sent it.
        payload: Its bytes.
        headers: All its headers.
        sequence: Its stream sequence.
        key: Which stream it is of, as the queue counts them, and its sequence there.
        deliveries: How often it was delivered, this time included.
        attempt: Which try this is; the first is 1. Set by the worker.
        id: Names the message, even after its stream was recreated and counts from 1.
        receipt: Where the broker takes the answer to this delivery; its own business.
        problem: Why no handler can have it; None if one can.
        unstarted: Whether it is certain that no handler has begun with it.
        sent: When it was stored, as a Unix time.
        taken: When it was delivered, by the monotonic clock.
    """

    __slots__ = (
        "_frame",
        "attempt",
        "deliveries",
        "headers",
        "id",
        "inbox",
        "key",
        "payload",
        "problem",
        "receipt",
        "sent",
        "sequence",
        "service",
        "taken",
        "unstarted",
    )

    def __init__(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        *,
        sequence: int,
        id: str,
        deliveries: int = 1,
        receipt: str = "",
        service: str | None = None,
        sent: float = 0.0,
    ) -> None:
        self.inbox = inbox
        self.service = inbox.service if service is None else service
        self.payload = payload
        self.headers = headers
        self.sequence = sequence
        self.id = id
        self.deliveries = deliveries
        self.receipt = receipt
        self.sent = sent
        self.taken = time.monotonic()
        self.key = 0, sequence
        self.attempt = 1
        self.unstarted = deliveries == 1
        self.problem: MalformedMessage | None = None
        self._frame: Frame | None = None

    @property
    def log_fields(self) -> dict[str, object]:
        """Names it in the log."""
        log_fields: dict[str, object] = {
            "service": self.service,
            "user": self.inbox.user,
            "offset": self.sequence,
            "attempt": self.attempt,
        }
        if connection := self.headers.get(CONNECTION_HEADER):
            log_fields["connection"] = connection
        if self.inbox.service != self.service:
            log_fields["user_service"] = self.inbox.service
            if self.topic is not None:
                log_fields["topic"] = self.topic.name
        return log_fields

    @property
    def topic(self) -> Topic | None:
        """The topic of the service that it was sent to; None if it was not sent to one.

        A program that may publish in NATS can write the header, so it may name no such topic.
        """
        topic = read_topic(self.headers.get(TOPIC_HEADER))
        return topic if topic is not None and topic.service == self.service else None

    @property
    def frame(self) -> Frame:
        """The websocket frame.

        Raises:
            MalformedMessage: It is not one.
        """
        if self._frame is None:
            self._frame = Frame.parse(self.payload, self.headers.get(FRAME_HEADER))
        return self._frame

    def malformed(self) -> MalformedMessage | None:
        """Return why the message is not a frame, which no other try can change; None if it is."""
        try:
            self.frame  # noqa: B018 - parses it
        except MalformedMessage as exc:
            return exc
        return None


class Retaken(NamedTuple):
    """Says that a message was delivered again, to any worker of its service.

    Attributes:
        inbox: Who sent it.
        key: See `Job.key`.
        id: See `Job.id`.
        deliveries: How often it was delivered, that time included.
    """

    inbox: Inbox
    key: tuple[int, int]
    id: str
    deliveries: int


class History(NamedTuple):
    """What is known of a message when it is delivered.

    Attributes:
        tries: Handlers that have failed.
        deliveries: How often it had been delivered when that was noted.
        started: Whether a handler began, alone in its process, and was not heard of since.
    """

    tries: int = 0
    deliveries: int = 0
    started: bool = False


class WorkQueue(ABC):
    """What waits for one service, shared with the service's other workers.

    A message stays in the queue until somebody acknowledges it. Its delivery ends when the
    connection is lost or `ack_wait` passes without a sign of life; then it comes again, and all
    workers are told, so that one who still has the earlier delivery leaves it alone.
    """

    service: str
    ready: asyncio.Event
    """Set once messages come, if there are any."""
    ack_wait: float
    """Seconds without a sign of life after which a message goes to another worker."""

    @abstractmethod
    def open(self, room: int) -> None:
        """Start receiving messages, at most *room* to begin with."""

    @abstractmethod
    async def close(self) -> None:
        """Stop receiving, after what is on its way has arrived. Jobs can still be acknowledged."""

    @abstractmethod
    def add_room(self, count: int) -> None:
        """Allow *count* more messages."""

    @abstractmethod
    async def turn(self, job: Job) -> Turn:
        """Say whether every earlier message of the same sender has left the queue.

        May say `Turn.LATER` for a while although they have; never anything else that is wrong.

        Raises:
            BrokerError: It cannot be asked now.
        """

    @abstractmethod
    def ack(self, job: Job) -> None:
        """Acknowledge *job*: it leaves the queue, and other workers are told.

        Lost if the connection is; then the message comes again.

        Raises:
            BrokerUnavailable: Not connected.
        """

    @abstractmethod
    async def ack_now(self, job: Job) -> None:
        """Do what `ack` does, and return once the broker knows.

        Raises:
            BrokerUnavailable: Perhaps it does not.
        """

    @abstractmethod
    def give_back(self, job: Job, delay: float) -> None:
        """Let *job* be delivered again after *delay* seconds."""

    @abstractmethod
    def hold(self, job: Job) -> None:
        """Delay the redelivery of *job*, which waits for its turn."""

    @abstractmethod
    def extend(self, job: Job) -> None:
        """Send a heartbeat for *job*, which is being handled."""

    @abstractmethod
    async def history(self, job: Job) -> History:
        """Return what workers have noted about *job*.

        Raises:
            BrokerError: It cannot be read now.
        """

    @abstractmethod
    async def note(self, job: Job, history: History) -> None:
        """Remember *history*, where every worker finds it.

        Raises:
            BrokerError: It cannot be stored now.
        """

    @abstractmethod
    async def forget(self, job: Job) -> None:
        """Forget what was noted. Idempotent.

        Raises:
            BrokerError: It cannot be removed now.
        """


class DeadEntry(NamedTuple):
    """A dead letter as it is stored.

    Attributes:
        offset: Its stream sequence; names it.
        inbox: Who sent the message.
        service: Who could not handle it, see `Job.service`.
        payload: Bytes.
        headers: Those it was stored with; none of the broker's own.
        time: When it was stored, as RFC 3339 text in UTC.
    """

    offset: int
    inbox: Inbox
    service: str
    payload: bytes
    headers: dict[str, str]
    time: str


class DeadPage(NamedTuple):
    """Some dead letters, the oldest first.

    Attributes:
        entries: What was read.
        more: True if there are others behind them.
    """

    entries: list[DeadEntry]
    more: bool


class DeadLetters(ABC):
    """Messages that no handler could process, of all services."""

    max_size: int
    """Bytes of payload and headers that the broker takes at most."""

    @abstractmethod
    async def add(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        """Store one. Idempotent for ``WSGATEWAY_DUPLICATE_WINDOW`` seconds.

        Args:
            inbox: Who sent the message.
            payload: Bytes.
            headers: What else is known of it.
            msg_id: Names the message.
            service: Who could not handle it; None: the inbox's.

        Raises:
            BrokerError: It is not stored.
        """

    @abstractmethod
    async def read(
        self, service: str | None, after: int, limit: int, user: str | None = None
    ) -> DeadPage:
        """Return those of *service* and *user* (None: of all) stored after the offset *after*.

        Those of a user include what was sent to topics, by users of any service with that name.

        Raises:
            NameRefused: No service, or no user, can have this name.
        """

    @abstractmethod
    async def find(self, offset: int) -> DeadEntry | None:
        """Return the one at *offset*, or None."""

    @abstractmethod
    async def remove(self, offset: int) -> None:
        """Remove one. Idempotent."""

    @abstractmethod
    async def requeue(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        """Put a message into its service's queue; see `add`, also for the arguments.

        Raises:
            BrokerError: Perhaps it is not there.
        """
