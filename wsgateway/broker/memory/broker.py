"""The broker within one process: joins the parts of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wsgateway.broker.base import Broker, Progress, no_progress
from wsgateway.broker.bus import Bus, Closable, Hook
from wsgateway.broker.channels import BlobStore, ChannelStore
from wsgateway.broker.discovery import Shown
from wsgateway.broker.lease import Lease
from wsgateway.broker.log import Log
from wsgateway.broker.memory.bus import ALREADY_CLOSED, MemoryBus
from wsgateway.broker.memory.channels import (
    MemoryBlobStore,
    MemoryChannelStore,
)
from wsgateway.broker.memory.lease import MemoryLease
from wsgateway.broker.memory.log import MemoryLog
from wsgateway.broker.memory.operations import MemoryOperations
from wsgateway.broker.memory.pull_consumer import taking
from wsgateway.broker.memory.roster import MemoryRoster
from wsgateway.broker.memory.store import Cursor, Entry, MemoryStore, shared_store
from wsgateway.broker.memory.work import (
    MemoryDeadLetters,
    MemoryWorkQueue,
    enqueue,
)
from wsgateway.broker.messages import (
    Receipt,
    Stored,
    check_headers,
    check_published,
    stamp,
)
from wsgateway.broker.operations import Operations
from wsgateway.broker.roster import Roster
from wsgateway.broker.work import DeadLetters, Job, Retaken, WorkQueue
from wsgateway.declared import EVERYTHING, Declared, TopicKind, declared_services
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerUnavailable,
    MessageTooBig,
    QueueFull,
    ServiceUnknown,
    TopicsUnknown,
)
from wsgateway.protocol.frames import FRAME_HEADER, Frame
from wsgateway.protocol.subjects import GROUP_SERVICE, Address, Inbox, Subjects, Topic

if TYPE_CHECKING:
    from wsgateway.conf import Settings

__all__ = ["MemoryBroker"]


class MemoryBroker(Broker):
    """See `Broker`.

    Args:
        store: What to share with other brokers of this process; None: a store of its own.
        subjects: Names below the installation's prefix.
        declared: The services that exist.
    """

    system = "memory"

    def __init__(
        self,
        store: MemoryStore | None = None,
        subjects: Subjects | None = None,
        declared: Declared = EVERYTHING,
    ) -> None:
        self.declared = declared
        self.store = store or MemoryStore()
        self.subjects = subjects or Subjects()
        self._open = False
        self._closed = False
        self._on_ready: dict[int, Callable[[], None]] = {}
        self._on_lost: dict[int, Callable[[], None]] = {}  # called by nobody
        self._bus = MemoryBus(self, self.store.exchange)
        self._roster = MemoryRoster(self)
        self._inboxes = MemoryLog(self, self.store.inboxes, "inboxes")
        self._topics: dict[str, MemoryLog] = {}
        self._entries: set[Entry] = set()  # what this broker watches and listens to

    @classmethod
    def from_settings(cls, settings: Settings, prefix: str | None = None) -> MemoryBroker:
        """Return a broker with the settings' limits on the process's shared store.

        Args:
            settings: The project's.
            prefix: First token of every subject; None: the settings'.
        """
        subjects = Subjects(settings.PREFIX if prefix is None else prefix)
        return cls(shared_store(settings), subjects, declared_services())

    async def open(self) -> None:
        self.require_not_closed()
        if not self._open:
            self._open = True
            for callback in list(self._on_ready.values()):
                callback()

    async def close(self) -> None:
        self._open, self._closed = False, True
        self._roster.close()
        for entry in list(self._entries):
            entry.close()
        self._bus.close()

    def require_not_closed(self) -> None:
        """Refuse a call after `close`.

        Raises:
            BrokerClosed: It is.
        """
        if self._closed:
            raise BrokerClosed(ALREADY_CLOSED)

    async def set_up(
        self,
        ack_wait: float | None = None,
        progress: Progress = no_progress,
        *,
        restored: bool = False,
    ) -> list[str]:
        await self.open()
        return ["memory: nothing to set up"]

    @property
    def where(self) -> str:
        return "the memory of this process"

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def connected(self) -> bool:
        return self._open

    @property
    def ready(self) -> bool:
        return self._open

    async def wait_ready(self, timeout: float | None = None) -> None:
        self.require_open()

    def require_open(self) -> None:
        """Refuse a call before `open` and after `close`.

        Raises:
            BrokerUnavailable: It is.
        """
        self.require_not_closed()
        if not self._open:
            raise BrokerUnavailable("the broker is not open yet; call open()")

    def on_ready(self, callback: Callable[[], None]) -> Closable:
        return self.enter(self._on_ready, callback)

    def on_lost(self, callback: Callable[[], None]) -> Closable:
        return self.enter(self._on_lost, callback)

    @property
    def bus(self) -> Bus:
        return self._bus

    @property
    def roster(self) -> Roster:
        return self._roster

    def show(self, process: Shown) -> Closable:
        return Hook(lambda: None)  # nobody else looks into this process

    def lease(self, name: str, holder: str) -> Lease:
        return MemoryLease(self.store, name, holder)

    def take_part(self) -> None:
        pass

    async def in_effect(self) -> None:
        self.require_open()

    @property
    def service_names(self) -> frozenset[str]:
        return self.declared.services

    def on_new_service(self, callback: Callable[[], None]) -> Closable:
        return Hook(lambda: None)  # there is no other process

    def known_service(self, service: str) -> bool:
        declared = self.declared
        if service is GROUP_SERVICE or service in declared.services:
            return True
        return declared.is_open and not self.known_topics(service)

    async def service_exists(self, service: str) -> bool:
        await self.wait_ready()
        return self.known_service(service)

    @property
    def topic_names(self) -> frozenset[str]:
        return self.declared.topics | self.declared.casts

    def known_topics(self, service: str) -> TopicKind:
        return self.declared.topic_kind(service) or TopicKind.NONE

    async def topics_of(self, service: str) -> TopicKind:
        await self.wait_ready()
        return self.known_topics(service)

    def _require(self, address: Address) -> TopicKind:
        """Say what topics the address's service has.

        Raises:
            ServiceUnknown: It does not exist, or is one of the other kind.
        """
        service = address.service
        kind = self.known_topics(service)
        if isinstance(address, Topic):
            if not kind:
                raise TopicsUnknown(service, self.topic_names, service in self.service_names)
            return kind
        if not self.known_service(service):
            raise ServiceUnknown(service, self.service_names, bool(kind))
        return TopicKind.NONE

    async def store_message(
        self,
        address: Address,
        payload: bytes,
        *,
        kind: str | None,
        msg_id: str | None,
        ttl: float | None,
        headers: Mapping[str, str] | None,
        reserved: bool,
    ) -> Receipt:
        subject = self.subjects.stored(address)
        check_published(headers, ttl, msg_id)
        msg_id = f"{msg_id}@{subject}" if msg_id else None
        await self.wait_ready()
        self._require(address)
        receipt = self._keep(address, payload, kind, msg_id, ttl, headers or {})
        await asyncio.sleep(0)
        return receipt

    def _keep(
        self,
        address: Address,
        payload: bytes,
        kind: str | None,
        msg_id: str | None,
        ttl: float | None,
        headers: Mapping[str, str],
    ) -> Receipt:
        if isinstance(address, Topic) and address.service in self.declared.casts:
            self.store.cast(address, payload, kind, headers)
            return Receipt(0, False)
        return self.store.keep(address, payload, kind, msg_id, ttl, headers)

    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        pairs = {FRAME_HEADER: frame.kind, **(headers or {})}
        return self._offer(
            {**pairs, "Nats-Msg-Id": msg_id},
            lambda: enqueue(self.store, inbox, frame.payload, pairs, msg_id),
        )

    def _offer(
        self, headers: Mapping[str, str], store: Callable[[], tuple[int, bool]]
    ) -> asyncio.Future[Receipt]:
        """Call *store*, and return its result as a broker's answer."""
        self.require_open()
        check_headers(headers)
        result: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        try:
            result.set_result(Receipt(*store()))
        except (MessageTooBig, QueueFull) as exc:
            result.set_exception(exc)
        return result

    def offer_topic(
        self,
        topic: Topic,
        inbox: Inbox,
        frame: Frame,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        *,
        direct: bool = False,
    ) -> asyncio.Future[Receipt]:
        stamped = stamp(topic, inbox, headers, direct=direct)
        msg_id = f"{msg_id}@{self.subjects.topic(topic)}"
        pairs = {FRAME_HEADER: frame.kind, **stamped}

        def store() -> tuple[int, bool]:
            if direct:
                return self._keep(topic, frame.payload, frame.kind, msg_id, None, stamped)
            return enqueue(self.store, inbox, frame.payload, pairs, msg_id, topic.service)

        return self._offer({**pairs, "Nats-Msg-Id": msg_id}, store)

    @property
    def inboxes(self) -> Log:
        return self._inboxes

    def log(self, address: Address) -> Log:
        if not isinstance(address, Topic):
            return self._inboxes
        found = self._topics.get(address.service)
        if found is None:
            store = self.store.log(address)
            found = self._topics[address.service] = MemoryLog(self, store, address.service)
        return found

    @property
    def largest_offer(self) -> int:
        return self.store.max_size

    def hear(self, topic: Topic, on_message: Callable[[Stored], None]) -> Closable:
        return self.log(topic).watch(topic, on_message)

    async def load_cursor(self, inbox: Inbox, device: str) -> int:
        await self.wait_ready()
        log, cursor = self.store.inboxes, self.store.cursors.get((inbox, device))
        if cursor is None:
            return 0
        if cursor.epoch != log.epoch or cursor.offset > log.received.last:
            await self.drop_cursor(inbox, device)
            return 0
        return cursor.offset

    async def save_cursor(
        self, inbox: Inbox, device: str, offset: int, *, epoch: str | None = None
    ) -> None:
        known = await self.load_cursor(inbox, device)
        store, now = self.store, dt.datetime.now(dt.UTC)
        if offset <= known or epoch not in (None, store.inboxes.epoch):
            return
        with taking:
            store.cursors.pop((inbox, device), None)  # the dict's order is the order of use
            store.cursors[inbox, device] = Cursor(store.inboxes.epoch, offset, now)
            devices = [key for key in store.cursors if key[0] == inbox]
            for key in devices[: -store.max_devices]:
                del store.cursors[key]

    async def drop_cursor(self, inbox: Inbox, device: str) -> None:
        await self.wait_ready()
        self.store.cursors.pop((inbox, device), None)

    def work_queue(
        self,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[Inbox], None],
        ack_wait: float,
        on_pause: Callable[[], None] | None = None,
        on_retaken: Callable[[Retaken], None] | None = None,
    ) -> WorkQueue:
        return MemoryWorkQueue(self, service, on_job, on_turn, ack_wait, on_pause, on_retaken)

    @property
    def dead_letters(self) -> DeadLetters:
        return MemoryDeadLetters(self)

    @property
    def operations(self) -> Operations:
        return MemoryOperations(self)

    @property
    def channels(self) -> ChannelStore:
        return MemoryChannelStore(self)

    @property
    def blobs(self) -> BlobStore:
        return MemoryBlobStore(self)

    def broadcast(self, topic: str, payload: bytes) -> None:
        self.require_not_closed()
        if not self._open:
            return
        for listener in list(self.store.listeners[topic].values()):
            listener(payload)

    def listen(self, topic: str, on_message: Callable[[bytes], None]) -> Closable:
        return self.enter(self.store.listeners[topic], on_message)

    def enter(
        self, table: dict[int, Callable[..., None]], callback: Callable[..., None]
    ) -> Closable:
        """Put *callback* into *table*, to be called in this loop, until it is closed."""
        self.require_not_closed()
        return Entry(table, _in_this_loop(callback), self._entries)


def _in_this_loop(callback: Callable[..., None]) -> Callable[..., None]:
    """Return *callback* so that it always runs in the loop that runs now."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return callback

    def call(*args: object) -> None:
        if asyncio._get_running_loop() is loop:
            callback(*args)
        else:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(callback, *args)

    return call
