"""Work queues and dead letters within one process, for `MemoryBroker`."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsgateway.broker.memory.pull_consumer import MemoryPullConsumer, Waiting, taking
from wsgateway.broker.work import (
    DeadEntry,
    DeadLetters,
    DeadPage,
    History,
    Job,
    Retaken,
    Turn,
    WorkQueue,
)
from wsgateway.exceptions import MessageTooBig, QueueFull
from wsgateway.protocol.subjects import Inbox, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker
    from wsgateway.broker.memory.store import MemoryStore

__all__ = ["MemoryDeadLetters", "MemoryWorkQueue", "Sent", "enqueue"]

HOLD = 2.0
"""How long a message that waits for its turn is not redelivered, in times of ACK_WAIT."""
HEADERS = 64_000
"""Bytes that a dead letter may be larger than a message."""


@dataclass(kw_only=True)
class Sent(Waiting):
    """A client's message.

    Attributes:
        inbox: Who sent it.
        service: Whose queue it is in.
        headers: All of them.
        sent: When it came.
    """

    inbox: Inbox
    service: str
    headers: dict[str, str]
    sent: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))


def enqueue(
    store: MemoryStore,
    inbox: Inbox,
    payload: bytes,
    headers: Mapping[str, str],
    msg_id: str,
    service: str | None = None,
) -> tuple[int, bool]:
    """Put a message into its service's queue; return its offset, and whether it was there before.

    Args:
        store: Where the queue is.
        inbox: Who sent it.
        payload: Its bytes.
        headers: All of them.
        msg_id: Names it.
        service: Whose queue; None: the inbox's.

    Raises:
        MessageTooBig: Nothing was stored.
        QueueFull: Nothing was stored.
    """
    service = inbox.service if service is None else service
    sent = store.sent[service]
    if len(payload) > store.max_size:
        raise MessageTooBig(len(payload), store.max_size)
    with taking:
        if known := sent.known(msg_id):
            return known
        if full := store.is_full(service, inbox):
            raise QueueFull(full)
        offset = sent.next(msg_id, store.duplicate_window)
        message = Sent(payload, offset, inbox=inbox, service=service, headers=dict(headers))
        store.queues[service].append(message)
    store.wake_workers(service)
    return offset, False


class MemoryWorkQueue(WorkQueue):
    """See `WorkQueue`.

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
        broker: MemoryBroker,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[Inbox], None],
        ack_wait: float,
        on_pause: Callable[[], None] | None,
        on_retaken: Callable[[Retaken], None] | None,
    ) -> None:
        self.service = service
        self.ready = asyncio.Event()
        self.ack_wait = ack_wait
        self._broker = broker
        self._store = broker.store
        self._on_job = on_job
        self._on_turn = on_turn
        self._on_pause = on_pause
        self._on_retaken = on_retaken
        self._room = 0
        self._pull = MemoryPullConsumer(self._waiting, lambda: self._room, self._take, ack_wait)
        self._entry = broker.enter(self._store.workers[service], self._on_wake)

    def open(self, room: int) -> None:
        self._room = room
        self.ready.set()
        self._pull.look()

    async def close(self) -> None:
        self._entry.close()
        self._pull.stop()

    def add_room(self, count: int) -> None:
        self._room += count
        self._pull.look()

    # -- messages ------------------------------------------------------------------------

    def _on_wake(self, inbox: Inbox | None, retaken: Retaken | None) -> None:
        """Look for messages; the turn of *inbox* may have come, or the service be paused."""
        if self._on_retaken is not None and retaken is not None:
            self._on_retaken(retaken)
        if self._on_pause is not None and self.service in self._store.paused:
            self._on_pause()
        if inbox is not None:
            self._on_turn(inbox)
        self._pull.look()

    def _waiting(self) -> Iterable[Sent]:
        return () if self.service in self._store.paused else self._store.queues[self.service]

    def _take(self, sent: Sent) -> None:
        self._room -= 1
        job = Job(
            sent.inbox,
            sent.payload,
            sent.headers,
            sequence=sent.sequence,
            id=f"{self._store.inboxes.epoch}.{self.service}.{sent.sequence}",
            deliveries=sent.deliveries,
            service=self.service,
            sent=sent.sent.timestamp(),
        )
        job.problem = job.malformed()
        if job.deliveries > 1:
            retaken = Retaken(job.inbox, job.key, job.id, job.deliveries)
            self._store.wake_workers(self.service, retaken=retaken)
        self._on_job(job)

    def _find(self, job: Job) -> Sent | None:
        """Return what *job* is a delivery of, unless it was delivered again since."""
        for waiting in list(self._store.queues[self.service]):
            if waiting.sequence == job.sequence:
                return waiting if waiting.deliveries == job.deliveries else None
        return None

    async def turn(self, job: Job) -> Turn:
        for waiting in list(self._store.queues[self.service]):
            if waiting.inbox == job.inbox:
                if waiting.sequence == job.sequence:
                    return Turn.NOW
                return Turn.LATER if waiting.sequence < job.sequence else Turn.GONE
        return Turn.GONE

    def ack(self, job: Job) -> None:
        self._broker.require_open()
        with taking:
            queue = self._store.queues[self.service]
            queue[:] = [waiting for waiting in queue if waiting.sequence != job.sequence]
        self._store.wake_workers(self.service, job.inbox)

    async def ack_now(self, job: Job) -> None:
        self.ack(job)

    def give_back(self, job: Job, delay: float) -> None:
        if waiting := self._find(job):
            waiting.due = time.monotonic() + delay
            self._store.wake_workers(self.service)

    def hold(self, job: Job) -> None:
        if waiting := self._find(job):
            waiting.due = time.monotonic() + HOLD * self.ack_wait

    def extend(self, job: Job) -> None:
        if waiting := self._find(job):
            waiting.due = time.monotonic() + self.ack_wait

    # -- histories -----------------------------------------------------------------------

    async def history(self, job: Job) -> History:
        return self._store.histories.get(job.id, History())

    async def note(self, job: Job, history: History) -> None:
        self._store.histories[job.id] = history

    async def forget(self, job: Job) -> None:
        self._store.histories.pop(job.id, None)


