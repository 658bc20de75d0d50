"""What a bus promises. Implementations: `kafka`, `amqp`.

A bus carries records between a bridge and the services on it. It stores what clients send, and
hands out what services produce until somebody acknowledges it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Bus", "Record", "Target"]

Target = Literal["inbox", "topic"]
"""Where a record's message belongs: in a user's inbox, or in a topic."""


@dataclass(slots=True, eq=False)
class Record:
    """One record that a service produced.

    Attributes:
        key: As the bus carried it, such as ``orders.alice``; ``""`` without one. Bytes that are not
            UTF-8 stand as backslash escapes, which no valid key holds.
        target: Which of the bus's topics or exchanges it came from.
        service: The service that the topic's name says, which the key then lacks; None if the key
            says it.
        payload: Its bytes.
        headers: Those whose values are text. A name that comes several times has its last value.
        id: The same at each delivery, and never that of another record; None if the bus has no
            such id. Then a record that is handed out again is stored twice.
        lane: A partition or a queue. Within it, records with the same key are in order.
        place: Where it is, for people: ``ws.recv, partition 3, offset 17``.
        receipt: The bus's own business.
        flaw: Why it can never be delivered, as far as the bus knows; "" otherwise.
    """

    key: str
    target: Target
    service: str | None
    payload: bytes
    headers: Mapping[str, str]
    id: str | None
    lane: str
    place: str
    receipt: object
    flaw: str = ""


class Bus(ABC):
    """A connection of one bridge to its bus, in one event loop.

    Create it anywhere, `open` it in that loop. It connects again for as long as it is open, after
    growing pauses. No text and no log line shows a credential, or a record's payload.
    """

    @abstractmethod
    async def open(self) -> None:
        """Start connecting and return at once, connected or not. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Send what was acknowledged, disconnect, and fail every waiter. Idempotent.

        Takes ``WSGATEWAY_CLOSE_TIMEOUT`` seconds at most. What was not acknowledged is handed out
        again, to this bridge or another.
        """

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the bus can be reached now, as far as is known."""

    @property
    @abstractmethod
    def trouble(self) -> str:
        """Why it carries nothing now, or not everything, as far as is known; "" if it does.

        It cannot be reached, refuses the bridge, or lacks a topic or a queue. For people.
        """

    @abstractmethod
    async def ready(self) -> None:
        """Wait until it is connected and has every topic, exchange and queue that it needs.

        May wait for ever; may be cancelled.

        Raises:
            BusMisconfigured: Something is missing, or the bus refuses the bridge. The text says
                what to do. The caller may ask again later.
        """

    @abstractmethod
    async def set_up(self) -> list[str]:
        """Create the topics, exchanges and queues that are missing; for operators. Idempotent.

        Connects by itself if it is not open, and then disconnects. If one of them fails, the others
        are tried all the same.

        Returns:
            A line for each, such as ``created topic ws.recv: 12 partitions, replication 3``, or
            ``topic ws.recv exists: …``.

        Raises:
            BusUnavailable: It cannot be reached.
            BusMisconfigured: Something exists, but is of another kind, or may not be created. The
                error's ``lines`` say what was done all the same.
        """

    @abstractmethod
    async def produce(
        self, service: str, user: str, payload: bytes, headers: Mapping[str, str]
    ) -> None:
        """Store what a client sent; return once the bus has confirmed that it is stored.

        Concurrent calls are in flight together. The caller waits for one of a user before it calls
        with that user's next, which is what keeps the order. May be cancelled at any point; then
        the record may be stored.

        Args:
            service: The service's name.
            user: Who sent it, as one token, see `wsgateway.protocol.subjects.sender_token`.
            payload: The frame's bytes.
            headers: Names and values, text.

        Raises:
            BusUnavailable: It is not confirmed. Try again with the same headers; then it may be
                stored twice.
            BusMisconfigured: The topic is missing, no queue is bound, or the bridge may not write
                there. Nothing is stored; try again once an operator has mended it.
            RecordRefused: This record can never be stored, for example because it is too large.
        """

    @abstractmethod
    def consume(
        self,
        on_record: Callable[[Record], None],
        on_lost: Callable[[str], None],
        room: int,
        room_bytes: int,
    ) -> None:
        """Hand out what services produce, from now until `close`, whenever it is connected.

        Records that nobody has acknowledged are handed out again after a reconnect. Several
        bridges share the records: each lane belongs to one of them at a time.

        Args:
            on_record: Called in the loop with each record, in the order of its lane. Never raises.
            on_lost: Called with a lane that no longer belongs to this bridge, or whose connection
                is lost, before its records are handed out again. The bus ignores later
                acknowledgements of records that it handed out before.
            room: Records that may be handed out and not acknowledged.
            room_bytes: While these hold more bytes, no more are handed out. A bus that can only
                count records leaves it out of account.
        """

    @abstractmethod
    def ack(self, record: Record) -> None:
        """Acknowledge a record: its message is stored, or it is set aside.

        Records may be acknowledged in any order. Lost if the connection is; then the record comes
        again. Never raises.
        """

    @abstractmethod
    async def set_aside(self, record: Record, reason: str) -> str:
        """Store a record where the operator finds what could not be delivered, with its *reason*.

        Returns once the bus has confirmed it. The caller acknowledges the record afterwards. A
        payload that does not fit is left out only if the bus keeps the record where it was.

        Returns:
            What did not fit, and where it is, for people; "" if everything did.

        Raises:
            BusUnavailable: It is not confirmed; try again.
            BusMisconfigured: The place for it is missing; try again once it is there.
        """
