"""Open sockets while their stream is replaced, loses its end, or trims what they have not had."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.faults.traffic import broker_at
from tests.support import Gateway, until
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.memory import MemoryBroker, MemoryStore
from wsgateway.client import connect
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol import window as inbox
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Reason, Resume, ServerMessage, Welcome
from wsgateway.protocol.v1.endpoint import V1Endpoint
from wsgateway.protocol.window import Window

ANN = Inbox("service1", "ann")
BOB = Inbox("service1", "bob")


class Client:
    """What an ASGI server would be told. Writes wait once *reads* frames were read."""

    def __init__(
        self,
        hub: Hub,
        kind: type[Endpoint] = V1Endpoint,
        to: Inbox = ANN,
        device: str = "default",
    ) -> None:
        self.frames: list[Any] = []
        self.closed_with: int | None = None
        self.writing = 0
        self._reads = float("inf")
        self._news = asyncio.Event()
        self.socket = Socket(Transport(self._send), kind)
        self.session = Session(hub, Identity(to.service, to.user, device), self.socket)

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.close":
            self.closed_with = event["code"]
        elif event["type"] == "websocket.send":
            self.writing += 1
            while len(self.frames) >= self._reads:
                self._news.clear()
                await self._news.wait()
            self.writing -= 1
            raw = isinstance(self.socket.endpoint, RawEndpoint)
            self.frames.append(event["text"] if raw else protocol.parse_server(event["text"]))

    def reads(self, count: float) -> None:
        """Read *count* more frames."""
        self._reads = len(self.frames) + count
        self._news.set()

    async def start(self, claim: Resume | None = None) -> Client:
        await self.session.start(claim or Resume())
        return self

    @property
    def window(self) -> Window:
        subscription = self.session.inbox_subscription
        return subscription.window

    @property
    def got(self) -> list[Any]:
        """The payloads that came."""
        if isinstance(self.socket.endpoint, RawEndpoint):
            return self.frames
        return [f.frame.data for f in self.frames if isinstance(f, ServerMessage)]

    @property
    def welcomes(self) -> list[tuple[int, str | None]]:
        """Offset and reason of each welcome."""
        return [(f.offset, f.reason) for f in self.frames if isinstance(f, Welcome)]

    @property
    def last_offset(self) -> int:
        return max([f.offset for f in self.frames if isinstance(f, ServerMessage)], default=0)

    @property
    def epoch(self) -> str:
        return [f.epoch for f in self.frames if isinstance(f, Welcome)][-1]

    async def say(self, text: str) -> None:
        await self.session.receive(text)

    async def ack(self, offset: int, epoch: str | None = None) -> None:
        await self.say(protocol.encode_client_ack(offset, epoch or self.epoch))

    async def has(self, *expected: str) -> None:
        await until(lambda: self.got == list(expected), what=f"{expected}, not {self.got}")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def hub(store: MemoryStore) -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), MemoryBroker(store)))
    await hub.open()
    yield hub
    await hub.close()


async def publish(broker: Broker, *data: str, to: Inbox = ANN) -> list[int]:
    return [(await broker.publish(to, text.encode())).offset for text in data]


async def idle(client: Client) -> None:
    """Wait until the backlog is read."""
    window = client.window
    await until(lambda: not (window.fetching or window.wants_fetch), what="it is idle")


def sweep_by_hand(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Callable[..., Awaitable[None]]:
    """Return the hub's sweep, which nothing else calls any more."""
    sweep = hub.subscriptions.sweep

    async def do_nothing(*, thorough: bool) -> None:
        pass

    monkeypatch.setattr(hub.subscriptions, "sweep", do_nothing)
    return sweep


# -- the stream is replaced --------------------------------------------------------------


