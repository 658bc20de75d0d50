"""What a socket takes from its client, and what it costs when the client does not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from tests.support import until
from wsgateway.broker.messages import Receipt, Stored
from wsgateway.broker.recovery import Start
from wsgateway.exceptions import QueueFull
from wsgateway.gateway import sockets
from wsgateway.gateway.sockets import RateLimit, RawSocket, Socket, SocketClosed, V1Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame

Settings = Any


class Client(Transport):
    """A client that reads as long as `reads` is set, and a kernel that takes `room` bytes."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))
        self.reads = asyncio.Event()
        self.reads.set()
        self.got: list[str | bytes] = []
        self.closed_with: int | None = None
        self.waiting = 0

    @property
    def pending(self) -> int:
        return self.waiting

    async def send(self, event: Any) -> bool:
        await self.reads.wait()
        handed = not self.waiting
        if event["type"] == "websocket.send":
            self.got.append(event.get("text", event.get("bytes")))
        return handed

    async def close(self, code: int, fallback: int, reason: str) -> None:
        self.closed_with = code


class Broker:
    """Stands in for the session: takes frames, and confirms offsets that rise."""

    connection = "c"
    largest_message = 1_000_000
    epoch = client_epoch = "e"
    identity = Identity("orders", "ann")
    inbox = identity.inbox

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.confirmed = 0
        self.error: Exception | None = None
        self.takes = asyncio.Event()
        self.takes.set()
        socket.session = cast("Any", self)

    async def put(self, frame: Frame, msg_id: str, headers: Any = None) -> asyncio.Future[Receipt]:
        await self.takes.wait()
        self.frames.append(frame)
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        if self.error is None:
            answer.set_result(Receipt(len(self.frames), False))
        else:
            answer.set_exception(self.error)
        return answer

    def acknowledge(self, offset: int, epoch: str | None) -> bool:
        advanced = offset > self.confirmed
        self.confirmed = max(offset, self.confirmed)
        return advanced

    def close_soon(self, code: CloseCode, reason: str | None = None) -> None:
        self.socket.deaf = True
        self.closing = asyncio.create_task(self.socket.close(code, reason))

    def settle(self) -> None:
        pass


@pytest.fixture
def limited(settings: Settings) -> Settings:
    settings.WSGATEWAY_RATE_LIMIT = 0.001
    settings.WSGATEWAY_RATE_BURST = 4
    return settings


async def v1_socket() -> tuple[V1Socket, Client, Broker]:
    client = Client()
    socket = V1Socket(client)
    broker = Broker(socket)
    await socket.accept()
    await socket.begin(Start("e", 0))
    client.got.clear()
    return socket, client, broker


def message(number: int) -> str:
    return json.dumps({"type": "message", "id": str(number), "data": "x"})


def test_rate_limit_is_exhausted_when_it_is_overdrawn_by_its_size() -> None:
    now = 0.0
    limit = RateLimit(1.0, 2, lambda: now)
    assert [limit.take() for _ in range(4)] == [True, True, False, False]
    assert not limit.exhausted
    assert (limit.take(), limit.exhausted) == (False, True)
    now = 4.0
    assert (limit.take(), limit.exhausted) == (True, False)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("frame", ['{"type":"ping"}', "junk", '{"type":"ack","offset":0}', "ping"])
async def test_every_frame_counts_against_the_rate_limit(frame: str) -> None:
    """Only messages did: pings, junk and acknowledgements cost the client nothing."""
    socket, client, _ = await v1_socket()
    for _ in range(8):
        if frame == "ping":
            client.on_hidden_frame()
        else:
            await socket.receive(frame, None)
        assert client.closed_with is None
    client.on_hidden_frame() if frame == "ping" else await socket.receive(frame, None)
    await until(lambda: client.closed_with == CloseCode.RATE_LIMIT, what="closed")
    assert len(client.got) <= 4
    socket.end()


@pytest.mark.usefixtures("limited")
async def test_acknowledgements_that_advance_are_free() -> None:
    socket, client, broker = await v1_socket()
    for offset in range(1, 100):
        await socket.receive(f'{{"type":"ack","offset":{offset}}}', None)
    assert broker.confirmed == 99
    assert client.closed_with is None
    socket.end()


