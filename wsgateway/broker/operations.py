"""What operators see of a broker's stores and do to them: inboxes, devices, streams, queues.

For the admin, commands and metrics; nothing on the way of a message calls it. Numbers are of about
now: others store and delete while they are read.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from wsgateway.protocol.subjects import Address, Inbox

__all__ = ["Device", "Held", "InboxState", "Operations", "Peer", "Queue", "Stream"]


@dataclass(frozen=True, slots=True)
class InboxState:
    """An inbox in numbers.

    Attributes:
        messages: How many it holds.
        first: Offset of the oldest; 0 if it is empty.
        last: Offset of the newest; 0 if it is empty.
        waiting: How many came after the cursor of the device that is furthest; all of them if no
            device has one.
        last_seen: When a device last moved its cursor, or came; None if no cursor is kept.
    """

    messages: int = 0
    first: int = 0
    last: int = 0
    waiting: int = 0
    last_seen: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A device's cursor.

    Attributes:
        device: The name that the client chose.
        offset: Up to where it has received everything.
        epoch: The life of the stream that *offset* belongs to.
        saved: When the cursor was last written.
        waiting: How many messages of the inbox it has not received; all if *epoch* is another one.
    """

    device: str
    offset: int
    epoch: str
    saved: dt.datetime
    waiting: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server that holds a copy of a stream.

    Attributes:
        name: The server's.
        current: Whether it has everything that the leader has.
        lag: Operations that it is behind.
        offline: Whether the leader does not hear from it.
    """

    name: str
    current: bool
    lag: int
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream, as its leader describes it. Limits are 0 where there is none.

    Attributes:
        name: The stream's.
        purpose: What is in it, a few words in English.
        service: Whose queue it is; None: another stream, or the queue that all share.
        messages: How many it holds.
        bytes: How much they take.
        subjects: Over how many subjects they are spread; of the inboxes' stream, how many inboxes
            hold something.
        max_bytes: Its limit in bytes.
        max_messages: Its limit in messages.
        max_per_subject: The same for each subject.
        max_age: Seconds after which a message is removed.
        replicas: On how many servers it should be.
        leader: The server that accepts its messages; "" if that is not known, or it has only one.
        peers: The others.
        last_error: Why it cannot be used, or is in danger, one sentence; "" if all is well.
        differences: How it differs from the settings, a sentence each, with the cure.
    """

    name: str
    purpose: str
    service: str | None = None
    messages: int = 0
    bytes: int = 0
    subjects: int = 0
    max_bytes: int = 0
    max_messages: int = 0
    max_per_subject: int = 0
    max_age: float = 0.0
    replicas: int = 1
    leader: str = ""
    peers: tuple[Peer, ...] = ()
    last_error: str = ""
    differences: tuple[str, ...] = ()

    @property
    def level(self) -> float:
        """What part of its limit in bytes, or in messages, is used; 0.0 without either."""
        pairs = ((self.bytes, self.max_bytes), (self.messages, self.max_messages))
        return max((used / limit for used, limit in pairs if limit), default=0.0)


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for one service.

    Attributes:
        service: Whose.
        waiting: Messages that no worker has acknowledged, those in flight included.
        in_flight: Of those, how many workers have taken.
        oldest: When the oldest of them was sent; None if there is none.
        failed: Of those, how many a handler has failed to process at least once.
        dead: Dead letters of the service.
        bytes: How much the waiting messages take; 0 if the service shares a stream.
        max_bytes: How much may wait; 0: no limit.
        max_messages: How many may wait; 0: no limit.
        max_per_user: How many of one user may wait; 0: no limit.
        pulls: Requests for messages that wait at the server; 0: nobody takes any.
        paused: Whether no worker gets any, see `Operations.pause`.
    """

    service: str
    waiting: int = 0
    in_flight: int = 0
    oldest: dt.datetime | None = None
    failed: int = 0
    dead: int = 0
    bytes: int = 0
    max_bytes: int = 0
    max_messages: int = 0
    max_per_user: int = 0
    pulls: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What is stored about a user in one service, in numbers.

    Attributes:
        messages: In the inbox.
        cursors: Devices' positions.
        queued: Messages that the user sent, and that no handler has finished.
        dead_letters: Messages that the user sent, and that no handler could process.
    """

    messages: int = 0
    cursors: int = 0
    queued: int = 0
    dead_letters: int = 0

    @property
    def total(self) -> int:
        """Everything together."""
        return self.messages + self.cursors + self.queued + self.dead_letters


class Operations(ABC):
    """See `Broker.operations`. Every method may raise `BrokerUnavailable`, and may be cancelled."""

    @abstractmethod
    async def counts(self, inboxes: Iterable[Inbox]) -> dict[Inbox, InboxState]:
        """Return the state of each of *inboxes*, also of those that are empty.

        A hundred take about as long as one: two round trips.
        """

    @abstractmethod
    async def devices(self, inbox: Inbox) -> list[Device]:
        """Return the devices that have a cursor, the most recently used first."""

    @abstractmethod
    async def delete(self, address: Address, offset: int) -> bool:
        """Delete one message for good; return False if *address* has none at *offset*."""

    @abstractmethod
    async def purge(self, address: Address) -> int:
        """Delete all messages of *address* for good; return how many there were. Cursors stay."""

    @abstractmethod
    async def held(self, user: str, service: str | None = None) -> dict[str, Held]:
        """Return what is stored about a user, by service; those with nothing are missing.

        Args:
            user: The user's name.
            service: In this service only; None: in all, whether they still exist or not.

        Raises:
            NameRefused: No user, or no service, can have this name.
        """

    @abstractmethod
    async def erase(self, inbox: Inbox) -> Held:
        """Delete everything that is stored about a user in one service; return what it was.

        What a handler or a socket has in hand at this moment is not stored, and may be soon.
        """

    @abstractmethod
    async def names(
        self, service: str, *, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> list[str]:
        """Return users of *service* that have an inbox with messages, or a cursor; by name.

        The server lists 100,000 names in about a second, however few are returned, so do not
        call it for each row of a page.

        Args:
            service: Whose.
            prefix: What the names begin with.
            after: Return names behind this one; None: from the first.
            limit: How many at most.
        """

    @abstractmethod
    async def streams(self) -> list[Stream]:
        """Return the streams of this installation, those that are missing included."""

    @abstractmethod
    async def queues(self) -> list[Queue]:
        """Return the queue of each service that exists, by name."""

    @abstractmethod
    async def pause(self, service: str, age: float = 0.0) -> bool:
        """Deliver no message of *service* to any worker, until `resume`. Idempotent.

        Workers are told; until they hear of it, they keep what they have taken already. The broker
        remembers it when it restarts.

        Args:
            service: Which.
            age: Seconds since when there is a reason. If the service was resumed in that time, it
                is not paused: an operator has mended what was wrong.

        Returns:
            Whether it is paused now.

        Raises:
            BrokerError: It is not paused: no answer, or the service never had a worker.
        """

    @abstractmethod
    async def resume(self, service: str) -> bool:
        """Deliver messages of *service* again; return False if it was not paused."""
