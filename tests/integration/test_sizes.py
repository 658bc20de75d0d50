"""The largest messages: what a welcome promises travels, in every encoding, on every server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.faults.traffic import stored
from tests.support import ROOT, SERVERS, Gateway, until
from tests.troubleshooting import Symptom
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.readiness import OFFER_HEADERS
from wsgateway.client import Backoff, Client, ClientState, GatewayError
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import largest_message

Factory = Callable[..., Gateway]
ANN = Inbox("orders", "ann")
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
SIZE = 1_000_000
"""The default of WSGATEWAY_MAX_MESSAGE_SIZE."""
LARGEST: dict[str, str | bytes] = {
    "base64": b"\xff" * SIZE,
    "control characters": "\x01" * SIZE,
    "quotes": '"' * SIZE,
    "two bytes each": "é" * (SIZE // 2),
    "four bytes each": "😀" * (SIZE // 4),
}


@contextlib.asynccontextmanager
async def client_of(gateway: Gateway, **options: Any) -> AsyncIterator[tuple[Client, list[Any]]]:
    """Return ann's client, and its states."""
    states: list[Any] = []
    client = Client(
        gateway.ws("/ws/orders/ann/"),
        additional_headers={"Cookie": "service=orders; user=ann"},
        backoff=Backoff(0.05, cap=0.2),
        on_state=states.append,
        proxy=None,
        **options,
    )
    try:
        yield client, states
    finally:
        await client.close()


@pytest.mark.parametrize("server", SERVERS)
async def test_largest_message_travels_in_every_encoding(
    gateway_factory: Factory, broker: NatsBroker, server: str
) -> None:
    """On daphne, such a frame exceeded 1 MiB both ways: the clients came back and sent it again."""
    gateway = gateway_factory(server)
    async with client_of(gateway) as (client, states), asyncio.timeout(25):
        await client.open()
        for kind, data in LARGEST.items():
            await client.send(data, id=kind.replace(" ", "-"))
        with pytest.raises(GatewayError) as caught:
            await client.send('"' * (SIZE + 1))
        assert caught.value.code == "too_big"
        text = f"message of {SIZE + 1} bytes exceeds the gateway's limit of {SIZE} bytes"
        assert str(caught.value) == text
        await client.send("the queue goes on")
        for data in LARGEST.values():
            await broker.publish(ANN, data.encode() if isinstance(data, str) else data)
        for data in LARGEST.values():
            assert (await client.recv()).data == data
        assert states == [ClientState.CONNECTING, ClientState.OPEN]
    sent = [data.encode() if isinstance(data, str) else data for data in LARGEST.values()]
    assert await stored(broker, "send", ANN) == [*sent, b"the queue goes on"]


async def test_client_that_escapes_every_character_can_send_the_largest_message(
    gateway: Gateway, broker: NatsBroker
) -> None:
    async with gateway.connect(*ANN, **V1) as v1:
        promise = json.loads(await v1.recv())["max_message_size"]
        await v1.send('{"type":"message","id":"a","data":"%s"}' % ("\\u0061" * promise))
        assert json.loads(await asyncio.wait_for(v1.recv(), 10)) == {"type": "ack", "id": "a"}
    assert await stored(broker, "send", ANN) == [b"a" * SIZE]


async def test_message_that_is_larger_than_clients_may_send_is_delivered(
    gateway_factory: Factory, broker: NatsBroker
) -> None:
    """Whatever NATS stores is delivered: autobahn refused to send more than daphne receives."""
    gateway = gateway_factory(WSGATEWAY_MAX_MESSAGE_SIZE="1000")
    async with client_of(gateway) as (client, states), asyncio.timeout(15):
        await client.open()
        data = "\x01" * 1_040_000
        await broker.jetstream.publish(broker.subjects.recv(ANN), data.encode())
        assert (await client.recv()).data == data
        assert states == [ClientState.CONNECTING, ClientState.OPEN]