@pytest.mark.parametrize("kind", [RawEndpoint, V1Endpoint])
@pytest.mark.parametrize("waiting", [2, 3])
async def test_stream_replaced_while_a_write_waits(
    hub: Hub,
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Endpoint],
    waiting: int,
) -> None:
    """The wake-up came while nobody slept: the socket was deaf from then on (uvicorn)."""
    client = await Client(hub, kind).start()
    await idle(client)
    client.reads(0)
    sweep = sweep_by_hand(monkeypatch, hub)  # one must do
    await publish(hub.broker, *["old"] * waiting)
    await until(lambda: client.writing, what="a write that waits")
    store.inboxes.start_over()
    await publish(hub.broker, "a", "b")
    await sweep(thorough=True)
    client.reads(float("inf"))
    await client.has("old", "a", "b")
    await publish(hub.broker, "c")
    await client.has("old", "a", "b", "c")


async def test_write_that_outlasts_the_stream_confirms_nothing_of_the_next(
    hub: Hub, store: MemoryStore
) -> None:
    client = await Client(hub, RawEndpoint).start()
    await idle(client)
    await publish(hub.broker, *"123")
    await client.has(*"123")
    client.reads(0)
    await publish(hub.broker, "4")
    await until(lambda: client.writing, what="a write that waits")
    store.inboxes.lose_tail(0)
    await publish(hub.broker, *"abcdef")
    await hub.subscriptions.sweep(thorough=True)
    client.reads(1)  # the old one; the first of the new ones waits
    await until(lambda: client.got[3:] == ["4"] and client.writing, what="another waits")
    await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == 0


async def test_late_acknowledgement_confirms_nothing_of_the_new_stream(
    hub: Hub, store: MemoryStore
) -> None:
    """It was about offset 3 of the stream before, and took the new stream's first three with it."""
    client = await Client(hub).start()
    before = client.epoch
    await publish(hub.broker, "old", "old", "old")
    await client.has("old", "old", "old")
    store.inboxes.start_over()
    await publish(hub.broker, "a", "b", "c")
    await hub.subscriptions.sweep(thorough=True)
    await client.has("old", "old", "old", "a", "b", "c")
    assert client.welcomes[1:] == [(0, Reason.EPOCH)]
    assert client.epoch != before
    await client.ack(3, before)
    assert client.window.confirmed == 0
    await client.ack(2)
    assert client.window.confirmed == 2
    assert client.closed_with is None
    await client.session.stop()
    again = await Client(hub).start()
    await again.has("c")


async def test_acknowledgement_without_an_epoch_once_the_stream_was_replaced(
    hub: Hub, store: MemoryStore
) -> None:
    client = await Client(hub).start()
    await publish(hub.broker, "old")
    await client.has("old")
    store.inboxes.start_over()
    await publish(hub.broker, "a")
    await hub.subscriptions.sweep(thorough=True)
    await client.has("old", "a")
    await client.say('{"type":"ack","offset":1}')
    assert client.window.confirmed == 0
    await until(lambda: client.closed_with, what="closed")
    assert client.closed_with == CloseCode.STREAM_REPLACED
    assert CloseCode.STREAM_REPLACED.reconnect


async def test_client_that_never_says_the_epoch_is_told_and_closed(
    hub: Hub, store: MemoryStore
) -> None:
    client = await Client(hub).start()
    await publish(hub.broker, "old")
    await client.has("old")
    await client.say('{"type":"ack","offset":1}')
    assert client.window.confirmed == 1
    store.inboxes.start_over()
    await hub.subscriptions.sweep(thorough=True)
    await until(lambda: client.closed_with, what="closed")
    assert client.closed_with == CloseCode.STREAM_REPLACED
    assert client.welcomes[1:] == [(0, Reason.EPOCH)]


async def test_socket_that_began_in_the_new_stream_does_not_begin_again(
    hub: Hub, store: MemoryStore
) -> None:
    old = await Client(hub).start()
    await hub.subscriptions.sweep(thorough=False)
    store.inboxes.start_over()
    new = await Client(hub).start()
    await publish(hub.broker, "a")
    await hub.subscriptions.sweep(thorough=False)
    await until(lambda: len(old.welcomes) == 2, what="the old one heard of it")
    await until(lambda: old.got[-1:] == new.got == ["a"], what="both have it")
    assert len(new.welcomes) == 1


