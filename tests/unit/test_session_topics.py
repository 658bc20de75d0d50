"""A session with several subscriptions: each message once and in order, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import wsgateway
from tests.support import until
from wsgateway import declared
from wsgateway.broker.connection import Connection
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.memory.store import LogStore, MemoryStore
from wsgateway.declared import Declared
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol import credit, window
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1 import Resume, Subscribed, Unsubscribed, Welcome
from wsgateway.protocol.v1.endpoint import V1Endpoint
from wsgateway.protocol.v1.messages import ServerMessage

ANN = Inbox("service1", "ann")
TOPICS = [Topic("room", "a"), Topic("room", "b"), Topic("board", "c")]
ADDRESSES: list[Address] = [ANN, *TOPICS]
WINDOW, SOCKET_WINDOW = 3, 5

which, topics = st.sampled_from(ADDRESSES), st.sampled_from(TOPICS)
STEPS = st.one_of(
    st.tuples(st.just("publish"), which, st.integers(1, 6)),
    st.tuples(st.just("miss"), which, st.integers(1, 3)),  # the live messages are lost
    st.tuples(st.just("join"), topics, st.sampled_from(["new", "all", 2, "resume"])),
    st.tuples(st.just("leave"), topics, st.none()),
    st.tuples(st.just("ack"), which, st.integers(1, 4)),
    st.tuples(st.just("renew"), which, st.none()),  # the stream is replaced
    st.tuples(st.sampled_from(["stall", "read", "sweep", "rest"]), st.none(), st.none()),
)


@pytest.fixture(autouse=True)
def rooms(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """Declares the topics, which everybody may read."""
    settings.WSGATEWAY_WINDOW, settings.WSGATEWAY_SOCKET_WINDOW = WINDOW, SOCKET_WINDOW
    monkeypatch.setattr(declared, "topics", {})

    async def allow(identity: Identity, name: str) -> str:
        return "write"

    for service in ("room", "board"):
        wsgateway.topic(service)(allow)


class Segment:
    """What came of a subscription between two frames that say where it begins."""

    def __init__(self, epoch: str, offset: int) -> None:
        self.epoch, self.offset = epoch, offset
        self.stream_epoch = Resume(epoch=epoch, offset=offset).stream_epoch
        self.got: list[ServerMessage] = []
        self.acked = 0


class Client(Transport):
    """A client that keeps its position in everything that it reads."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))
        self.reads = asyncio.Event()
        self.reads.set()
        self.segments: dict[Address, list[Segment]] = {address: [] for address in ADDRESSES}
        self.wanted: set[Topic] = set()  # that it has asked for, and not left since
        self.current: dict[Address, Segment] = {}  # what it is being sent
        self.asked = 0

    @property
    def pending(self) -> int:
        return 0

    async def send(self, event: Any) -> bool:
        await self.reads.wait()
        if event["type"] == "websocket.send":
            self.take(protocol.parse_server(event["text"]))
        return True

    async def close(self, code: int, fallback: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}: {reason}")

    def take(self, frame: Any) -> None:
        if isinstance(frame, Welcome | Subscribed):
            address = Topic.parse(frame.topic) if isinstance(frame, Subscribed) else ANN
            self.current[address] = segment = Segment(frame.epoch, frame.offset)
            self.segments[address].append(segment)
        elif isinstance(frame, Unsubscribed):
            assert frame.code is None, frame
            self.current.pop(Topic.parse(frame.topic), None)
        elif isinstance(frame, ServerMessage):
            address = ANN if frame.topic is None else Topic.parse(frame.topic)
            self.current[address].got.append(frame)  # KeyError: nobody reads it


