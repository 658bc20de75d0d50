"""Bad input through a real gateway: a clear refusal, or a logged and counted skip."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.faults.traffic import broker_at
from tests.support import Gateway, site_env
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.headers import encode
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("service1", "ann")
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}


async def test_malformed_message_is_skipped_logged_and_the_next_arrives(
    gateway: Gateway, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with (
        gateway.connect(*ANN) as raw,
        gateway.connect(*ANN, **V1) as v1,
        broker_at([nats_server.url], prefix) as broker,
    ):
        await v1.recv()
        await broker.publish(ANN, b"\xff\xfe", kind="text")  # says text, is none
        await broker.publish(ANN, b"x", kind="nonsense")
        await broker.publish(ANN, b"good")
        assert await asyncio.wait_for(raw.recv(), 10) == "good"
        assert json.loads(await asyncio.wait_for(v1.recv(), 10))["data"] == "good"
    skipped = [line for line in gateway.output.splitlines() if "skipped message" in line]
    assert len(skipped) == 2  # both sockets share the lines
    assert "Traceback" not in gateway.output


async def test_events_for_consumers_are_skipped_and_explained_once(
    gateway: Gateway, nats_server: EmbeddedServer, prefix: str
) -> None:
    """Each one was a warning for each socket: 'event' is neither text nor binary."""
    async with (
        gateway.connect(*ANN) as raw,
        gateway.connect(*ANN, **V1) as v1,
        broker_at([nats_server.url], prefix) as broker,
    ):
        await v1.recv()
        for _ in range(5):
            await broker.publish(ANN, b"\x81\xa4type\xa4some", kind="event")
        await broker.publish(ANN, b"good")
        assert await asyncio.wait_for(raw.recv(), 10) == "good"
        assert json.loads(await asyncio.wait_for(v1.recv(), 10))["data"] == "good"
    (line,) = [line for line in gateway.output.splitlines() if "skipped message" in line]
    assert "event for Channels consumers" in line
    assert "'type': 'ws.message'" in line


async def test_malformed_subjects_and_headers_harm_nothing(
    gateway: Gateway, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with gateway.connect(*ANN) as raw, broker_at([nats_server.url], prefix) as broker:
        await broker.connection.ready()
        forged = encode({"Nats-Sequence": "x"})
        for subject in ("recv.service1.=ZZ", "recv.=.x", "live.service1.ann", "all.revoked"):
            broker.connection.publish(f"{prefix}.{subject}", b"\xff", forged)
        await broker.publish(ANN, b"good")
        assert await asyncio.wait_for(raw.recv(), 10) == "good"
    assert "Traceback" not in gateway.output


async def test_oversized_frames(gateway_factory: Callable[..., Gateway]) -> None:
    gateway = gateway_factory(WSGATEWAY_MAX_MESSAGE_SIZE="1000")
    async with gateway.connect(*ANN) as raw:
        await raw.send("x" * 1000)
        await raw.send("x" * 1001)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(raw.recv(), 10)
        assert raw.close_code == 1009
    async with gateway.connect(*ANN, **V1) as v1:
        await v1.recv()
        await v1.send(json.dumps({"type": "message", "id": "a", "data": "x" * 1001}))
        answer = json.loads(await v1.recv())
        assert (answer["id"], answer["code"], answer["temporary"]) == ("a", "too_big", False)
        await v1.send(json.dumps({"type": "message", "id": "b", "data": "x" * 1000}))
        assert json.loads(await v1.recv()) == {"type": "ack", "id": "b"}
        await v1.send("x" * 20_000)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(v1.recv(), 10)
        assert v1.close_code == 4509


async def test_rate_limit(gateway_factory: Callable[..., Gateway]) -> None:
    gateway = gateway_factory(WSGATEWAY_RATE_LIMIT="1", WSGATEWAY_RATE_BURST="3")
    async with gateway.connect(*ANN) as raw:
        for _ in range(4):
            await raw.send("x")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(raw.recv(), 10)
        assert raw.close_code == 1013
    async with gateway.connect(*ANN, **V1) as v1:
        await v1.recv()
        for number in range(4):
            await v1.send(json.dumps({"type": "message", "id": str(number), "data": "x"}))
        answers = [json.loads(await v1.recv()) for _ in range(4)]
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert [(a["id"], a["code"], a["temporary"]) for a in refused] == [
            ("3", "rate_limit", True)
        ]


async def test_too_many_connections(gateway_factory: Callable[..., Gateway]) -> None:
    gateway = gateway_factory(WSGATEWAY_MAX_CONNECTIONS_PER_USER="1")
    async with gateway.connect(*ANN):
        async with gateway.connect(*ANN) as raw:
            await asyncio.wait_for(raw.wait_closed(), 10)
            assert raw.close_code == 1008
        async with gateway.connect(*ANN, **V1) as v1:
            await asyncio.wait_for(v1.wait_closed(), 10)
            assert v1.close_code == 4504
        async with gateway.connect("service1", "bob") as other:
            await other.send("fine")


UNUSABLE = [
    "", "no json", "[]", "{}", '{"type":1}', '{"type":"message"}', '{"type":"ack","offset":-1}',
    '{"type":"message","id":"a b","data":""}', '{"type":"message","id":"a","data":1e999}',
    '{"type":"subscribe","id":"s","topic":"room"}',
]  # fmt: skip


async def test_v1_answers_what_it_cannot_use(gateway: Gateway) -> None:
    async with gateway.connect(*ANN, **V1) as v1:
        await v1.recv()
        for frame in UNUSABLE:
            await v1.send(frame)
            answer = json.loads(await asyncio.wait_for(v1.recv(), 10))
            assert (answer["type"], answer["code"]) == ("error", "bad_request"), frame
            await v1.send('{"type":"ping"}')
            assert json.loads(await asyncio.wait_for(v1.recv(), 10)) == {"type": "pong"}


async def test_v1_refusals_carry_a_code(gateway: Gateway) -> None:
    async with gateway.connect("", "", path="/ws/service1/", additional_headers={}, **V1) as v1:
        await asyncio.wait_for(v1.wait_closed(), 10)
        assert v1.close_code == 4501
    for query in ("?offset=1", "?epoch=x&offset=-1", "?epoch=a&epoch=b&offset=1"):
        async with gateway.connect(*ANN, query=query, **V1) as v1:
            await asyncio.wait_for(v1.wait_closed(), 10)
            assert v1.close_code == 4500
    async with gateway.connect(*ANN, **V1) as v1:
        await v1.recv()
        await v1.send(b"binary")
        await asyncio.wait_for(v1.wait_closed(), 10)
        assert v1.close_code == 4500


async def test_v1_heartbeat_gives_up_a_silent_client(
    gateway_factory: Callable[..., Gateway],
) -> None:
    gateway = gateway_factory(WSGATEWAY_PING_INTERVAL="0.3", WSGATEWAY_PING_TIMEOUT="0.3")
    async with gateway.connect(*ANN, **V1) as v1:
        await v1.recv()
        for _ in range(3):  # answered, it stays
            assert json.loads(await asyncio.wait_for(v1.recv(), 10)) == {"type": "ping"}
            await v1.send('{"type":"pong"}')
        await asyncio.wait_for(v1.wait_closed(), 10)  # unanswered, it does not
        assert v1.close_code == 4012


def test_unknown_and_impossible_settings_stop_the_server_with_one_clear_line() -> None:
    import subprocess
    import sys

    from tests.support import ROOT

    env = site_env(DEBUG="1", SECRET_KEY="x", WSGATEWAY_WINDOW="none")
    done = subprocess.run(
        [sys.executable, "manage.py", "check"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "WSGATEWAY_WINDOW" in done.stderr