async def test_cursor_of_two_sockets_in_two_streams(hub: Hub, store: MemoryStore) -> None:
    """What the one confirmed of the stream before must not count for the other's."""
    old = await Client(hub).start()
    await publish(hub.broker, *"12345")
    await old.has(*"12345")
    store.inboxes.watchers[ANN].clear()  # nothing tells the old one
    store.inboxes.start_over()
    await publish(hub.broker, *"abcdef")
    new = await Client(hub).start()
    await new.has(*"abcdef")
    await new.ack(2)
    await old.ack(5)  # has not heard yet
    await new.ack(3)
    await hub.cursors.flush()
    assert await hub.broker.load_cursor(ANN, "default") == 3


# -- the stream loses its end ------------------------------------------------------------


@pytest.mark.parametrize("kind", [RawEndpoint, V1Endpoint])
@pytest.mark.parametrize("since", [1, 2, 4])
async def test_stream_loses_its_end_under_an_open_socket(
    hub: Hub, store: MemoryStore, kind: type[Endpoint], since: int
) -> None:
    """Raw sockets got nothing that was stored afterwards, until it was as much as they had had.

    And once the stream was as long again, nobody noticed that its end is another one.
    """
    client = await Client(hub, kind).start()
    await idle(client)
    await publish(hub.broker, *"1234")
    await client.has(*"1234")
    store.inboxes.lose_tail(2)
    new = [f"new {number}" for number in range(since)]
    await publish(hub.broker, *new)
    await hub.subscriptions.sweep(thorough=True)
    await until(lambda: client.got[-since:] == new, what="what was stored afterwards")
    if kind is V1Endpoint:
        assert client.welcomes[1:] == [(0, Reason.AHEAD)]


async def test_stream_loses_its_end_while_no_connection_is_lost(
    hub: Hub, store: MemoryStore
) -> None:
    client = await Client(hub, RawEndpoint).start()
    await publish(hub.broker, *"1234")
    await client.has(*"1234")
    store.inboxes.lose_tail(2)
    await publish(hub.broker, "new")
    await hub.subscriptions.sweep(thorough=False)
    await until(lambda: client.got[-1] == "new", what="what was stored afterwards")


async def test_sockets_before_the_end_that_was_lost_go_on(hub: Hub, store: MemoryStore) -> None:
    before = await Client(hub, to=BOB).start()
    await publish(hub.broker, "1", "2", to=BOB)
    await before.has("1", "2")
    beyond = await Client(hub).start()
    await publish(hub.broker, *"3456")
    await beyond.has(*"3456")
    store.inboxes.lose_tail(4)
    await publish(hub.broker, *"abcdef")
    await hub.subscriptions.sweep(thorough=True)
    await until(lambda: beyond.got[-1] == "f", what="the new ones")
    assert len(before.welcomes) == 1
    assert before.got == ["1", "2"]


async def test_nothing_begins_again_where_nothing_is_lost(hub: Hub, store: MemoryStore) -> None:
    """Messages that are gone do not mean that the stream's end has changed."""
    clients = [await Client(hub, to=Inbox("service1", f"u{number}")).start() for number in range(3)]
    for number in range(3):
        await publish(hub.broker, "x", to=Inbox("service1", f"u{number}"))
    await until(lambda: all(client.got for client in clients), what="all have one")
    store.inboxes.messages[Inbox("service1", "u2")].clear()
    await hub.subscriptions.sweep(thorough=True)
    await publish(hub.broker, "y", to=Inbox("service1", "u2"))
    await clients[2].has("x", "y")
    assert [len(client.welcomes) for client in clients] == [1, 1, 1]


