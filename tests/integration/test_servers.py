"""What sockets promise on each ASGI server, with real processes.

These tests are also the canaries for what `daphne` and `uvicorn` in `wsgateway.gateway` lean on.
If one fails after an upgrade of daphne, autobahn, twisted or uvicorn, look at the module of that
server: the details that it uses are named there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.authority import Authority
from tests.faults.traffic import broker_at
from tests.support import SERVERS, Gateway, deaf_socket, listening, masked, unread, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
APPLICATIONS = ["entry_point", "auth_stack", "unknown_middleware"]
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"

Factory = Callable[..., Gateway]


async def closed_with(ws: Any) -> int:
    """Return the code of the close frame."""

    async def read() -> None:
        while True:
            await asyncio.wait_for(ws.recv(), 10)

    with pytest.raises(ConnectionClosed) as caught:
        await read()
    assert caught.value.rcvd is not None, "the connection was cut without a close frame"
    return caught.value.rcvd.code


# -- closing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_middleware_that_wraps_send_does_not_keep_sockets_from_closing(
    gateway_factory: Factory, broker: NatsBroker, server: str, application: str
) -> None:
    """On daphne, raw sockets behind AuthMiddlewareStack were not closed, and went on publishing."""
    taken: list[bytes] = []
    subject = broker.subjects.send(ANN)
    broker.connection.subscribe(
        subject, lambda _subject, _reply, data, _headers: taken.append(data)
    )
    await broker.connection.confirm()
    gateway = gateway_factory(
        server, application=f"tests.asgi_apps:{application}", WSGATEWAY_MAX_MESSAGE_SIZE="1000"
    )
    hidden = server == "daphne" and application == "unknown_middleware"
    async with gateway.connect(*ANN) as raw:
        await raw.send("first")
        await until(lambda: taken, what="the first frame")
        for frame in ("x" * 1001, "second", "third"):
            await raw.send(frame)
        assert await closed_with(raw) == (4509 if hidden else 1009)
    raw, v1 = await gateway.connect(*ANN), await gateway.connect(*ANN, **V1)
    await v1.recv()
    await raw.send("last")
    await until(lambda: b"last" in taken, what="the last frame")
    assert taken == [b"first", b"last"]
    gateway.stop(timeout=5.0)
    ends = {"daphne": [4001 if hidden else 1012, 4001], "uvicorn": [1012, 1012]}[server]
    assert [await closed_with(raw), await closed_with(v1)] == ends
    assert "Traceback" not in gateway.output


async def test_message_for_a_socket_that_daphne_is_closing_harms_nothing(
    gateway_factory: Factory, broker: NatsBroker
) -> None:
    """Autobahn raised Disconnected into the delivery, which was logged with a traceback."""
    gateway = gateway_factory("daphne --websocket_timeout 1")
    async with gateway.connect(*ANN) as raw:
        raw.transport.pause_reading()  # so that it does not answer the close frame
        while "WSDISCONNECT" not in gateway.output:
            await broker.publish(ANN, b"hello")
        raw.transport.abort()
    assert "Traceback" not in gateway.output


# -- empty frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
async def test_empty_frames_arrive_both_ways(
    gateway_factory: Factory, broker: NatsBroker, server: str
) -> None:
    """Daphne drops an empty frame; the gateway counted it as delivered."""
    taken: list[bytes] = []
    subject = broker.subjects.send(ANN)
    broker.connection.subscribe(
        subject, lambda _subject, _reply, data, _headers: taken.append(data)
    )
    await broker.connection.confirm()
    gateway = gateway_factory(server)
    frames: list[str | bytes] = ["", b"", "end"]
    async with gateway.connect(*ANN) as raw:
        for frame in frames:
            await raw.send(frame)
        await until(lambda: len(taken) == 3, what="three frames")
        assert taken == [b"", b"", b"end"]
        for frame in frames:
            message = Frame.of(frame)
            await broker.publish(ANN, message.payload, kind=message.kind)
        assert [await asyncio.wait_for(raw.recv(), 10) for _ in frames] == frames


# -- clients that do not read ----------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
async def test_raw_client_that_does_not_read_costs_little_and_loses_little(
    gateway_factory: Factory, broker: NatsBroker, server: str
) -> None:
    """Daphne's send never waits: the whole backlog was written into memory and confirmed."""
    await stop_reading(gateway_factory(server, WSGATEWAY_CURSOR_INTERVAL="0.1"), broker)


