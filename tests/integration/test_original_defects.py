"""What the original gateway got wrong, each shown gone (DESIGN.md, 1)."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.faults.traffic import broker_at
from tests.support import Gateway
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("service1", "ann")


@pytest.fixture
async def broker(gateway: Gateway, nats_server: EmbeddedServer, prefix: str) -> AsyncIterator[Any]:
    async with gateway.connect("service1", "setup"), broker_at([nats_server.url], prefix) as broker:
        yield broker


async def publish(broker: NatsBroker, inbox: Inbox, texts: list[str]) -> None:
    for text in texts:
        await broker.publish(inbox, text.encode())


async def receive(socket: Any, count: int) -> list[str]:
    return [await asyncio.wait_for(socket.recv(), 30) for _ in range(count)]


async def silent(socket: Any, seconds: float = 0.3) -> bool:
    try:
        await asyncio.wait_for(socket.recv(), seconds)
    except TimeoutError:
        return True
    return False


async def test_messages_sent_while_away_arrive(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: 100 messages sent while the client was away, 0 arrive afterwards."""
    async with gateway.connect(*ANN) as socket:
        await publish(broker, ANN, ["before"])
        assert await receive(socket, 1) == ["before"]
    texts = [f"away {number}" for number in range(100)]
    await publish(broker, ANN, texts)
    async with gateway.connect(*ANN) as socket:
        assert await receive(socket, 100) == texts
        assert await silent(socket)


async def test_first_connection_gets_everything_kept(gateway: Gateway, broker: NatsBroker) -> None:
    texts = [f"early {number}" for number in range(300)]  # more than one window
    await publish(broker, ANN, texts)
    async with gateway.connect(*ANN) as socket:
        assert await receive(socket, 300) == texts


async def test_every_message_arrives_after_many_reconnects(
    gateway: Gateway, broker: NatsBroker
) -> None:
    """Original: after 4 reconnects 1 in 5 new messages arrives."""
    for _ in range(5):
        async with gateway.connect(*ANN) as socket:
            await socket.ping()
    async with gateway.connect(*ANN) as socket:
        texts = [f"new {number}" for number in range(50)]
        await publish(broker, ANN, texts)
        assert await receive(socket, 50) == texts


async def test_two_tabs_both_get_everything(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: two tabs of one user split the messages."""
    async with gateway.connect(*ANN) as one, gateway.connect(*ANN) as two:
        texts = [f"both {number}" for number in range(50)]
        await publish(broker, ANN, texts)
        assert await receive(one, 50) == texts
        assert await receive(two, 50) == texts


async def test_devices_have_cursors_of_their_own(gateway: Gateway, broker: NatsBroker) -> None:
    async with gateway.connect(*ANN, query="?device=laptop") as laptop:
        await publish(broker, ANN, ["one", "two"])
        assert await receive(laptop, 2) == ["one", "two"]
    async with gateway.connect(*ANN, query="?device=phone") as phone:
        assert await receive(phone, 2) == ["one", "two"]
    async with gateway.connect(*ANN, query="?device=laptop") as laptop:
        assert await silent(laptop)


async def test_similar_names_do_not_share_mail(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: users ``k.z`` and ``k-z`` read each other's mail."""
    names = ("k.z", "k-z", "k_z", "a b", "a.b", "*", ">", "x")
    async with contextlib.AsyncExitStack() as stack:
        sockets = {}
        for name in names:
            cookie = {"Cookie": f'service=service1; user="{name}"'}
            connect = gateway.connect("", "", path="/ws/service1/", additional_headers=cookie)
            sockets[name] = await stack.enter_async_context(connect)
        for name in names:
            await publish(broker, Inbox("service1", name), [f"for {name}"])
        for name, socket in sockets.items():
            assert await receive(socket, 1) == [f"for {name}"]
        assert all(await asyncio.gather(*map(silent, sockets.values())))


async def test_idle_socket_still_hears(
    gateway_factory: Callable[..., Gateway], nats_server: EmbeddedServer, prefix: str
) -> None:
    """Original: a socket goes deaf after 300 s, when its fetch times out; here sweeps,
    pings and every time-out pass many times."""
    gateway = gateway_factory(
        WSGATEWAY_SWEEP_INTERVAL="0.1",
        WSGATEWAY_BROKER_TIMEOUT="0.3",
        WSGATEWAY_CURSOR_INTERVAL="0.1",
    )
    async with gateway.connect(*ANN) as socket, broker_at([nats_server.url], prefix) as broker:
        for text in ("one", "two"):
            await asyncio.sleep(1.5)
            await publish(broker, ANN, [text])
            assert await receive(socket, 1) == [text]


async def test_plain_http_request_harms_nothing(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: a plain HTTP request ends the whole server."""

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(gateway.http(path), timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    async with gateway.connect(*ANN) as socket:
        assert await asyncio.to_thread(status, "/ws/service1/ann/") == 404
        assert await asyncio.to_thread(status, "/healthz") == 200
        await publish(broker, ANN, ["still here"])
        assert await receive(socket, 1) == ["still here"]


async def test_missing_cookie_is_refused(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: a missing cookie crashes the handler."""
    for headers in ({}, {"Cookie": "service=service1"}, {"Cookie": ";;="}):
        async with gateway.connect(
            "", "", path="/ws/service1/", additional_headers=headers
        ) as socket:
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == 1008
    async with gateway.connect(*ANN) as socket:
        await publish(broker, ANN, ["still here"])
        assert await receive(socket, 1) == ["still here"]
    assert "Traceback" not in gateway.output


async def test_thousand_users_need_no_consumer(gateway: Gateway, broker: NatsBroker) -> None:
    """Original: NATS refuses its 1,001st client, one durable consumer each."""
    sockets = await asyncio.gather(
        *(gateway.connect("service1", f"u{number}") for number in range(1100))
    )
    try:
        for name in (broker.subjects.stream("recv"), broker.subjects.queue("service1")):
            info = await broker.jetstream.api(f"STREAM.INFO.{name}")
            assert info["state"]["consumer_count"] == 0
        await publish(broker, Inbox("service1", "u1099"), ["hello"])
        assert await receive(sockets[1099], 1) == ["hello"]
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