async def test_cursor_goes_back_with_the_stream(hub: Hub, store: MemoryStore) -> None:
    """The bucket kept the old value, and a later connection skipped 44 of 60."""
    client = await Client(hub).start()
    await publish(hub.broker, *["old"] * 50)
    await until(lambda: len(client.got) == 50, what="all")
    await client.ack(50)
    await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == 50
    store.inboxes.lose_tail(6)
    claim = Resume(None, client.epoch, 50)
    client = await Client(hub).start(claim)  # hears it, and leaves
    assert client.welcomes == [(0, Reason.AHEAD)]
    await client.session.stop()
    new = [f"new {number}" for number in range(60)]
    await publish(hub.broker, *new)
    again = await Client(hub).start()
    await until(lambda: again.got[-60:] == new, what="what was stored afterwards")


async def test_late_acknowledgement_after_the_stream_lost_its_end(
    hub: Hub, store: MemoryStore
) -> None:
    """The epoch is the same, so the client gets another name for it."""
    client = await Client(hub).start()
    before = client.epoch
    await publish(hub.broker, *"1234")
    await client.has(*"1234")
    await client.ack(4)
    await hub.cursors.flush()
    store.inboxes.lose_tail(0)
    await publish(hub.broker, *"abcde")
    await hub.subscriptions.sweep(thorough=True)
    await client.has(*"1234", *"abcde")
    assert client.epoch != before
    await client.ack(4, before)
    assert client.window.confirmed == 0
    await client.ack(2)
    await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == 2
    again = await Client(hub).start(Resume(None, client.epoch, 3))  # the name is good for this
    assert again.welcomes == [(3, None)]
    await again.has("d", "e")


async def test_another_sockets_unsaved_progress_beyond_the_end(
    hub: Hub, store: MemoryStore
) -> None:
    first = await Client(hub, RawEndpoint).start()
    await publish(hub.broker, *"1234")
    await first.has(*"1234")
    store.inboxes.lose_tail(1)
    await publish(hub.broker, "new")
    second = await Client(hub, RawEndpoint).start()  # before anybody noticed
    await until(lambda: "new" in second.got, what="what was stored afterwards")


# -- messages are trimmed ----------------------------------------------------------------


async def test_slow_client_is_told_that_messages_were_trimmed(
    settings: Any, hub: Hub, store: MemoryStore
) -> None:
    """Behind a limit of 50 it got 60 of 300, and heard nothing."""
    settings.WSGATEWAY_WINDOW = 10
    store.inboxes.max_messages = 50
    client = await Client(hub).start()
    data = [str(number) for number in range(300)]
    await publish(hub.broker, *data)
    await client.has(*data[:10])
    while client.got[-1] != data[-1]:
        count = len(client.got)
        await client.ack(client.last_offset)
        await until(lambda count=count: len(client.got) > count, what="more")
    assert client.got == data[:10] + data[250:]
    assert client.welcomes[1:] == [(10, Reason.TRIMMED)]
    # It came between what was before the gap and what was after.
    at = [isinstance(frame, Welcome) for frame in client.frames].index(True, 1)
    assert client.frames[at + 1].frame.data == data[250]


async def test_welcome_on_the_way_confirms_nothing(
    settings: Any, hub: Hub, store: MemoryStore
) -> None:
    """The client goes on from what it confirmed, so what it holds is not lost with it."""
    settings.WSGATEWAY_WINDOW = 10
    store.inboxes.max_messages = 5
    client = await Client(hub).start()
    await publish(hub.broker, *map(str, range(30)))
    await until(lambda: len(client.got) == 10, what="a window")
    await client.ack(4)
    await until(lambda: len(client.got) == 14, what="four more")
    assert client.welcomes[1:] == [(4, Reason.TRIMMED)]
    await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == 4


async def test_trimmed_again_is_told_again(settings: Any, hub: Hub, store: MemoryStore) -> None:
    settings.WSGATEWAY_WINDOW = 2
    store.inboxes.max_messages = 4
    client = await Client(hub).start()
    await publish(hub.broker, *map(str, range(10)))
    await client.has("0", "1")
    await client.ack(2)
    await client.has("0", "1", "6", "7")
    await publish(hub.broker, *map(str, range(10, 20)))
    await client.ack(8)
    await client.has("0", "1", "6", "7", "16", "17")
    assert [reason for _, reason in client.welcomes[1:]] == [Reason.TRIMMED] * 2


