"""What the memory brokers of one process share."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core import mail

from wsgateway.broker.isolation import begin_each_test_empty, resets
from wsgateway.broker.memory.bus import Exchange
from wsgateway.broker.memory.channels import MemoryChannels
from wsgateway.broker.memory.pull_consumer import taking
from wsgateway.broker.memory.sequence import Sequence
from wsgateway.broker.memory.work import Sent
from wsgateway.broker.messages import (
    ERROR_HEADER,
    REPLY_TO_HEADER,
    SENDER_HEADER,
    Receipt,
    Stored,
    read_sender,
)
from wsgateway.broker.work import DeadEntry, History, Retaken
from wsgateway.exceptions import MessageTooBig
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.retention import retention_of
from wsgateway.tracing import TRACEPARENT, find_tracer, sampled

if TYPE_CHECKING:
    from wsgateway.conf import Settings

__all__ = [
    "Cursor",
    "Entry",
    "Kept",
    "LogStore",
    "MemoryStore",
    "reset_shared_store",
    "shared_store",
]

NONE: Mapping[str, str] = {}


@dataclass
class Kept:
    stored: Stored
    until: float  # monotonic time at which it is gone


class Cursor(NamedTuple):
    """How far a device has read, in which life of the stream, and when that was saved."""

    epoch: str
    offset: int
    saved: dt.datetime


Watchers = dict[str, dict[int, Callable[[Stored], None]]]
"""By queue; that of those who get every message is ""."""


@dataclass
class LogStore:
    """What a log holds.

    Attributes:
        max_messages: Messages kept per address; the oldest goes first.
        max_age: Seconds that a message is kept.
    """

    max_messages: int = 10_000
    max_age: float = 7 * 86400.0
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex)
    received: Sequence = field(default_factory=Sequence)
    messages: dict[Address, list[Kept]] = field(default_factory=lambda: defaultdict(list))
    watchers: dict[Address, Watchers] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def announce(self, address: Address, stored: Stored) -> None:
        """Hand what has just been stored to those who watch *address*."""
        for queue, found in list(self.watchers[address].items()):
            watchers = list(found.values())
            for watcher in watchers if not queue else watchers[:1]:
                watcher(stored)

    def kept(self, address: Address) -> list[Kept]:
        """Return what *address* still holds."""
        now = time.monotonic()
        with taking:
            found = [kept for kept in self.messages[address] if kept.until > now]
            self.messages[address] = found[-self.max_messages :]
            return self.messages[address]

    def start_over(self) -> None:
        """Forget everything, as when the stream is deleted and recreated."""
        self.epoch = uuid.uuid4().hex
        self.received = Sequence()
        self.messages.clear()

    def lose_tail(self, last: int) -> None:
        """Forget what was stored after *last*, as a server that had not synced it to disk."""
        self.received.last = last
        for address, found in self.messages.items():
            self.messages[address] = [kept for kept in found if kept.stored.offset <= last]


class TopicLogs(dict[str, LogStore]):
    """The log of each topic service, made when it is needed.

    Args:
        limits: The value of ``WSGATEWAY_TOPICS``.
    """

    def __init__(self, limits: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self._limits = limits

    def __missing__(self, service: str) -> LogStore:
        keep = retention_of(service, self._limits)
        made = self[service] = LogStore(keep.max_messages, keep.max_age)
        return made


@dataclass
class MemoryStore:
    """What brokers of one process share.

    Attributes:
        inboxes: The log of all inboxes.
        topics: The log of each topic service.
        max_waiting: Client messages that may wait for one service.
        duplicate_window: Seconds that a message id is remembered.
        max_size: Bytes in a payload.
        max_devices: Cursors of one user.
        max_waiting_per_user: Client messages that may wait for one service from one user.
    """

    inboxes: LogStore = field(default_factory=LogStore)
    topics: TopicLogs = field(default_factory=lambda: TopicLogs({}))
    max_waiting: int = 1_000_000
    duplicate_window: float = 120.0
    max_size: int = 1_000_000
    max_devices: int = 100
    max_waiting_per_user: int = 10_000
    sent: dict[str, Sequence] = field(default_factory=lambda: defaultdict(Sequence))
    queues: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    histories: dict[str, History] = field(default_factory=dict)
    dead: dict[int, DeadEntry] = field(default_factory=dict)
    buried: Sequence = field(default_factory=Sequence)
    cursors: dict[tuple[Inbox, str], Cursor] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)  # services whose workers get no messages
    resumed: dict[str, float] = field(default_factory=dict)  # when others last were, monotonic
    workers: dict[str, dict[int, Callable[[Inbox | None, Retaken | None], None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    listeners: dict[str, dict[int, Callable[[bytes], None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    roster: dict[tuple[str, str], tuple[Mapping[str, Any], float]] = field(default_factory=dict)
    """Entries by kind and id, and the monotonic time at which each is gone."""

    heard: deque[tuple[Topic, Stored]] = field(default_factory=lambda: deque(maxlen=100))
    """What went to ephemeral topics lately, which nobody but tests reads again."""

    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Holders by name, and the monotonic time at which each lease ends."""

    exchange: Exchange = field(default_factory=Exchange)
    channels: MemoryChannels = field(default_factory=MemoryChannels)

    def log(self, address: Address) -> LogStore:
        """Return the log that holds what is stored under *address*."""
        return self.topics[address.service] if isinstance(address, Topic) else self.inboxes

    def keep(
        self,
        address: Address,
        payload: bytes,
        kind: str | None = None,
        msg_id: str | None = None,
        ttl: float | None = None,
        headers: Mapping[str, str] = NONE,
    ) -> Receipt:
        """Store a message, and hand it to those who watch; see `Broker.publish`.

        Raises:
            MessageTooBig: Nothing was stored.
        """
        log = self.log(address)
        self._require_size(payload)
        with taking:
            if known := log.received.known(msg_id):
                return Receipt(*known)
            kept = log.kept(address)
            offset = log.received.next(msg_id, self.duplicate_window)
            previous = kept[-1].stored.offset if kept else 0
            stored = _message(address, offset, previous, payload, kind, headers)
            kept.append(Kept(stored, time.monotonic() + min(ttl or log.max_age, log.max_age)))
        log.announce(address, stored)
        return Receipt(stored.offset, False)

    def cast(
        self, topic: Topic, payload: bytes, kind: str | None, headers: Mapping[str, str]
    ) -> None:
        """Hand a message to those who watch an ephemeral topic.

        Raises:
            MessageTooBig: Nobody got it.
        """
        self._require_size(payload)
        stored = _message(topic, 0, None, payload, kind, headers)
        self.heard.append((topic, stored))
        self.log(topic).announce(topic, stored)

    def _require_size(self, payload: bytes) -> None:
        if len(payload) > self.max_size:
            raise MessageTooBig(len(payload), self.max_size)

    def heard_by(self, topic: Topic) -> list[Stored]:
        """Return the latest messages of an ephemeral topic."""
        return [stored for address, stored in list(self.heard) if address == topic]

    def wake_workers(
        self, service: str, inbox: Inbox | None = None, retaken: Retaken | None = None
    ) -> None:
        """Have the service's workers look for messages; the turn of *inbox* may have come."""
        for wake in list(self.workers[service].values()):
            wake(inbox, retaken)

    def is_full(self, service: str, inbox: Inbox) -> str:
        """Return why a sender's next message to *service* is refused; "" if it is not."""
        queue = self.queues[service]
        if len(queue) >= self.max_waiting:
            return f"{len(queue)} client messages already wait for {service!r}"
        if len(queue) < self.max_waiting_per_user:
            return ""
        own = sum(waiting.inbox == inbox for waiting in queue)
        if own >= self.max_waiting_per_user:
            return f"{own} of this user's messages wait for {service!r}"
        return ""


