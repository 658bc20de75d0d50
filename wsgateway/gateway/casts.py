"""The ephemeral topics that sockets read: what passes by, at most once, kept nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Stored
from wsgateway.exceptions import MalformedMessage
from wsgateway.identity import Identity
from wsgateway.protocol.credit import WINDOW_BYTES
from wsgateway.protocol.endpoint import Access, Subscribe
from wsgateway.protocol.subjects import Topic

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session
    from wsgateway.gateway.topics import SocketTopics

__all__ = ["CastSubscription", "Casts"]

OVERHEAD = 500
"""Bytes that a message takes besides its payload, at most."""


class Casts:
    """The ephemeral topics of one event loop. All who read one share what the broker brings.

    Args:
        broker: Brings it.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._heard: dict[Topic, _Heard] = {}

    def add(self, topic: Topic, reader: CastSubscription) -> None:
        """Give *reader* each message of *topic* from now on."""
        heard = self._heard.get(topic)
        if heard is None:
            heard = self._heard[topic] = _Heard()
            heard.hook = self._broker.hear(topic, heard.on_message)
        heard.readers[reader] = None

    def discard(self, topic: Topic, reader: CastSubscription) -> None:
        """Give it nothing more. Idempotent."""
        heard = self._heard.get(topic)
        if heard is None:
            return
        heard.readers.pop(reader, None)
        if not heard.readers:
            del self._heard[topic]
            if heard.hook is not None:
                heard.hook.close()


class _Heard:
    """The readers of one topic."""

    __slots__ = ("hook", "readers")

    def __init__(self) -> None:
        self.hook: Closable | None = None
        self.readers: dict[CastSubscription, None] = {}

    def on_message(self, message: Stored) -> None:
        """Take a message, in the broker's read path."""
        for reader in list(self.readers):
            reader.take(message)


class CastSubscription:
    """Reads an ephemeral topic for one session.

    What the client has not read waits here, within `WINDOW_BYTES` for all such topics of the
    socket. A client that is further behind loses the subscription of which most waits, and learns
    why: leaving messages out without a word would tell it nothing.

    Args:
        session: Whose.
        topic: Which one.
        topics: The session's.
    """

    __slots__ = (
        "_begun",
        "_is_due",
        "_session",
        "_topics",
        "_waiting",
        "access",
        "closed",
        "is_open",
        "topic",
        "waiting_bytes",
    )

    def __init__(self, session: Session, topic: Topic, topics: SocketTopics) -> None:
        self._session = session
        self._topics = topics
        self.topic = topic
        self.access: Access | None = None
        """What the client may do."""
        self.is_open = False
        """Whether the client has been told that it reads the topic, or is about to be."""
        self.closed = False
        self._begun: str | None = None  # the frame that says so, until it is written
        self._waiting: list[Stored] = []
        self.waiting_bytes = 0
        """Of the messages that the client has not read."""
        self._is_due = False  # the writer is going to write it

    @property
    def identity(self) -> Identity:
        """Whose it is, as the newest token says."""
        return self._session.identity

    @property
    def is_reading(self) -> bool:
        """See `wsgateway.topics.rights.Holder`."""
        return self.is_open and not self._session.socket.closed

    async def find_start(self, question: Subscribe) -> None:
        """Make sure that everything published from now on comes.

        Raises:
            BrokerUnavailable: Not connected.
        """
        hub = self._session.hub
        hub.casts.add(self.topic, self)
        await hub.broker.in_effect()

    def begin(self, start: None, frame: str) -> None:
        """Deliver what comes from now on, after *frame*."""
        self._begun = frame
        self.is_open = True
        self._wake()

    def take(self, message: Stored) -> None:
        """Take a message, in the broker's read path."""
        if not self._is_taking:
            return
        size = len(message.payload) + OVERHEAD
        while (held := self._topics.waiting_bytes) and held + size > WINDOW_BYTES:
            self._topics.end_slowest()
        if self._is_taking:  # it was not the slowest itself
            self._waiting.append(message)
            self.waiting_bytes += size
            self._topics.waiting_bytes += size
            self._wake()

    @property
    def _is_taking(self) -> bool:
        return self.is_open and not self.closed

    def _wake(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._session.writer.add(self)

    async def write(self) -> None:
        """See `wsgateway.gateway.writer.Source`."""
        self._is_due = False
        session = self._session
        if self._begun is not None and not self.closed:
            begun, self._begun = self._begun, None
            await session.write_other(begun)
        for _ in range(len(self._waiting)):  # what comes later waits for the other topics
            if self.closed:
                return
            message = self._waiting.pop(0)
            size = len(message.payload) + OVERHEAD
            self.waiting_bytes -= size
            self._topics.waiting_bytes -= size
            try:
                frame = session.endpoint.message(message, self.topic)
                if frame is not None:
                    await session.socket.write(frame)
            except MalformedMessage as exc:
                session.hub.note_skipped(message, exc, session.log_fields)

    def change_access(self, access: Access | None) -> None:
        """See `wsgateway.topics.rights.Holder`."""
        self._topics.change_access(self, None, access)

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        self.closed = True
        self._topics.waiting_bytes -= self.waiting_bytes
        self.waiting_bytes = 0
        self._waiting.clear()
        hub = self._session.hub
        hub.casts.discard(self.topic, self)
        hub.rights.release(self)
