"""What a session takes from its client, and what it costs when the client does not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest

from tests.support import until
from wsgateway.broker.connection import Connection
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import QueueFull
from wsgateway.gateway import session as session_module
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.v1.endpoint import V1Endpoint

Settings = Any
ANN = Inbox("orders", "ann")


class Client(Transport):
    """A client that reads as long as `reads` is set, and a kernel that leaves `waiting` bytes."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))
        self.reads = asyncio.Event()
        self.reads.set()
        self.got: list[str] = []
        self.closed_with: int | None = None
        self.waiting = 0

    @property
    def pending(self) -> int:
        return self.waiting

    async def send(self, event: Any) -> bool:
        await self.reads.wait()
        handed = not self.waiting
        if event["type"] == "websocket.send":
            self.got.append(event["text"])
        return handed

    async def close(self, code: int, fallback: int, reason: str) -> None:
        self.closed_with = code


class Broker(MemoryBroker):
    """Keeps what clients send; answers unless `silent`."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self.silent = False
        self.waiting: list[asyncio.Future[Receipt]] = []

    def offer(
        self, inbox: Inbox, frame: Frame, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> asyncio.Future[Receipt]:
        self.frames.append(frame)
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            answer.set_exception(self.error)
        elif self.silent:
            self.waiting.append(answer)
        else:
            answer.set_result(Receipt(len(self.frames), False))
        return answer

    def speak(self) -> None:
        """Answer everything."""
        self.silent = False
        for answer in self.waiting:
            answer.set_result(Receipt(1, False))


@pytest.fixture
def limited(settings: Settings) -> Settings:
    settings.WSGATEWAY_RATE_LIMIT = 0.001
    settings.WSGATEWAY_RATE_BURST = 4
    return settings


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def hub(broker: Broker) -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), broker))
    await hub.open()
    yield hub
    await hub.close()


async def opened(hub: Hub, kind: type[Endpoint] = V1Endpoint) -> tuple[Session, Client]:
    client = Client()
    session = Session(hub, Identity(ANN.service, ANN.user), Socket(client, kind))
    await session.start(Resume())
    client.got.clear()
    return session, client


def message(number: int) -> str:
    return json.dumps({"type": "message", "id": str(number), "data": "x"})


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("frame", ['{"type":"ping"}', "junk", '{"type":"ack","offset":0}', "ping"])
async def test_every_frame_counts_against_the_rate_limit(hub: Hub, frame: str) -> None:
    """Only messages did: pings, junk and acknowledgements cost the client nothing."""
    session, client = await opened(hub)
    for _ in range(8):
        if frame == "ping":
            client.on_hidden_frame()
        else:
            await session.receive(frame)
        assert client.closed_with is None
    client.on_hidden_frame() if frame == "ping" else await session.receive(frame)
    await until(lambda: client.closed_with == CloseCode.RATE_LIMIT, what="closed")
    assert len(client.got) <= 4


@pytest.mark.usefixtures("limited")
async def test_acknowledgements_that_advance_are_free(hub: Hub) -> None:
    session, client = await opened(hub)
    for offset in range(1, 100):
        await hub.broker.publish(ANN, b"x")
        await until(lambda: len(client.got) == offset, what="it came")  # noqa: B023
        await session.receive(f'{{"type":"ack","offset":{offset}}}')
    assert session.inbox_subscription.window.confirmed == 99
    assert client.closed_with is None


@pytest.mark.usefixtures("limited")
async def test_messages_over_the_limit_are_refused_before_the_socket_is_closed(
    hub: Hub, broker: Broker
) -> None:
    session, client = await opened(hub)
    for number in range(8):
        await session.receive(message(number))
    await until(lambda: len(client.got) == 8, what="eight answers")
    answers = [json.loads(text) for text in client.got]
    refused = [answer["id"] for answer in answers if answer.get("code") == "rate_limit"]
    assert refused == ["4", "5", "6", "7"]
    assert len(broker.frames) == 4
    await session.receive(message(8))
    assert client.closed_with == CloseCode.RATE_LIMIT


async def test_client_that_does_not_read_its_answers_is_not_taken_from(
    hub: Hub, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers piled up to 10,000, and on daphne in the transport's buffer without an end."""
    monkeypatch.setattr(session_module, "MAX_ANSWERS", 10)
    session, client = await opened(hub)
    client.reads.clear()
    for number in range(10):
        await session.receive(message(number))
    await until(lambda: session.socket.unwritten == 10, what="ten answers that wait")
    waiting = asyncio.create_task(session.receive(message(10)))
    await asyncio.sleep(0.01)
    assert len(broker.frames) == 10
    client.reads.set()
    await waiting
    assert len(broker.frames) == 11
    assert client.closed_with is None