async def test_node_sends_and_receives_the_largest_messages(
    gateway: Gateway, broker: NatsBroker, settings: Any
) -> None:
    """It came back for ever; what it had queued before the welcome was sent again each time."""
    settings.SECRET_KEY = "tests"
    node = shutil.which("node")
    assert node, "this test needs Node.js"
    url = gateway.ws(f"/ws/orders/?token={make_token('orders', 'ann')}")
    process = await asyncio.create_subprocess_exec(
        *(node, "--experimental-websocket", "--no-warnings", str(ROOT / "tests/js/sizes.mjs")),
        *(url, str(SIZE)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        async with asyncio.timeout(25):
            report = json.loads(await process.stdout.readline())
            assert report == {"codes": ["too_big", "too_big"], "states": ["connecting", "open"]}
            payloads = await stored(broker, "send", ANN)
            assert payloads[:5] == [
                data.encode() if isinstance(data, str) else data for data in LARGEST.values()
            ]
            assert len(payloads) == 6
            for payload in payloads:
                await broker.publish(ANN, payload)
            report = json.loads(await process.stdout.readline())
            assert report == {"same": [True] * 6, "states": ["connecting", "open", "closed"]}
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_message_queued_before_the_limit_was_known_is_refused_alone(
    gateway: Gateway, broker: NatsBroker
) -> None:
    async with client_of(gateway) as (client, states), asyncio.timeout(15):
        sends = [asyncio.create_task(client.send(data)) for data in ("a", bytes(SIZE + 1), "b")]
        await asyncio.sleep(0)
        await client.open()
        first, second, third = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(second, GatewayError)
        assert (second.code, second.temporary) == ("too_big", False)
        assert isinstance(first, str)
        assert isinstance(third, str)
        assert states == [ClientState.CONNECTING, ClientState.OPEN]
    assert await stored(broker, "send", ANN) == [b"a", b"b"]


async def test_limit_of_the_client_itself_ends_it_with_the_reason(
    gateway: Gateway, broker: NatsBroker
) -> None:
    """It closed with 1009, took that for a lost connection, and came back for ever."""
    async with client_of(gateway, max_size=1000) as (client, _), asyncio.timeout(15):
        await client.open()
        await broker.publish(ANN, bytes(2000), kind="binary")
        with pytest.raises(GatewayError, match=r"1009 .*max_size") as caught:
            await client.recv()
        assert caught.value.close_code == 1009


# -- limits that do not fit ----------------------------------------------------------------


@pytest.mark.troubleshooting(
    "uvicorn takes websocket frames of … bytes, so wsgateway.v1 clients may send messages of … "
    "bytes only"
)
async def test_limit_of_uvicorn_is_kept_and_the_log_says_what_to_do(
    gateway_factory: Factory, broker: NatsBroker, symptom: Symptom
) -> None:
    gateway = gateway_factory("uvicorn --ws-max-size 1000000")
    symptom.must_show_in(gateway.output)
    assert (
        "uvicorn takes websocket frames of 1000000 bytes, so wsgateway.v1 clients may send "
        "messages of 165984 bytes only, not of WSGATEWAY_MAX_MESSAGE_SIZE (1000000). Start "
        "uvicorn with --ws-max-size 6004096, or lower the setting"
    ) in gateway.output
    async with client_of(gateway) as (client, states), asyncio.timeout(15):
        await client.open()
        assert client.welcome is not None
        promise = client.welcome.max_message_size
        assert promise == largest_message(1_000_000) == 165_984
        await client.send("\x01" * promise)
        with pytest.raises(GatewayError, match="exceeds the gateway's limit of 165984 bytes"):
            await client.send("\x01" * (promise + 1))
        assert states == [ClientState.CONNECTING, ClientState.OPEN]


async def test_uvicorns_default_limit_needs_no_warning(gateway_factory: Factory) -> None:
    assert "--ws-max-size" not in gateway_factory("uvicorn").output


@pytest.mark.troubleshooting(
    "takes messages of … bytes with their headers, so clients may send … bytes only, not "
    "WSGATEWAY_MAX_MESSAGE_SIZE"
)
async def test_limit_of_nats_is_kept_and_the_log_says_what_to_do(
    gateway_factory: Factory, tmp_path: Path, settings: Any, symptom: Symptom
) -> None:
    """The welcome promised what NATS refused. The longest names leave the least room."""
    settings.SECRET_KEY = "tests"
    user, device = "ü" * 127, "ö" * 127
    query = f"?token={make_token('orders', user)}&device={quote(device)}"
    with EmbeddedServer(tmp_path, max_payload=65536, sync_interval="10s") as server:
        gateway = gateway_factory(NATS_BROKER_URL=server.url)
        async with gateway.connect(*ANN, path="/ws/orders/", query=query, **V1) as v1:
            welcome = json.loads(await v1.recv())
            assert (welcome["user"], welcome["device"]) == (user, device)
            promise = welcome["max_message_size"]
            assert promise == 65536 - OFFER_HEADERS
            id = "i" * 64
            frame = {"type": "message", "id": id, "request": True, "data": "x" * promise}
            await v1.send(json.dumps(frame))
            assert json.loads(await asyncio.wait_for(v1.recv(), 10)) == {"type": "ack", "id": id}
            await v1.send(json.dumps({**frame, "id": "j", "data": "x" * (promise + 1)}))
            refusal = json.loads(await asyncio.wait_for(v1.recv(), 10))
            assert (refusal["code"], refusal["temporary"]) == ("too_big", False)
        symptom.must_show_in(gateway.output)
        assert (
            "takes messages of 65536 bytes with their headers, so clients may send 61440 bytes "
            "only, not WSGATEWAY_MAX_MESSAGE_SIZE (1000000). Set max_payload to 1004096 or more "
            "in the server's configuration, or lower the setting"
        ) in gateway.output


async def test_daphne_behind_unknown_middleware_promises_what_it_takes(
    gateway_factory: Factory, broker: NatsBroker
) -> None:
    """There daphne's own limit holds. A larger message is skipped; it ended every connection."""
    gateway = gateway_factory(application="tests.asgi_apps:unknown_middleware")
    async with client_of(gateway) as (client, states), asyncio.timeout(15):
        await client.open()
        assert client.welcome is not None
        promise = client.welcome.max_message_size
        assert promise == largest_message(1024 * 1024)
        await client.send("\x01" * promise)
        await broker.publish(ANN, bytes(SIZE), kind="binary")
        await broker.publish(ANN, b"the next one")
        assert (await client.recv()).data == "the next one"
        assert states == [ClientState.CONNECTING, ClientState.OPEN]
    await until(lambda: "skipped message" in gateway.output, what="the log")