@pytest.mark.usefixtures("limited")
async def test_messages_over_the_limit_are_refused_before_the_socket_is_closed() -> None:
    socket, client, broker = await v1_socket()
    for number in range(8):
        await socket.receive(message(number), None)
    await until(lambda: len(client.got) == 8, what="eight answers")
    answers = [json.loads(text) for text in client.got]
    refused = [answer["id"] for answer in answers if answer.get("code") == "rate_limit"]
    assert refused == ["4", "5", "6", "7"]
    assert len(broker.frames) == 4
    await socket.receive(message(8), None)
    assert client.closed_with == CloseCode.RATE_LIMIT
    socket.end()


async def test_client_that_does_not_read_its_answers_is_not_taken_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers piled up to 10,000, and on daphne in the transport's buffer without an end."""
    monkeypatch.setattr(sockets, "MAX_ANSWERS", 10)
    socket, client, broker = await v1_socket()
    client.reads.clear()
    for number in range(10):
        await socket.receive(message(number), None)
    waiting = asyncio.create_task(socket.receive(message(10), None))
    await asyncio.sleep(0.01)
    assert len(broker.frames) == 10
    client.reads.set()
    await waiting
    assert len(broker.frames) == 11
    assert client.closed_with is None
    socket.end()


async def test_client_that_never_reads_its_answers_is_closed(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.WSGATEWAY_PING_TIMEOUT = 0.01
    monkeypatch.setattr(sockets, "MAX_ANSWERS", 10)
    socket, client, _ = await v1_socket()
    client.reads.clear()
    for number in range(11):
        await socket.receive(message(number), None)
        await asyncio.sleep(0)
    assert client.closed_with == CloseCode.TOO_SLOW
    socket.end()


async def test_client_whose_frame_waits_for_the_broker_is_not_taken_for_dead(
    settings: Settings,
) -> None:
    """While a frame is being taken nothing else is heard, its answers to pings included."""
    settings.WSGATEWAY_PING_INTERVAL = settings.WSGATEWAY_PING_TIMEOUT = 0.01
    socket, client, broker = await v1_socket()
    broker.takes.clear()
    waiting = asyncio.create_task(socket.receive(message(1), None))
    await until(lambda: client.got.count('{"type":"ping"}') > 2, what="three pings")
    assert client.closed_with is None
    broker.takes.set()
    await waiting
    await until(lambda: client.closed_with == CloseCode.NO_PONG, what="closed, for it is silent")


async def test_nothing_is_taken_from_a_raw_socket_after_a_refusal() -> None:
    """The close frame was sent by a task, and what came before it ran was stored."""
    client = Client()
    socket = RawSocket(client)
    broker = Broker(socket)
    await socket.receive("1", None)
    broker.error = QueueFull("full")
    await socket.receive("2", None)
    await asyncio.sleep(0)  # the refusal is known
    broker.error = None
    for frame in "345":
        await socket.receive(frame, None)
    assert [frame.payload for frame in broker.frames] == [b"1", b"2"]
    await until(lambda: client.closed_with == CloseCode.QUEUE_FULL.raw, what="closed")


async def test_raw_message_is_settled_when_the_kernel_has_it() -> None:
    client = Client()
    socket = RawSocket(client)
    await socket.begin(Start("e", 3))
    assert (socket.settled, socket.unsettled) == (3, False)
    await socket.write(Stored(4, 3, b"a", None))
    assert (socket.settled, socket.unsettled) == (4, False)
    client.waiting = 10
    await socket.write(Stored(5, 4, b"b", None))
    await socket.write(Stored(6, 5, b"c", None))
    assert (socket.settled, socket.unsettled) == (4, True)
    client.waiting = 0
    assert (socket.settled, socket.unsettled) == (6, False)


async def test_socket_that_is_closed_during_the_handshake_is_not_used() -> None:
    """A logout at that moment closed it, and then it was accepted and served all the same."""
    socket = RawSocket(Client())
    await socket.close(CloseCode.NOT_AUTHENTICATED)
    with pytest.raises(SocketClosed):
        await socket.accept()


@pytest.mark.parametrize("kind", [RawSocket, V1Socket])
async def test_closing_during_the_handshake_accepts_first_and_once(kind: type[Socket]) -> None:
    """The client of a raw socket got HTTP 403, and a browser cannot tell that from an outage."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append((event["type"], event.get("code"), event.get("reason")))

    socket = kind(send)
    await socket.close(CloseCode.NOT_AUTHENTICATED)
    await socket.close(CloseCode.FORBIDDEN)
    code = 1008 if kind is RawSocket else 4501
    assert sent == [
        ("websocket.accept", None, None),
        ("websocket.close", code, "not authenticated"),
    ]