async def test_client_that_never_reads_its_answers_is_closed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.WSGATEWAY_PING_TIMEOUT = 0.01
    monkeypatch.setattr(session_module, "MAX_ANSWERS", 10)
    session, client = await opened(hub)
    client.reads.clear()
    for number in range(10):
        await session.receive(message(number))
    await until(lambda: session.socket.unwritten == 10, what="ten answers that wait")
    await session.receive(message(10))
    assert client.closed_with == CloseCode.TOO_SLOW


async def test_client_whose_frame_waits_for_the_broker_is_not_taken_for_dead(
    hub: Hub, broker: Broker, settings: Settings
) -> None:
    """While a frame is being taken nothing else is heard, its answers to pings included."""
    settings.WSGATEWAY_PING_INTERVAL = settings.WSGATEWAY_PING_TIMEOUT = 0.01
    settings.WSGATEWAY_SEND_WINDOW = 1
    session, client = await opened(hub)
    broker.silent = True
    waiting = asyncio.gather(*(session.receive(message(number)) for number in range(2)))
    await until(lambda: client.got.count('{"type":"ping"}') > 2, what="three pings")
    assert client.closed_with is None
    broker.speak()
    await waiting
    await until(lambda: client.closed_with == CloseCode.NO_PONG, what="closed, for it is silent")


async def test_nothing_is_taken_from_a_raw_socket_after_a_refusal(hub: Hub, broker: Broker) -> None:
    """The close frame was sent by a task, and what came before it ran was stored."""
    session, client = await opened(hub, RawEndpoint)
    await session.receive("1")
    broker.error = QueueFull("full")
    await session.receive("2")
    await asyncio.sleep(0)  # the refusal is known
    broker.error = None
    for frame in "345":
        await session.receive(frame)
    assert [frame.payload for frame in broker.frames] == [b"1", b"2"]
    await until(lambda: client.closed_with == CloseCode.QUEUE_FULL.raw, what="closed")


async def test_socket_has_a_line_when_it_opens_and_when_it_ends(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "wsgateway")
    session, _ = await opened(hub)
    session.left(1001)
    await session.stop()
    mine = [r for r in caplog.records if vars(r).get("connection") == session.connection]
    assert [r.getMessage() for r in mine] == ["opened a socket", "a socket ended with 1001"]
    assert vars(mine[1])["code"] == 1001
    assert vars(mine[1])["gateway"] == hub.gateway_id


async def test_refusals_are_logged(
    hub: Hub, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    session, client = await opened(hub)
    broker.error = ZeroDivisionError("why")
    await session.receive(message(1))
    await until(lambda: client.got, what="an answer")
    assert json.loads(client.got[0])["code"] == "internal"
    [record] = [r for r in caplog.records if "could not store a message of a socket" in r.message]
    assert record.levelname == "ERROR"
    fields = {"service": "orders", "user": "ann", "connection": session.connection}
    assert vars(record).items() >= fields.items()


async def test_raw_message_is_confirmed_when_the_kernel_has_it(hub: Hub) -> None:
    session, client = await opened(hub, RawEndpoint)
    window = session.inbox_subscription.window
    await hub.broker.publish(ANN, b"a")
    await until(lambda: window.confirmed == 1, what="the kernel has it")
    client.waiting = 10
    for text in (b"b", b"c"):
        await hub.broker.publish(ANN, text)
    await until(lambda: client.got == ["a", "b", "c"], what="they are written")
    assert (window.confirmed, session.inbox_subscription.undrained) == (1, True)
    client.waiting = 0
    session.inbox_subscription.confirm_drained()
    assert (window.confirmed, session.inbox_subscription.undrained) == (3, False)


async def test_delivery_that_fails_closes_the_socket(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, client = await opened(hub)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(V1Endpoint, "message", fail)
    await hub.broker.publish(ANN, b"x")
    await until(lambda: client.closed_with == CloseCode.INTERNAL_ERROR, what="closed")
    assert "task wsgateway-session failed" in caplog.text