async def test_all_that_came_is_gone_by_age(hub: Hub, store: MemoryStore) -> None:
    """The connection to the broker was lost for longer than the stream keeps messages."""
    client = await Client(hub).start()
    await publish(hub.broker, "before")
    await client.has("before")
    await client.ack(1)
    await hub.subscriptions.sweep(thorough=True)
    await idle(client)
    watchers = dict(store.inboxes.watchers[ANN])
    store.inboxes.watchers[ANN].clear()
    await publish(hub.broker, "missed")
    store.inboxes.messages.clear()
    store.inboxes.watchers[ANN].update(watchers)
    await hub.subscriptions.sweep(thorough=True)
    await until(lambda: client.welcomes[1:] == [(1, Reason.TRIMMED)], what="it is told")
    await publish(hub.broker, "after")
    await client.has("before", "after")


async def test_fast_client_costs_no_question(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, store: MemoryStore
) -> None:
    client = await Client(hub).start()
    await publish(hub.broker, "0")
    await client.has("0")
    await idle(client)
    asked: list[str] = []
    for name in ("position", "count", "read_after"):
        monkeypatch.setattr(hub.broker.inboxes, name, lambda *a, name=name, **k: asked.append(name))
    data = [str(number) for number in range(1, 100)]
    await publish(hub.broker, *data)
    await client.has("0", *data)
    assert asked == []


# -- with a real server ------------------------------------------------------------------


@pytest.fixture
async def real(settings: Any, own_server: EmbeddedServer, prefix: str) -> AsyncIterator[Hub]:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_STORAGE = "file"
    runtime.reset()
    hub = Hub(runtime.current())
    await hub.open()
    await hub.broker.wait_ready()
    yield hub
    await hub.close()


@pytest.mark.parametrize(("since", "blind"), [(2, False), (30, False), (30, True)])
async def test_server_that_lost_the_streams_end(
    monkeypatch: pytest.MonkeyPatch,
    real: Hub,
    own_server: EmbeddedServer,
    since: int,
    blind: bool,
) -> None:
    """The same disk, an hour ago: the stream has the same epoch and is shorter.

    *blind*: the gateway comes back too late to see old offsets given out again.
    """
    if blind:
        monkeypatch.setattr(inbox, "later", lambda one, other: False)
    broker = real.broker
    stream = broker.subjects.stream("recv")
    clients = [await Client(real, kind).start() for kind in (RawEndpoint, V1Endpoint)]
    before = ["before 0", "before 1"]
    await publish(broker, *before)
    for client in clients:
        await client.has(*before)
    (folder,) = own_server.store.rglob(stream)
    copy = own_server.store / "copy"
    await asyncio.to_thread(own_server.stop)
    shutil.copytree(folder, copy)
    await own_server.astart()
    await broker.wait_ready(20)
    lost = [f"lost {number}" for number in range(10)]
    await publish(broker, *lost)
    for client in clients:
        await client.has(*before, *lost)
    await clients[1].ack(12)
    await real.cursors.flush()
    await broker.save_cursor(ANN, "tablet", 12)  # of a device that is away
    epoch = broker.inboxes.epoch
    sweep = sweep_by_hand(monkeypatch, real)  # once the stream is as long again
    await asyncio.to_thread(own_server.stop)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    await own_server.astart()
    await broker.wait_ready(20)
    assert broker.inboxes.epoch == epoch
    after = [f"after {number}" for number in range(since)]
    await publish(broker, *after)
    if since > 10:
        await until(lambda: all(c.got[-1] == after[-1] for c in clients), what="the last is there")
    await sweep(thorough=True)
    if since < 10:
        assert await broker.load_cursor(ANN, "tablet") == 0
    for client in clients:
        await until(lambda client=client: client.got[-since:] == after, what="what came after")
    assert clients[1].welcomes[-1] == (0, Reason.AHEAD)
    for client in clients:
        await client.session.stop()
    assert await broker.load_cursor(ANN, "default") == 2 + since  # the raw one's
    again = await Client(real).start()
    assert again.welcomes == [(2 + since, None)]


