"""Deploys: a gateway that gets SIGTERM lets its clients go in order, and in time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.support import Gateway
from wsgateway.broker.base import Broker
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.subjects import Inbox

Gateways = Callable[..., Gateway]
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
DEADLINE = 5.0
"""WSGATEWAY_CLOSE_TIMEOUT, and what the server itself takes."""


async def last_words(socket: ClientConnection) -> tuple[float | None, int | None]:
    """Read to the end; return the delay that the gateway asked for, and the close code."""
    after = None
    try:
        async for text in socket:
            frame = json.loads(text)
            if frame["type"] == "closing":
                after = frame["reconnect_after"]
    except ConnectionClosed:
        pass
    return after, socket.close_code


async def test_clients_are_told_to_come_back_spread_over_a_time(gateway_factory: Gateways) -> None:
    gateway = gateway_factory(WSGATEWAY_DRAIN_RATE="10")
    sockets = [await gateway.connect("faults", f"u{n}", **V1) for n in range(40)]
    for socket in sockets:
        assert json.loads(await socket.recv())["type"] == "welcome"
    stopping = asyncio.create_task(asyncio.to_thread(gateway.stop, DEADLINE))
    words = await asyncio.gather(*map(last_words, sockets))
    await stopping
    assert {code for _, code in words} == {4001}
    delays = sorted(after for after, _ in words if after is not None)
    assert len(delays) == 40
    assert delays[0] >= 0
    assert delays[-1] <= 4.0  # 40 sockets, 10 a second
    assert delays[-1] - delays[0] > 2.0  # 40 draws of 0 to 4 closer than that: 1 in 10**9
    assert len(set(delays)) > 20
    assert "Traceback" not in gateway.output


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_clients_that_do_not_read_do_not_keep_a_gateway(
    server: str, gateway_factory: Gateways, broker: NatsBroker
) -> None:
    """Closing waited for sockets and wrote the cursors after them, within one time-out."""
    gateway = gateway_factory(server, WSGATEWAY_CURSOR_INTERVAL="3600")
    deaf = await gateway.connect("faults", "deaf", max_queue=1, ping_interval=None)
    deaf.transport.pause_reading()
    for number in range(40):
        await broker.publish(Inbox("faults", "deaf"), b"x" * 500_000, msg_id=f"deaf{number}")
    async with gateway.connect("faults", "ann", **V1) as ann:
        assert json.loads(await ann.recv())["type"] == "welcome"
        receipt = await broker.publish(Inbox("faults", "ann"), b"hello")
        assert json.loads(await ann.recv())["data"] == "hello"
        await ann.send(json.dumps({"type": "ack", "offset": receipt.offset}))
        await ann.send(json.dumps({"type": "ping"}))
        assert json.loads(await ann.recv()) == {"type": "pong"}
        began = time.monotonic()
        await asyncio.to_thread(gateway.stop, 3 * DEADLINE)
        assert time.monotonic() - began < DEADLINE
    assert await cursor(broker, "ann") == receipt.offset
    deaf.transport.abort()


async def cursor(broker: Broker, user: str) -> int:
    await broker.position()  # learns the epoch
    return await broker.load_cursor(Inbox("faults", user), "default")