class Run:
    """One client, and what was stored."""

    def __init__(self, hub: Hub, store: MemoryStore) -> None:
        self.hub, self.store, self.client = hub, store, Client()
        self.session = Session(
            hub, Identity(ANN.service, ANN.user), Socket(self.client, V1Endpoint)
        )
        self.stored: dict[tuple[Address, str], list[int]] = {}  # offsets, by the stream's life

    def log(self, address: Address) -> LogStore:
        return self.store.log(address)

    async def publish(self, address: Address, count: int) -> None:
        for _ in range(count):
            receipt = await self.hub.broker.publish(address, b"x")
            life = address, self.log(address).epoch
            self.stored.setdefault(life, []).append(receipt.offset)

    async def step(self, what: str, address: Any, value: Any) -> None:
        client = self.client
        if what == "publish":
            await self.publish(address, value)
        elif what == "miss":
            with mock.patch.object(LogStore, "announce"):
                await self.publish(address, value)
        elif what == "join":
            await self.join(address, value)
        elif what == "leave" and address in client.wanted:
            client.wanted.discard(address)
            await self.session.receive(protocol.encode_unsubscribe(str(address)))
        elif what == "ack":
            await self.ack(address, value)
        elif what == "renew":
            await self.renew(address)
        elif what == "stall":
            client.reads.clear()
        elif what == "read":
            client.reads.set()
        elif what == "sweep":
            await self.hub.subscriptions.sweep(thorough=True)
        else:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        self.check_credit()

    async def renew(self, address: Address) -> None:
        """Replace a stream. Until a sweep, nobody can tell its live messages from the old one's."""
        if self.client.wanted <= self.client.current.keys():  # nobody is asking for its position
            self.log(address).start_over()
            await self.hub.subscriptions.sweep(thorough=True)

    async def join(self, topic: Topic, since: Any) -> None:
        client = self.client
        if topic in client.wanted or topic in client.current:
            return
        client.wanted.add(topic)
        client.asked += 1
        options: dict[str, Any] = {"since": since}
        if since == "resume":
            known = client.segments[topic][-1:]
            options = {"epoch": known[0].epoch, "offset": had(known[0])} if known else {}
        question = protocol.encode_subscribe(f"s{client.asked}", str(topic), **options)
        await self.session.receive(question)

    async def ack(self, address: Address, count: int) -> None:
        """Acknowledge the next *count* messages that the client has."""
        segment = self.client.current.get(address)
        if segment is None or (isinstance(address, Topic) and address not in self.client.wanted):
            return
        segment.acked = min(segment.acked + count, len(segment.got))
        if segment.acked:
            offset, name = segment.got[segment.acked - 1].offset, None
            if isinstance(address, Topic):
                name = str(address)
            await self.session.receive(protocol.encode_client_ack(offset, segment.epoch, name))

    def check_credit(self) -> None:
        windows = [each.window for each in self.session.subscriptions.values()]
        assert self.session.credit.messages <= SOCKET_WINDOW + len(windows)
        assert sum(window.in_flight_bytes for window in windows) <= credit.WINDOW_BYTES
        assert all(window.in_flight <= WINDOW for window in windows)

    def is_complete(self) -> bool:
        """Whether the client has all of what it reads."""
        return self.client.wanted | {ANN} == self.client.current.keys() and all(
            segment.stream_epoch == self.log(address).epoch
            and [each.offset for each in segment.got] == self.expected(address, segment)
            for address, segment in self.client.current.items()
        )

    def expected(self, address: Address, segment: Segment) -> list[int]:
        stored = self.stored.get((address, segment.stream_epoch), [])
        return [offset for offset in stored if offset > segment.offset]

    async def settle(self) -> None:
        """Wait until the client is told where everything begins, in the life that there is."""
        client = self.client
        while client.wanted | {ANN} != client.current.keys() or any(
            segment.stream_epoch != self.log(address).epoch
            for address, segment in client.current.items()
        ):
            await self.hub.subscriptions.sweep(thorough=True)
            await asyncio.sleep(0.001)
        await self.hub.subscriptions.sweep(thorough=True)

    async def end(self) -> None:
        """Let the client read and acknowledge until it has everything."""
        self.client.reads.set()
        async with asyncio.timeout(5):
            await self.settle()
            while not self.is_complete():  # nothing but acknowledgements is needed now
                for address in ADDRESSES:
                    await self.ack(address, 100)
                await asyncio.sleep(0.001)
        for address, segments in self.client.segments.items():
            for segment in segments:
                expected = self.expected(address, segment)
                got = [each.offset for each in segment.got]
                assert got == expected[: len(got)], (address, got, expected)
            current = self.client.current.get(address)
            if current is not None:
                await self.ack(address, 100)
        used = self.session.credit
        await until(lambda: not (used.messages or used.bytes), 5, "nothing is in flight")
        assert (used.busy, used.held) == (0, 0)


def had(segment: Segment) -> int:
    return segment.got[-1].offset if segment.got else segment.offset


async def drive(steps: list[tuple[str, Any, Any]]) -> None:
    store = MemoryStore()
    offers = Declared(frozenset(["service1"]), topics=frozenset(["room", "board"]))
    hub = Hub(Connection(asyncio.get_running_loop(), MemoryBroker(store, declared=offers)))
    await hub.open()
    run = Run(hub, store)
    try:
        await run.session.start(Resume())
        for step in steps:
            await run.step(*step)
        await run.end()
    finally:
        await run.session.stop()
        await hub.close()


@pytest.fixture(params=[credit.WINDOW_BYTES, 3], ids=["bytes", "few bytes"])
def byte_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes may be in flight: more than there are, or fewer than messages may be."""
    limit = int(request.param)
    for module in (credit, window):
        monkeypatch.setattr(module, "WINDOW_BYTES", limit)
    monkeypatch.setattr(window, "PROMISE", 1)
    return limit


@examples(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_each_message_comes_once_and_in_order_per_topic(
    steps: list[tuple[str, Any, Any]], byte_limit: int
) -> None:
    asyncio.run(drive(steps))
