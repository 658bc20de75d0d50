"""What sockets promise on each ASGI server, with real processes.

These tests are also the canaries for what `wsgateway.daphne` and `wsgateway.uvicorn` lean on. If
one fails after an upgrade of daphne, autobahn, twisted or uvicorn, look at the module of that
server: the details that it uses are named there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support import Gateway, until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.frames import Frame
from wsgateway.subjects import Inbox

ANN = Inbox("orders", "ann")
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
SERVERS = ["daphne", "uvicorn --loop uvloop", "uvicorn --loop asyncio"]
# Uvicorn's other implementations. Without wsproto, uvicorn cannot choose that.
SERVERS += [f"uvicorn --ws {name}" for name in ("websockets", "wsproto") if find_spec(name)]
APPLICATIONS = ["entry_point", "auth_stack", "unknown_middleware"]

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
    broker.link.subscribe(subject, lambda _subject, _reply, data, _headers: taken.append(data))
    await broker.link.confirm()
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
    ends = {"daphne": [4001 if hidden else 1001, 4001], "uvicorn": [1012, 1012]}[server]
    assert [await closed_with(raw), await closed_with(v1)] == ends
    assert "Traceback" not in gateway.output


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_entry_point_refuses_unknown_paths_without_a_traceback(
    gateway_factory: Factory, server: str
) -> None:
    gateway = gateway_factory(server, application="tests.asgi_apps:entry_point")
    with pytest.raises(InvalidStatus) as refused:
        await gateway.connect(*ANN, path="/nowhere/")
    assert refused.value.response.status_code == 403
    assert "Traceback" not in gateway.output


# -- empty frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
async def test_empty_frames_arrive_both_ways(
    gateway_factory: Factory, broker: NatsBroker, server: str
) -> None:
    """Daphne drops an empty frame; the gateway counted it as delivered."""
    taken: list[bytes] = []
    subject = broker.subjects.send(ANN)
    broker.link.subscribe(subject, lambda _subject, _reply, data, _headers: taken.append(data))
    await broker.link.confirm()
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
    size, count = 100_000, 600
    for number in range(count):
        await broker.publish(ANN, number.to_bytes(4) + bytes(size - 4), kind="binary")
    gateway = gateway_factory(server, WSGATEWAY_CURSOR_INTERVAL="0.1")
    async with gateway.connect("orders", "bob"):
        before = gateway.memory
    async with gateway.connect(*ANN, max_queue=1, compression=None) as raw:
        for number in range(3):
            assert int.from_bytes((await asyncio.wait_for(raw.recv(), 10))[:4]) == number
        # Nothing more happens; what would go wrong goes wrong within this time.
        peak = before
        for _ in range(30):
            peak = max(peak, gateway.memory)
            await asyncio.sleep(0.05)
        raw.transport.abort()
    assert peak - before < 30_000_000
    async with gateway.connect(*ANN, compression=None) as raw:
        first = int.from_bytes((await asyncio.wait_for(raw.recv(), 10))[:4])
        rest = [int.from_bytes((await raw.recv())[:4]) for _ in range(first + 1, count)]
    assert rest == list(range(first + 1, count))
    # What the kernel and the client's own buffers held when the connection was cut is lost.
    assert first * size < 20_000_000
