"""What clients cost that send without an end, or read nothing of what they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration.test_servers import ANN, V1, message
from tests.support import SERVERS, Gateway, masked
from wsgateway.broker.embedded import EmbeddedServer

Factory = Callable[..., Gateway]


STALLED = 2.0
"""Seconds without progress after which a gateway counts as one that reads no more."""


async def flood(ws: Any, seconds: float) -> None:
    """Send large messages, as many as the gateway takes; it may close the socket."""
    frames = [message(number, 900_000) for number in range(4)]
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(seconds):
            for frame in itertools.cycle(frames):
                await asyncio.wait_for(ws.send(frame), STALLED)


async def flood_small(ws: Any, frame: str | bytes, seconds: float) -> None:
    """Send small frames as fast as can be, as many as the gateway takes."""
    wire = masked(frame) * 2000
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not ws.transport.is_closing():
                ws.transport.write(wire)
                await asyncio.wait_for(room(ws.transport), STALLED)


async def room(transport: asyncio.WriteTransport) -> None:
    """Wait until little waits to be written."""
    while transport.get_write_buffer_size() > 1_000_000:
        await asyncio.sleep(0.001)


async def peak_memory(gateway: Gateway, work: Awaitable[Any]) -> int:
    """Return the most memory that the gateway holds while *work* is done."""
    task = asyncio.ensure_future(work)
    peak = gateway.memory
    while not task.done():
        await asyncio.wait({task}, timeout=0.02)
        peak = max(peak, gateway.memory)
    await task
    return peak


@pytest.mark.parametrize("kind", ["raw", "v1", "tiny"])
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_clients_that_flood_a_frozen_broker_cost_little(
    gateway_factory: Factory, own_server: EmbeddedServer, server: str, kind: str
) -> None:
    """Daphne queued all that came; on both, a socket's window was 64 frames of any size."""
    gateway = gateway_factory(server, NATS_BROKER_URL=own_server.url)
    options = V1 if kind == "v1" else {}
    sockets = [
        await gateway.connect("orders", f"u{n}", compression=None, **options) for n in range(4)
    ]
    for ws in sockets if kind == "v1" else ():
        await ws.recv()
    before = gateway.memory
    own_server.pause()
    floods = [flood_small(ws, b"x", 3) if kind == "tiny" else flood(ws, 3) for ws in sockets]
    peak = await peak_memory(gateway, asyncio.gather(*floods))
    own_server.resume()
    for ws in sockets:
        ws.transport.abort()
    assert peak - before < 45_000_000


@pytest.mark.parametrize(
    ("server", "frame"),
    [("daphne", "junk"), ("daphne", "websocket ping"), ("uvicorn", "websocket ping")],
)
async def test_client_that_does_not_read_what_it_asks_for_costs_little(
    gateway_factory: Factory, server: str, frame: str
) -> None:
    """Answers and pongs waited in the server's buffer without an end."""
    gateway = gateway_factory(server, WSGATEWAY_RATE_LIMIT="0")
    async with gateway.connect("orders", "bob"):
        before = gateway.memory
    options = V1 if frame == "junk" else {}
    async with gateway.connect(*ANN, compression=None, **options) as ws:
        ws.transport.pause_reading()
        peak = await peak_memory(gateway, flood_small(ws, frame, 3))
        ws.transport.abort()
    assert peak - before < 10_000_000


HIDDEN = {"pong": b"\x8a\x80\0\0\0\0", "part": b"\x00\x80\0\0\0\0", "text": masked("x")}


@pytest.mark.parametrize("server", SERVERS)
async def test_client_that_floods_is_cut_and_does_not_keep_others_waiting(
    gateway_factory: Factory, server: str
) -> None:
    """Pongs and parts of a message cost nothing, and uvicorn parsed what followed our close."""
    gateway = gateway_factory(server, WSGATEWAY_RATE_LIMIT="200", WSGATEWAY_RATE_BURST="2000")
    waits = []
    async with gateway.connect(*ANN, ping_interval=None, **V1) as ann:
        await ann.recv()
        for kind in HIDDEN:
            flood = asyncio.create_task(asyncio.to_thread(flood_blindly, gateway, kind, 30.0))
            while not flood.done():
                since = time.monotonic()
                await ann.send('{"type":"ping"}')
                assert json.loads(await asyncio.wait_for(ann.recv(), 20)) == {"type": "pong"}
                waits.append(time.monotonic() - since)
                await asyncio.sleep(0.02)
            assert await flood, f"the flood of {kind} was not cut"
    assert max(waits) < 10  # no client gives a gateway up for that
    assert "Traceback" not in gateway.output


def flood_blindly(gateway: Gateway, kind: str, seconds: float) -> bool:
    """Send frames and read nothing; return whether the connection ended within *seconds*."""
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=seconds) as raw:
        raw.sendall(
            b"GET /ws/orders/evil/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Version: 13\r\nCookie: service=orders; user=evil\r\n\r\n"
        )
        assert b" 101 " in raw.recv(4096)
        try:
            if kind == "part":
                raw.sendall(b"\x01\x81\0\0\0\0x")
            while time.monotonic() < end:
                raw.sendall(HIDDEN[kind] * 2000)
        except OSError:
            return True
    return False
