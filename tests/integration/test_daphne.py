"""The details of daphne that `wsgateway.gateway.daphne` leans on.

If one of these fails after an upgrade of daphne or autobahn, look there: ASGI's send may no longer
be a partial of the socket, or `sendCloseFrame` or the reactor's shutdown event may have changed.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import Gateway, deaf_socket, until
from tests.troubleshooting import Symptom
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.gateway.hub import STARTS_AT_ONCE


async def closed_with(ws: Any) -> tuple[int, str]:
    async def read() -> None:
        while True:
            await ws.recv()

    with pytest.raises(ConnectionClosed) as caught:
        await read()
    assert caught.value.rcvd is not None, "the connection was cut without a close frame"
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def test_raw_sockets_get_standard_codes_with_a_reason(
    gateway_factory: Callable[..., Gateway],
) -> None:
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{nobody.getsockname()[1]}"
        gateway = gateway_factory(NATS_BROKER_URL=url)
        async with gateway.connect("s", "u") as ws:
            assert await closed_with(ws) == (1013, "broker unavailable")
        async with gateway.connect("s", "u", subprotocols=["wsgateway.v1"]) as ws:
            assert await closed_with(ws) == (4014, "broker unavailable")
    assert "Traceback" not in gateway.output


@pytest.mark.troubleshooting("1013 queue full")
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_raw_sockets_learn_that_the_queue_is_full(
    symptom: Symptom, gateway_factory: Callable[..., Gateway], server: str
) -> None:
    """The reason was "broker unavailable"."""
    gateway = gateway_factory(server, WSGATEWAY_SEND_MAX_MESSAGES_PER_USER="1")
    async with gateway.connect("s", "u") as ws:
        await ws.send("1")
        await ws.send("2")
        symptom.must_show_in("{} {}".format(*await closed_with(ws)))
    want = "closed the socket at '/ws/s/u/' of 'u' with 1013 (4017): "
    await until(lambda: want in gateway.output, what=want)


@pytest.mark.troubleshooting("1009 message too big")
async def test_raw_sockets_learn_that_a_message_is_too_big(
    symptom: Symptom, gateway: Gateway
) -> None:
    async with gateway.connect("s", "u", compression=None) as ws:
        await ws.send(bytes(1_000_001))
        symptom.must_show_in("{} {}".format(*await closed_with(ws)))
    where = "closed the socket at '/ws/s/u/' of 'u'"
    want = f"{where} with 1009 (4509): message of 1000001 bytes exceeds WSGATEWAY_MAX_MESSAGE_SIZE"
    await until(lambda: want in gateway.output, what=want)


@pytest.mark.troubleshooting("1007")
async def test_clients_learn_that_their_text_is_not_utf8(
    symptom: Symptom, gateway: Gateway
) -> None:
    async with gateway.connect("s", "u") as ws:
        await ws.send(b"\xff", text=True)
        symptom.must_show_in(str((await closed_with(ws))[0]))
    want = "closed the socket at '/ws/s/u/' of 'u' with 1007: "
    await until(lambda: want in gateway.output, what=want)


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_sockets_are_told_and_cursors_written_when_the_server_ends(
    gateway_factory: Callable[..., Gateway], server: str, prefix: str, nats_server: Any
) -> None:
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.broker.nats.connection import ConnectionOptions
    from wsgateway.protocol.subjects import Inbox, Subjects

    gateway = gateway_factory(server, WSGATEWAY_CURSOR_INTERVAL="3600")
    broker = NatsBroker(ConnectionOptions((nats_server.url,)), Subjects(prefix), [])
    await broker.open()
    await broker.wait_ready()
    raw = await gateway.connect("s", "raw")
    v1 = await gateway.connect("s", "v1", subprotocols=["wsgateway.v1"])
    await v1.recv()
    receipts = [await broker.publish(Inbox("s", user), b"hi") for user in ("raw", "v1")]
    assert await raw.recv() == "hi"
    assert json.loads(await v1.recv())["data"] == "hi"
    await v1.send(json.dumps({"type": "ack", "offset": receipts[1].offset}))
    await v1.send(json.dumps({"type": "ping"}))
    assert json.loads(await v1.recv()) == {"type": "pong"}
    gateway.stop(timeout=5.0)
    expected = {"daphne": [1012, 4001], "uvicorn": [1012, 1012]}[server]
    assert [(await closed_with(ws))[0] for ws in (raw, v1)] == expected
    await broker.inboxes.position()  # learns the epoch
    found = [await broker.load_cursor(Inbox("s", user), "default") for user in ("raw", "v1")]
    assert found == [receipt.offset for receipt in receipts]
    await broker.close()


async def test_sockets_that_leave_before_their_turn_leave_no_trace(
    gateway_factory: Callable[..., Gateway], own_server: EmbeddedServer
) -> None:
    """Handshakes do not wait for the broker, so that daphne's time-out does not end them."""
    v1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url)
    async with gateway.connect("s", "u", **v1) as ws:
        assert json.loads(await ws.recv())["type"] == "welcome"
    own_server.pause()
    # More than may start at once; the handshake does not wait for the start.
    sockets = [await gateway.connect("s", f"u{n}", **v1) for n in range(STARTS_AT_ONCE + 8)]
    for each in sockets:
        each.transport.abort()
        await each.wait_closed()
    await until(lambda: gateway.output.count("WSDISCONNECT") > len(sockets))
    own_server.resume()
    async with gateway.connect("s", "u", **v1) as ws:
        assert json.loads(await asyncio.wait_for(ws.recv(), 20))["type"] == "welcome"
    assert "Traceback" not in gateway.output


async def test_client_that_does_not_answer_a_close_frame_has_a_second(gateway: Gateway) -> None:
    """It had anything from nothing to a second: autobahn's timer rounds down to whole seconds."""

    async def time_to_cut(phase: float) -> float:
        await asyncio.sleep(phase)  # the second did not depend on what happens
        with deaf_socket(gateway, "s", f"u{phase}") as deaf:
            deaf.sendall(bytes((0x83, 0x80, 0, 0, 0, 0)))  # an unknown opcode
            began = time.monotonic()
            poll = select.poll()
            poll.register(deaf, select.POLLERR | select.POLLHUP)
            assert await asyncio.to_thread(poll.poll, 5000)
            return time.monotonic() - began

    times = await asyncio.gather(*map(time_to_cut, (0.0, 0.25, 0.5, 0.75)))
    assert all(0.9 < each < 2.5 for each in times), times