class MemoryDeadLetters(DeadLetters):
    """See `DeadLetters`.

    Args:
        broker: Whose store they are in.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._store = broker.store
        self.max_size = self._store.max_size + HEADERS

    async def add(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        await self._broker.wait_ready()
        store = self._store
        size = len(payload) + sum(len(name) + len(value) for name, value in headers.items())
        if size > self.max_size:
            raise MessageTooBig(size, self.max_size)
        with taking:
            if store.buried.known(msg_id) is None:
                offset = store.buried.next(msg_id, store.duplicate_window)
                now = dt.datetime.now(dt.UTC).isoformat()
                store.dead[offset] = DeadEntry(
                    offset, inbox, service or inbox.service, payload, dict(headers), now
                )

    async def read(
        self, service: str | None, after: int, limit: int, user: str | None = None
    ) -> DeadPage:
        for name in {service, user} - {None}:
            encode_token(name or "")  # refuses what nobody can be called
        await self._broker.wait_ready()
        found = [
            entry
            for offset, entry in sorted(self._store.dead.items())
            if offset > after
            and service in (None, entry.service)
            and user in (None, entry.inbox.user)
        ]
        return DeadPage(found[:limit], len(found) > limit)

    async def find(self, offset: int) -> DeadEntry | None:
        await self._broker.wait_ready()
        return self._store.dead.get(offset)

    async def remove(self, offset: int) -> None:
        await self._broker.wait_ready()
        self._store.dead.pop(offset, None)

    async def requeue(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        await self._broker.wait_ready()
        enqueue(self._store, inbox, payload, headers, msg_id, service)