def _message(
    address: Address,
    offset: int,
    previous: int | None,
    payload: bytes,
    kind: str | None,
    headers: Mapping[str, str],
) -> Stored:
    stored = Stored(
        offset,
        previous,
        bytes(payload),
        kind,
        dt.datetime.now(dt.UTC).isoformat(),
        headers.get(REPLY_TO_HEADER),
        headers.get(ERROR_HEADER),
    )
    if isinstance(address, Topic):
        stored.sender = read_sender(headers.get(SENDER_HEADER))
    if find_tracer() is not None:
        stored.trace = sampled(headers.get(TRACEPARENT))
    return stored


class Entry:
    """A callback in a table; `close` takes it out. Kept in *entries*, its broker's, until then."""

    def __init__(
        self,
        table: dict[int, Callable[..., None]],
        callback: Callable[..., None],
        entries: set[Entry],
    ) -> None:
        self._table = table
        self._entries = entries
        table[id(self)] = callback
        entries.add(self)  # also keeps the id from being given out again

    def close(self) -> None:
        self._table.pop(id(self), None)
        self._entries.discard(self)


_shared: MemoryStore | None = None


def shared_store(settings: Settings) -> MemoryStore:
    """Return what the brokers of this process share, with the settings' limits."""
    global _shared
    if hasattr(mail, "outbox"):  # Django's tests run: it is where they find sent mail
        begin_each_test_empty()
    if _shared is None:
        _shared = MemoryStore(
            LogStore(settings.INBOX_MAX_MESSAGES, settings.INBOX_MAX_AGE),
            TopicLogs(settings.TOPICS),
            settings.SEND_MAX_MESSAGES,
            settings.DUPLICATE_WINDOW,
            settings.MAX_MESSAGE_SIZE,
            settings.MAX_DEVICES_PER_USER,
            settings.SEND_MAX_MESSAGES_PER_USER,
        )
    return _shared


def reset_shared_store() -> None:
    """Forget everything; brokers that exist keep what they have. For tests."""
    global _shared
    _shared = None


resets.append(reset_shared_store)
