"""Server-sent events, and sockets whose client half-closes, on each HTTP implementation of uvicorn.

Uvicorn runs in the test's own loop. These tests are also the canaries for what
`wsgateway.gateway.uvicorn_responses` leans on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from channels.routing import ProtocolTypeRouter

from tests.authority import Authority
from tests.support import until
from wsgateway.broker import runtime
from wsgateway.gateway.hub import Hub, get_hub
from wsgateway.protocol.subjects import Inbox
from wsgateway.routing import gateway_router, sse_router

ANN = Inbox("orders", "ann")
APPLICATION: Any = ProtocolTypeRouter({"http": sse_router, "websocket": gateway_router})
REQUEST = "GET /orders/ HTTP/1.1\r\nHost: testserver\r\nCookie: service=orders; user=ann\r\n"
READ = f"{REQUEST}\r\n".encode()
UPGRADE = (
    f"{REQUEST}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()
LARGE = 100_000
"""Bytes of a message that nobody reads."""

pytestmark = pytest.mark.parametrize("http", ["h11", "httptools"])


@pytest.fixture
async def hub(settings: Any) -> AsyncIterator[Hub]:
    runtime.reset()
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_CLOSE_TIMEOUT = 0.4
    hub = get_hub()
    await hub.open()
    yield hub
    await hub.close()


@pytest.fixture
async def server(http: str, hub: Hub) -> AsyncIterator[uvicorn.Server]:
    async with serving(http) as server:
        yield server


@contextlib.asynccontextmanager
async def serving(http: str, **options: Any) -> AsyncIterator[uvicorn.Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(APPLICATION, http=http, lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started or task.done(), what="uvicorn runs")
    yield server
    server.should_exit = True
    await asyncio.wait_for(task, 10)


def port_of(server: uvicorn.Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@contextlib.contextmanager
def connected(server: uvicorn.Server) -> Iterator[socket.socket]:
    """Give a client whose kernel takes little."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(server)))
        client.setblocking(False)
        yield client


async def receive(client: socket.socket, end: bytes = b"") -> bytes:
    """Return what comes up to *end*, or up to the end of the connection."""
    loop, received = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while not end or end not in received:
            part = await loop.sock_recv(client, 65536)
            if not part:
                break
            received += part
    return received


@pytest.mark.parametrize("behind", ["nothing", "at once", "later", "too much"])
async def test_reader_that_leaves_is_noticed(hub: Hub, server: uvicorn.Server, behind: str) -> None:
    """Behind another request, uvicorn told only that one, or stopped reading: online for ever."""
    with connected(server) as client:
        client.sendall(READ * (2 if behind == "at once" else 1))
        await receive(client, b"event: welcome")
        assert hub.sockets == 1
        if behind == "later":
            client.sendall(READ)
        if behind == "too much":
            await asyncio.get_running_loop().sock_sendall(client, READ * 10_000)
        await hub.broker.publish(ANN, b"last")
        await receive(client, b"data: last")
        assert hub.sockets == 1
    await until(lambda: hub.sockets == 0, 5, "it is noticed")
    await until(lambda: not server.server_state.connections, 5, "the connection ends")


@pytest.mark.parametrize("kind", ["sse", "websocket"])
async def test_reader_that_half_closes_and_does_not_read_is_cut(
    hub: Hub, server: uvicorn.Server, kind: str
) -> None:
    """Uvicorn waited for ever until it had read everything."""
    with connected(server) as client:
        client.sendall(READ if kind == "sse" else UPGRADE)
        await receive(client, b"event: welcome" if kind == "sse" else b" 101 ")
        for _ in range(60):
            await hub.broker.publish(ANN, b"x" * LARGE)
        (session,) = hub.sessions_of(ANN)
        transport = session.socket.transport
        await until(lambda: transport.pending, 5, "the kernel takes no more")
        assert transport.pending <= 3 * LARGE  # the rest waits in the stream
        client.shutdown(socket.SHUT_WR)
        await until(lambda: hub.sockets == 0, 5, "it is noticed")
        await until(lambda: not server.server_state.connections, 5, "it is cut")


async def test_response_is_complete_when_uvicorn_ends(hub: Hub, server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(READ)
        await receive(client, b"event: welcome")
        server.should_exit = True
        rest = await receive(client)
    assert b'event: closed\ndata: {"code":4001' in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_same_over_tls(hub: Hub, http: str, tmp_path: Path) -> None:
    """With TLS there are two transports, and two buffers."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway")
    context = ssl.create_default_context(cafile=str(authority.path))
    async with serving(http, ssl_certfile=certificate, ssl_keyfile=key) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server), ssl=context)
        async with asyncio.timeout(20):
            writer.write(READ * 2)
            await reader.readuntil(b"event: welcome")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(100):
                await hub.broker.publish(ANN, b"x" * LARGE)
            (session,) = hub.sessions_of(ANN)
            transport = session.socket.transport
            await until(lambda: transport.pending, 5, "the kernel takes no more")
            assert transport.pending <= 3 * LARGE
            await hub.broker.publish(ANN, b"last")
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            while b"data: last" not in await reader.read(1024 * 1024):
                pass
            assert hub.sockets == 1
            writer.close()
            await until(lambda: hub.sockets == 0, 5, "it is noticed")
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()
