"""What a broker promises. Implementations: `nats`, `memory`.

All offsets are stream sequences: they rise within an inbox, but have holes. All methods that
wait have a deadline of ``WSGATEWAY_BROKER_TIMEOUT`` seconds and may be cancelled at any point;
those that store something try again for ``WSGATEWAY_PUBLISH_TIMEOUT`` seconds while connected.

The module is long because it is one interface, and most of it says what each method promises.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from wsgateway.broker.bus import Bus, Closable
from wsgateway.broker.channels import BlobStore, ChannelStore
from wsgateway.broker.discovery import Shown
from wsgateway.broker.lease import Lease
from wsgateway.broker.log import Log
from wsgateway.broker.messages import REPLY_TO_HEADER, Receipt, Stored, check_address
from wsgateway.broker.operations import Operations
from wsgateway.broker.roster import Roster
from wsgateway.broker.work import DeadLetters, Job, Retaken, WorkQueue
from wsgateway.declared import TopicKind
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import GROUP_SERVICE, Address, Inbox, Subjects, Topic
from wsgateway.tracing import Destination, find_tracer

__all__ = ["Broker", "Progress", "no_progress"]


Progress = Callable[[str, int, int], object]
"""Takes what is done, how much of it is done so far, and how much there is."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


class Broker(ABC):
    """A connection to the broker for one event loop. Create it anywhere, `open` it in that loop.

    Every method may raise `BrokerUnavailable` when no answer came in time and `BrokerClosed`
    after `close`.
    """

    subjects: Subjects

    @abstractmethod
    async def open(self) -> None:
        """Start connecting and return at once, connected or not. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Flush, cancel every task, fail every waiter. Idempotent."""

    @abstractmethod
    async def set_up(
        self,
        ack_wait: float | None = None,
        progress: Progress = no_progress,
        *,
        restored: bool = False,
    ) -> list[str]:
        """Create the streams, or bring them in line with the settings; for operators. Idempotent.

        Args:
            ack_wait: Seconds without a sign of life after which the services' queues deliver a
                message again; None: as they are.
            progress: Told what is done, how much of it, and how much there is.
            restored: The inboxes, or topics, come from a backup: give them a new epoch. Not
                idempotent.

        Returns:
            One line a stream, and one a queue that was changed: what was done.

        Raises:
            BrokerMisconfigured: The server cannot change what differs. Nothing was changed.
        """

    @property
    @abstractmethod
    def where(self) -> str:
        """What and where the broker is, for messages, without credentials."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether `close` was called."""

    def forget_inherited(self) -> None:  # noqa: B027 - most have nothing
        """Release what belongs to the parent process, without I/O; for a forked child."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether a server is connected now, whatever the state of its streams."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether a server is connected now and its streams match the settings."""

    @abstractmethod
    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until `ready`.

        Args:
            timeout: Seconds; None means ``WSGATEWAY_BROKER_TIMEOUT`` for a connection, and
                ``WSGATEWAY_PUBLISH_TIMEOUT`` for streams that are just electing their leaders.

        Raises:
            BrokerUnavailable: Not within *timeout*.
            BrokerMisconfigured: The server is too old or a stream differs from the settings.
        """

    @abstractmethod
    def on_ready(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* each time the broker becomes `ready`, after subscriptions are back."""

    @abstractmethod
    def on_lost(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* each time the connection is lost, before anything else is received."""

    @property
    @abstractmethod
    def bus(self) -> Bus:
        """Core messaging on the same connection; see `Bus`."""

    @property
    @abstractmethod
    def roster(self) -> Roster:
        """Which processes exist; see `Roster`."""

    @abstractmethod
    def show(self, process: Shown) -> Closable:
        """Show a process to the broker's own tools, such as ``nats micro``, until that is closed.

        Does nothing where there are none.
        """

    @abstractmethod
    def lease(self, name: str, holder: str) -> Lease:
        """Return the right to do what *name* stands for, which one holder at a time has.

        Args:
            name: One token.
            holder: The process's id in the roster.
        """

    @abstractmethod
    def take_part(self) -> None:
        """Let `in_effect`, wherever it is called, count this connection among the senders.

        Call it in its loop before the first `Bus.publish`. Idempotent.
        """

    @abstractmethod
    async def in_effect(self) -> None:
        """Return once the bus' subscriptions are in effect, wherever one of the senders is.

        If the connection is lost, wait until it is back: the subscriptions are, too. Concurrent
        calls share round trips.

        Raises:
            BrokerUnavailable: Not in time.
            BrokerForbidden: The broker forbids a subscription made since the last call.
        """

    @property
    @abstractmethod
    def service_names(self) -> frozenset[str]:
        """The services that exist, as far as this process knows."""

    @abstractmethod
    def on_new_service(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* when another process has made services; `known_service` says None then.

        At most once: lost while not `ready`.
        """

    @abstractmethod
    def known_service(self, service: str) -> bool | None:
        """Say whether *service* exists, without waiting; None if that has to be asked.

        For hot paths: on None, await `service_exists`.
        """

    @abstractmethod
    async def service_exists(self, service: str) -> bool:
        """Say whether *service* exists: whether it is declared, here or by another process.

        The streams are the registry, so a process that declares nothing knows, too. What exists
        is remembered until the next connection; what does not, for a few seconds at most.

        Raises:
            BrokerUnavailable: No answer in time.
        """

    @property
    @abstractmethod
    def topic_names(self) -> frozenset[str]:
        """The services of topics that exist, as far as this process knows."""

    @abstractmethod
    def known_topics(self, service: str) -> TopicKind | None:
        """Say what topics *service* has, without waiting; None if that has to be asked.

        For hot paths: on None, await `topics_of`. As with users, the streams are the registry.
        """

    @abstractmethod
    async def topics_of(self, service: str) -> TopicKind:
        """Say what topics *service* has, if any.

        Raises:
            BrokerUnavailable: No answer in time.
        """

    async def address_of(self, service: str, name: str) -> Address:
        """Return what *name* is within *service*: a topic if the service has some, or else a user.

        Raises:
            BrokerUnavailable: No answer in time.
        """
        known = self.known_topics(service)
        kind = await self.topics_of(service) if known is None else known
        return Topic(service, name) if kind else Inbox(service, name)

    async def publish(
        self,
        address: Address,
        payload: bytes,
        *,
        kind: str | None = None,
        msg_id: str | None = None,
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
        reserved: bool = False,
    ) -> Receipt:
        """Store a message under *address*; return once it is stored on a quorum.

        Retried until the deadline with the same id, so it is stored at most once. An ephemeral
        topic stores nothing: those who read it now get the message, at most once, and the receipt
        has the offset 0.

        Args:
            address: A user's inbox, or a topic.
            payload: ``WSGATEWAY_MAX_MESSAGE_SIZE`` bytes, or as many as the server takes.
            kind: ``text``, ``binary`` or ``event``; None lets the payload decide.
            msg_id: Makes publishing to this address idempotent for
                ``WSGATEWAY_DUPLICATE_WINDOW`` seconds.
            ttl: Seconds after which the message is gone, `MIN_TTL` to `MAX_TTL`; None: the
                stream's limit.
            headers: More headers, for example ``traceparent``; none that begins with ``Nats-``.
            reserved: May use the last room of a stream that is nearly full; for services' replies,
                so that a full store can still drain.

        Raises:
            MessageTooBig: Nothing was stored.
            ServiceUnknown: Nobody declares the service, or, for a topic, topics of it. Nothing was
                stored.
            QueueFull: The stream, or the account or server that holds it, is at its limit.
                Nothing was stored.
            MessageRefused: The server refuses this message, whenever it is sent.
            NameRefused: *address* cannot be a subject, or nobody's inbox.
            TypeError: *ttl* is not a number.
            ValueError: *ttl* is out of range, or a header is malformed or belongs to the server.
                So is each of the others that another try cannot change.
        """
        check_address(address)
        tracer = find_tracer()
        if tracer is None:
            return await self.store_message(
                address,
                payload,
                kind=kind,
                msg_id=msg_id,
                ttl=ttl,
                headers=headers,
                reserved=reserved,
            )
        given, attributes = headers or {}, dict[str, str]()
        if msg_id is not None:
            attributes["messaging.message.id"] = msg_id
        if REPLY_TO_HEADER in given:
            attributes["messaging.message.conversation_id"] = given[REPLY_TO_HEADER]
        destination = self.destination("recv" if isinstance(address, Inbox) else "topic", address)
        with tracer.sending(destination, len(payload), given, attributes) as traced:
            return await self.store_message(
                address,
                payload,
                kind=kind,
                msg_id=msg_id,
                ttl=ttl,
                headers=traced,
                reserved=reserved,
            )

    @abstractmethod
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
        """Do what `publish` promises; it adds a trace's headers, if there is one."""

    # -- tracing -------------------------------------------------------------------------

    system: str
    """What the broker is, as OpenTelemetry names it."""

    @property
    def server(self) -> tuple[str, int] | None:
        """Host and port of the server that is connected; None without."""
        return None

    def destination(self, kind: str, address: Address, to: str | None = None) -> Destination:
        """Describe a subject of *kind*, ``send``, ``recv`` or ``topic``, for a trace.

        If clients may name any service, they must not be able to make up names of spans.

        Args:
            kind: One of these three.
            address: The user's, or the topic.
            to: Whom the user sends to, if that is a service of topics.
        """
        service = to or address.service
        if isinstance(address, Inbox) and kind == "send":
            subject = self.subjects.send(address, to)
        else:
            subject = self.subjects.stored(address)
        is_known = service is GROUP_SERVICE or service in self.service_names | self.topic_names
        template = self.subjects.template(kind, service if is_known else None)
        return Destination(self.system, subject, template, self.server)

    @property
    @abstractmethod
    def largest_offer(self) -> int:
        """Bytes of the largest payload that `offer` accepts, as of the last connection."""

    @abstractmethod
    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        """Try once to store what a client sent for its service; do not wait.

        Offers go out in the order of the calls. The future may get, besides a receipt,
        `BrokerUnavailable` (offer again, with the same id), `QueueFull` or `MessageTooBig`;
        it has no deadline while the connection lasts. Cancelling it is fine.

        Raises:
            BrokerUnavailable: Not connected; nothing was sent.
        """

    @abstractmethod
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
        """Do what `offer` does, with what a client sent to a topic that it may write.

        It waits for the topic's service, in the same queue and order as everything else that the
        client sends to topics of that service. If *direct*, it goes to the topic itself, as
        `publish` would bring it there, and its readers learn who wrote it: `Stored.sender`. What
        goes to an ephemeral topic is not stored, so its receipt has the offset 0.

        Args:
            topic: Where the client sent it. This process declares its service.
            inbox: The client's: answers go there.
            frame: What it sent.
            msg_id: Names the message: offered again, it is stored once.
            headers: More headers.
            direct: Whether no handler gets it.

        Raises:
            BrokerUnavailable: Not connected; nothing was sent.
        """

    @property
    @abstractmethod
    def inboxes(self) -> Log:
        """The log that holds all inboxes."""

    @abstractmethod
    def log(self, address: Address) -> Log:
        """Return the log that holds what is stored under *address*; always the same object.

        It need not exist: then what asks the broker for it raises `BrokerUnavailable`.
        """

    @abstractmethod
    def hear(self, topic: Topic, on_message: Callable[[Stored], None]) -> Closable:
        """Call *on_message* for each message of an ephemeral topic. Its offset is 0.

        *on_message* runs in the broker's read path: it must not wait and not raise.
        """

    @abstractmethod
    async def load_cursor(self, inbox: Inbox, device: str) -> int:
        """Return the offset up to which *device* has everything; 0 if not known.

        A cursor of another epoch, or beyond the stream's end, counts as not known. The latter is
        dropped: the stream will give the same offsets to other messages.
        """

    @abstractmethod
    async def save_cursor(
        self, inbox: Inbox, device: str, offset: int, *, epoch: str | None = None
    ) -> None:
        """Remember that *device* has everything up to *offset*. Never moves backwards.

        A user keeps ``WSGATEWAY_MAX_DEVICES_PER_USER`` cursors: one more drops the one that was
        not moved for the longest time.

        Args:
            inbox: Whose.
            device: Which of the user's devices.
            offset: Stream sequence.
            epoch: Which *offset* belongs to; nothing is saved unless it is `epoch`. None: that.
        """

    @abstractmethod
    async def drop_cursor(self, inbox: Inbox, device: str) -> None:
        """Delete the cursor of *device*, whose offset has become meaningless. Idempotent."""

    @abstractmethod
    def work_queue(
        self,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[Inbox], None],
        ack_wait: float,
        on_pause: Callable[[], None] | None = None,
        on_retaken: Callable[[Retaken], None] | None = None,
    ) -> WorkQueue:
        """Return the queue of what clients sent to *service*; not opened.

        Args:
            service: Whose.
            on_job: Called with each message, in the broker's read path: must not wait.
            on_turn: Called with a sender's inbox, in the same way, when a worker has acknowledged
                one of the sender's messages.
            ack_wait: Seconds without a sign of life after which a message goes to another worker;
                the queue may have been made with another number, which counts.
            on_pause: Called in the same way when `Operations.pause` has paused the service; not if
                the connection is lost at that moment.
            on_retaken: Called in the same way when a message was delivered again, to this worker
                or another.
        """

    @property
    @abstractmethod
    def dead_letters(self) -> DeadLetters:
        """Messages that no handler could process."""

    @property
    @abstractmethod
    def operations(self) -> Operations:
        """What operators see of the stores, and do to them."""

    @property
    @abstractmethod
    def channels(self) -> ChannelStore:
        """Messages of the channel layer's normal channels."""

    @property
    @abstractmethod
    def blobs(self) -> BlobStore:
        """Messages of the channel layer that are too big to be sent in one piece."""

    @abstractmethod
    def broadcast(self, topic: str, payload: bytes) -> None:
        """Tell every gateway something, at most once; lost while not `ready`.

        Args:
            topic: One token, for example ``logout``.
            payload: What listeners get.
        """

    @abstractmethod
    def listen(self, topic: str, on_message: Callable[[bytes], None]) -> Closable:
        """Call *on_message* with each payload broadcast on *topic*."""