async def test_slow_client_hears_that_the_stream_lost_what_waited_for_it(
    real: Hub, own_server: EmbeddedServer, settings: Any
) -> None:
    """Its own position was before the lost end, so nobody noticed: it skipped what was lost."""
    settings.WSGATEWAY_WINDOW = 2
    broker = real.broker
    stream = broker.subjects.stream("recv")
    client = await Client(real, V1Endpoint).start()
    await publish(broker, "before 0", "before 1")
    await client.has("before 0", "before 1")
    (folder,) = own_server.store.rglob(stream)
    copy = own_server.store / "copy"
    await asyncio.to_thread(own_server.stop)
    shutil.copytree(folder, copy)
    await own_server.astart()
    await broker.wait_ready(20)
    await publish(broker, "lost 0", "lost 1")
    await until(
        lambda: client.window.reached[0] == 4,
        what="the lost ones are known of",
    )
    await asyncio.to_thread(own_server.stop)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    await own_server.astart()
    await broker.wait_ready(20)
    await publish(broker, "after 0", "after 1")
    await real.subscriptions.sweep(thorough=True)
    await until(lambda: client.welcomes[-1] == (0, Reason.AHEAD), what="the client is told")
    await client.session.stop()


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_slow_client_of_a_gateway_hears_of_every_gap(
    gateway_factory: Callable[..., Gateway], nats_server: EmbeddedServer, prefix: str, server: str
) -> None:
    gateway = gateway_factory(
        server, WSGATEWAY_INBOX_MAX_MESSAGES="50", WSGATEWAY_WINDOW="10", WSGATEWAY_STORAGE="memory"
    )
    welcomes: list[Welcome] = []
    cookie = {"Cookie": f"service={ANN.service}; user={ANN.user}"}
    url = gateway.ws(f"/ws/{ANN.service}/{ANN.user}/")
    async with (
        broker_at([nats_server.url], prefix) as broker,
        connect(url, additional_headers=cookie, proxy=None, on_welcome=welcomes.append) as client,
    ):
        data = [str(number) for number in range(300)]
        async with asyncio.timeout(30):
            await publish(broker, data[0])
            got = [(await client.recv()).data]  # else delivery may begin when most are trimmed
            await publish(broker, *data[1:])
            while got[-1] != data[-1]:
                got.append((await client.recv()).data)
        assert got == sorted(got, key=int)
        gaps = sum(int(one) + 1 < int(next) for one, next in itertools.pairwise(got))
        assert gaps >= 1
        assert [w.reason for w in welcomes[1:]] == [Reason.TRIMMED] * gaps
        assert "Traceback" not in gateway.output


async def test_device_beyond_the_limit_is_a_new_one(hub: Hub, store: MemoryStore) -> None:
    """It is never refused: the least recently used cursor goes, and its device hears so."""
    store.max_devices = 2
    await publish(hub.broker, "1", "2")
    for device in ("a", "b", "c"):
        client = Client(hub, device=device)
        await client.start()
        await client.has("1", "2")
        await client.ack(2)
        await client.session.stop()
    welcomes = []
    for device in ("b", "c", "a"):
        client = await Client(hub, device=device).start()
        welcomes += client.welcomes
        await client.session.stop()
    assert welcomes == [(2, None), (2, None), (0, Reason.NEW)]


async def test_reconnect_alone_begins_nothing_again(real: Hub, own_server: EmbeddedServer) -> None:
    """The time of a live message is the same text as that of the stored one."""
    client = await Client(real).start()
    await publish(real.broker, *"1234")
    await client.has(*"1234")
    await asyncio.to_thread(own_server.stop)
    await own_server.astart()
    await real.broker.wait_ready(20)
    await publish(real.broker, "5")
    await client.has(*"12345")
    await real.subscriptions.sweep(thorough=True)
    assert len(client.welcomes) == 1