@pytest.mark.parametrize("server", ["daphne", "uvicorn --loop asyncio", "uvicorn --loop uvloop"])
async def test_raw_sockets_keep_the_same_promises_over_tls(
    gateway_factory: Factory, broker: NatsBroker, tmp_path: Path, free_port: int, server: str
) -> None:
    """With TLS there are two transports, and Twisted gathers small writes in the upper one."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway")
    options = f"--ssl-certfile {certificate} --ssl-keyfile {key}"
    if server == "daphne":
        options = f"-e ssl:{free_port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    gateway = gateway_factory(f"{server} {options}", WSGATEWAY_CURSOR_INTERVAL="0.1")
    port = free_port if server == "daphne" else gateway.port
    await until(lambda: listening(port), what="it listens for TLS")
    gateway.ws = lambda path: f"wss://127.0.0.1:{port}{path}"  # type: ignore[method-assign]
    context = ssl.create_default_context(cafile=str(authority.path))
    await stop_reading(gateway, broker, ssl=context)
    async with gateway.connect(*ANN, ssl=context) as raw:
        await broker.publish(ANN, b"", kind="text")
        assert await asyncio.wait_for(raw.recv(), 10) == ""
        async with gateway.connect("orders", "bob", ssl=context) as bob:
            await bob.send(bytes(2_000_000))  # above daphne's limit and ours
            assert await closed_with(bob) == 1009
        await asyncio.to_thread(gateway.stop, 5.0)  # the client must end its TLS, too
        assert await closed_with(raw) == 1012
    assert "Traceback" not in gateway.output


def number_of(frame: str | bytes) -> int:
    assert isinstance(frame, bytes)
    return int.from_bytes(frame[:4])


async def stop_reading(gateway: Gateway, broker: NatsBroker, **options: Any) -> None:
    """Read 3 of 600 messages, no more for a while, come back, and see what is missing."""
    size, count = 100_000, 600
    for number in range(count):
        await broker.publish(ANN, number.to_bytes(4) + bytes(size - 4), kind="binary")
    options["compression"] = None
    async with gateway.connect("orders", "bob", **options):
        before = gateway.memory
    async with gateway.connect(*ANN, max_queue=1, **options) as raw:
        for number in range(3):
            assert number_of(await asyncio.wait_for(raw.recv(), 10)) == number
        # Nothing more happens; what would go wrong goes wrong within this time.
        peak = before
        for _ in range(30):
            peak = max(peak, gateway.memory)
            await asyncio.sleep(0.05)
        raw.transport.abort()
    assert peak - before < 30_000_000
    async with gateway.connect(*ANN, **options) as raw:
        first = number_of(await asyncio.wait_for(raw.recv(), 10))
        rest = [number_of(await raw.recv()) for _ in range(first + 1, count)]
    assert rest == list(range(first + 1, count))
    # What the kernel and the client's own buffers held when the connection was cut is lost.
    assert first * size < 20_000_000


@pytest.mark.parametrize("server", SERVERS)
async def test_client_that_does_not_read_is_cut_when_its_socket_is_closed(
    gateway_factory: Factory, broker: NatsBroker, server: str
) -> None:
    """On uvicorn, closing waited for the client: after a logout, for example, it stayed."""
    for _ in range(200):
        await broker.publish(ANN, bytes(100_000), kind="binary")
    gateway = gateway_factory(server, WSGATEWAY_MAX_MESSAGE_SIZE="1000")
    async with gateway.connect("orders", "bob"):
        pass

    def sockets() -> int:
        return len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))

    await until(lambda: "connected to NATS" in gateway.output, what="connected")
    idle = await settled(sockets)
    async with gateway.connect(*ANN, compression=None) as raw:
        raw.transport.pause_reading()
        assert await settled(sockets) == idle + 1
        await raw.send("x" * 1001)
        await until(lambda: sockets() == idle, what="the socket is closed")
        raw.transport.abort()
    assert "Traceback" not in gateway.output


@pytest.mark.parametrize("server", [name for name in SERVERS if name.startswith("uvicorn")])
async def test_clients_that_vanish_while_we_write_are_not_errors(
    gateway_factory: Factory, own_server: EmbeddedServer, server: str
) -> None:
    """Uvicorn closes by itself, and raises RuntimeError for what is sent after that.

    While the consumer waits for the broker, it does not hear of the end. The deprecated
    implementation raised AssertionError when a ping, or the answer to a close frame, waited for
    the kernel beside a message.
    """
    gateway = gateway_factory(
        f"{server} --ws-ping-interval 0.3 --ws-ping-timeout 0.3",
        NATS_BROKER_URL=own_server.url,
        WSGATEWAY_SEND_WINDOW="1",
    )
    ends = ("silent", "close", "reset")
    users = [(f"{end}-{kind}", end, kind == "v1") for end in ends for kind in ("raw", "v1")]
    async with gateway.connect(*ANN) as ann:
        await ann.send("now the streams exist")
    async with broker_at([own_server.url], gateway.env["WSGATEWAY_PREFIX"]) as broker:
        for user, _, _ in users:
            for _ in range(20):
                await broker.publish(Inbox("orders", user), bytes(300_000), kind="binary")
    with contextlib.ExitStack() as stack:
        open_sockets = {
            user: stack.enter_context(deaf_socket(gateway, "orders", user, v1=v1))
            for user, _, v1 in users
        }
        for deaf in open_sockets.values():
            await until(lambda deaf=deaf: unread(deaf), what="the backlog begins to arrive")
        own_server.pause()
        for user, end, v1 in users:
            deaf = open_sockets[user]
            frame = message(1, 1) if v1 else "x"
            deaf.sendall(masked(frame) * 3)
            if end == "close":
                deaf.sendall(CLOSE)
            if end == "reset":
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                deaf.close()
        await asyncio.sleep(1.5)  # uvicorn tells nobody that it has given up a silent client
        for user, end, _ in users:
            if end != "reset":
                await asyncio.to_thread(read_to_the_end, open_sockets[user])
    own_server.resume()
    gateway.stop()
    assert "ERROR" not in gateway.output
    assert "Traceback" not in gateway.output


def read_to_the_end(deaf: socket.socket) -> None:
    """Read until the connection ends."""
    with contextlib.suppress(ConnectionError):
        while deaf.recv(1_000_000):
            pass


async def settled(value: Callable[[], int]) -> int:
    """Return *value* once it has not changed for half a second."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.5:
        await asyncio.sleep(0.05)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def message(number: int, size: int) -> str:
    return json.dumps({"type": "message", "id": f"{number}", "data": "x" * size})
