"""The broker on NATS JetStream: joins the parts of this folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from wsgateway.broker.base import Broker, Progress, no_progress
from wsgateway.broker.bus import Bus, Closable
from wsgateway.broker.channels import BlobStore, ChannelStore
from wsgateway.broker.discovery import Shown
from wsgateway.broker.lease import Lease
from wsgateway.broker.log import Log
from wsgateway.broker.messages import Receipt, Stored, check_published, stamp
from wsgateway.broker.nats.blobs import NatsBlobStore
from wsgateway.broker.nats.channels import NatsChannelStore
from wsgateway.broker.nats.connection import ConnectionOptions, ConnectionState, NatsConnection
from wsgateway.broker.nats.consumers import set_up_consumers
from wsgateway.broker.nats.cursors import Cursors, Saved
from wsgateway.broker.nats.dead_letters import NatsDeadLetters
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.lease import NatsLease
from wsgateway.broker.nats.levels import Levels
from wsgateway.broker.nats.log import NatsLog, handler_of
from wsgateway.broker.nats.micro import Micro
from wsgateway.broker.nats.operations import NatsOperations
from wsgateway.broker.nats.propagation import Propagation
from wsgateway.broker.nats.readiness import Readiness
from wsgateway.broker.nats.registry import TOPIC, Registry
from wsgateway.broker.nats.roster import NatsRoster
from wsgateway.broker.nats.specs import StreamSpec
from wsgateway.broker.nats.streams import Streams
from wsgateway.broker.nats.work_queue import NatsWorkQueue
from wsgateway.broker.operations import Operations
from wsgateway.broker.roster import Roster
from wsgateway.broker.work import DeadLetters, Job, Retaken, WorkQueue
from wsgateway.declared import NOTHING, Declared, TopicKind
from wsgateway.exceptions import BrokerUnavailable, QueueFull, ServiceUnknown, TopicsUnknown
from wsgateway.protocol.frames import FRAME_HEADER, Frame
from wsgateway.protocol.subjects import Address, Inbox, Subjects, Topic

__all__ = ["NatsBroker"]


class NatsBroker(Broker):
    """See `Broker`.

    Args:
        options: Where and how to connect.
        subjects: Names below the installation's prefix.
        specs: The streams that must be there, as `streams.wanted_streams` makes them.
        max_devices: Cursors that one user keeps.
        declared: The services among them.
        max_message_size: Bytes of a client's message that the server should take.
    """

    system = "nats"

    def __init__(
        self,
        options: ConnectionOptions,
        subjects: Subjects,
        specs: Iterable[StreamSpec],
        max_devices: int = 100,
        declared: Declared = NOTHING,
        max_message_size: int = 0,
    ) -> None:
        self.subjects = subjects
        self.connection = NatsConnection(options)
        self.jetstream = JetStream(self.connection, options.timeout, options.publish_timeout)
        self.streams = Streams(self.jetstream, subjects, specs)
        self.services = Registry(self.jetstream, subjects, declared)
        stream = subjects.stream("recv")
        self._levels = levels = Levels(stream)
        everything = subjects.all_of("recv")
        self._inboxes = NatsLog(self.jetstream, subjects, stream, everything, levels)
        self._topics: dict[str, NatsLog] = {}  # by service
        self._cursors = Cursors(self.jetstream, subjects, self._inboxes.position, max_devices)
        self._inboxes.on_shortened = self._cursors.forget_beyond
        self._readiness = Readiness(
            self.jetstream, self.streams, self.services, self._inboxes, levels, max_message_size
        )
        self._close_timeout = min(2.0, options.timeout)
        self._opened = False
        self.propagation: Propagation | None = None
        """Once somebody uses the bus: when subscriptions are in effect."""
        self._channels = NatsChannelStore(self)
        self._blobs = NatsBlobStore(self)
        self._dead_letters = NatsDeadLetters(self.jetstream, subjects)
        self._roster = NatsRoster(self.jetstream, subjects)
        self._operations = NatsOperations(self)

    # -- life cycle ----------------------------------------------------------------------

    async def open(self) -> None:
        await self.connection.open()
        if not self._opened:
            self._opened = True
            self.listen(TOPIC, lambda _: self.services.invalidate())
            self.on_ready(self._roster.renew)
            self._readiness.open()

    async def close(self) -> None:
        self._roster.close()
        await self.connection.close(self._close_timeout)
        await self._readiness.close()

    async def set_up(
        self,
        ack_wait: float | None = None,
        progress: Progress = no_progress,
        *,
        restored: bool = False,
    ) -> list[str]:
        await self.connection.open()
        await self.connection.ready()
        self._readiness.require_server()
        self._readiness.warn_of_limit()
        await self.services.refresh()
        self.services.require_one_kind()
        streams = self.streams.patient  # outlasts an election
        lines = await streams.setup(progress)
        if restored:
            lines += await streams.mark_restored()
        self.services.announce()
        if ack_wait is not None:
            lines += await set_up_consumers(self, ack_wait)
        return lines

    @property
    def where(self) -> str:
        return f"NATS at {self.connection.address}"

    @property
    def server(self) -> tuple[str, int] | None:
        return self.connection.peer

    @property
    def closed(self) -> bool:
        return self.connection.state is ConnectionState.CLOSED

    def forget_inherited(self) -> None:
        self.connection.forget_inherited()

    @property
    def connected(self) -> bool:
        return self.connection.is_open

    @property
    def ready(self) -> bool:
        return self._readiness.is_ready

    async def wait_ready(self, timeout: float | None = None) -> None:
        await self._readiness.wait(timeout)

    def on_ready(self, callback: Callable[[], None]) -> Closable:
        return self._readiness.on_ready(callback)

    def on_lost(self, callback: Callable[[], None]) -> Closable:
        return self.connection.on_lost(callback)

    # -- bus ------------------------------------------------------------------------------

    @property
    def bus(self) -> Bus:
        return self.connection

    @property
    def roster(self) -> Roster:
        return self._roster

    def show(self, process: Shown) -> Closable:
        return Micro(self.connection, self.subjects.prefix, process)

    def lease(self, name: str, holder: str) -> Lease:
        return NatsLease(self.jetstream, self.subjects, name, holder)

    def take_part(self) -> None:
        if self.propagation is None:
            self.propagation = Propagation(self.connection, self.subjects)

    async def in_effect(self) -> None:
        self.take_part()
        assert self.propagation is not None
        try:
            await self.propagation.complete()
        except BrokerUnavailable:
            await self.connection.ready()
            await self.propagation.complete()

    # -- services ------------------------------------------------------------------------

    def known_service(self, service: str) -> bool | None:
        return self.services.known(service)

    @property
    def service_names(self) -> frozenset[str]:
        return self.services.names

    def on_new_service(self, callback: Callable[[], None]) -> Closable:
        def hear(_payload: bytes) -> None:
            self.services.invalidate()  # our own listener may be called later than this one
            callback()

        return self.listen(TOPIC, hear)

    async def service_exists(self, service: str) -> bool:
        if self.connected and not self.connection.server.has_jetstream:
            return False  # its streams would say so
        return await self.services.exists(service)

    @property
    def topic_names(self) -> frozenset[str]:
        return self.services.topic_names

    def known_topics(self, service: str) -> TopicKind | None:
        return self.services.known_topics(service)

    async def topics_of(self, service: str) -> TopicKind:
        if self.connected and not self.connection.server.has_jetstream:
            return TopicKind.NONE
        return await self.services.topics_of(service)

    async def _require(self, address: Address) -> TopicKind:
        """Say what topics the address's service has.

        Raises:
            ServiceUnknown: It does not exist, or is one of the other kind.
        """
        service, services = address.service, self.services
        if isinstance(address, Topic):
            kind = services.known_topics(service) or await services.topics_of(service)
            if not kind:
                raise TopicsUnknown(service, services.topic_names, service in services.names)
            return kind
        if services.known(service) is not True and not await services.exists(service):
            is_other = service in services.topic_names
            raise ServiceUnknown(service, services.names, is_other)
        return TopicKind.NONE

    # -- publish -------------------------------------------------------------------------

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
        pairs = dict(headers or {})
        if kind is not None:
            pairs[FRAME_HEADER] = kind
        if ttl is not None:
            pairs["Nats-TTL"] = f"{int(ttl * 1000)}ms"
        if msg_id:  # the server compares ids across the whole stream
            msg_id = f"{msg_id}@{subject}"
        if not self.ready:
            await self.wait_ready()
        kind_of_topics = await self._require(address)
        if kind_of_topics is TopicKind.EPHEMERAL:
            assert isinstance(address, Topic)
            await self.connection.pressure()
            self.jetstream.cast(self.subjects.cast(address), payload, pairs)
            return Receipt(0, False)
        if self._levels.is_reserved and not reserved and isinstance(address, Inbox):
            raise QueueFull(
                f"stream {self._inboxes.name!r} is full except for the room kept for replies; "
                "nothing was stored, try again later"
            )
        return await self.jetstream.publish(subject, payload, pairs, msg_id=msg_id)

    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        pairs = {"Nats-Msg-Id": msg_id, FRAME_HEADER: frame.kind, **(headers or {})}
        return self.jetstream.offer(self.subjects.send(inbox), frame.payload, pairs)

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
        pairs = {FRAME_HEADER: frame.kind, **stamp(topic, inbox, headers, direct=direct)}
        if direct and topic.service in self.services.declared.casts:
            self.jetstream.cast(self.subjects.cast(topic), frame.payload, pairs)
            done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
            done.set_result(Receipt(0, False))
            return done
        stored = self.subjects.topic(topic)
        # The client's ids are its own, but it may use one for several topics
        pairs["Nats-Msg-Id"] = f"{msg_id}@{stored}"
        subject = stored if direct else self.subjects.send(inbox, topic.service)
        return self.jetstream.offer(subject, frame.payload, pairs)

    @property
    def largest_offer(self) -> int:
        return self._readiness.largest_offer

    # -- read ----------------------------------------------------------------------------

    @property
    def inboxes(self) -> Log:
        return self._inboxes

    def log(self, address: Address) -> Log:
        if not isinstance(address, Topic):
            return self._inboxes
        found = self._topics.get(address.service)
        if found is None:
            stream = self.subjects.topic_stream(address.service)
            everything = self.subjects.all_of("topic", address.service)
            found = NatsLog(self.jetstream, self.subjects, stream, everything, self._levels)
            self._topics[address.service] = found
        return found

    def hear(self, topic: Topic, on_message: Callable[[Stored], None]) -> Closable:
        return self.connection.subscribe(self.subjects.cast(topic), handler_of(topic, on_message))

    async def load_cursor(self, inbox: Inbox, device: str) -> int:
        return await self._cursors.load(inbox, device)

    async def save_cursor(
        self, inbox: Inbox, device: str, offset: int, *, epoch: str | None = None
    ) -> None:
        if epoch in (None, self.inboxes.epoch):
            await self._cursors.save(inbox, device, offset, self.inboxes.epoch)

    async def saved_cursors(self, inbox: Inbox) -> list[Saved]:
        """Return every device's cursor, the most recently written last."""
        return await self._cursors.saved(inbox)

    async def drop_cursor(self, inbox: Inbox, device: str) -> None:
        await self._cursors.drop(inbox, device)

    # -- work ----------------------------------------------------------------------------

    def work_queue(
        self,
        service: str,
        on_job: Callable[[Job], None],
        on_turn: Callable[[Inbox], None],
        ack_wait: float,
        on_pause: Callable[[], None] | None = None,
        on_retaken: Callable[[Retaken], None] | None = None,
    ) -> WorkQueue:
        return NatsWorkQueue(self, service, on_job, on_turn, ack_wait, on_pause, on_retaken)

    @property
    def dead_letters(self) -> DeadLetters:
        return self._dead_letters

    @property
    def operations(self) -> Operations:
        return self._operations

    @property
    def channels(self) -> ChannelStore:
        return self._channels

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    # -- process to process ---------------------------------------------------------------

    def broadcast(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(BrokerUnavailable):
            self.connection.publish(self.subjects.broadcast(topic), payload)

    def listen(self, topic: str, on_message: Callable[[bytes], None]) -> Closable:
        def handle(_subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None) -> None:
            on_message(data)

        return self.connection.subscribe(self.subjects.broadcast(topic), handle)
