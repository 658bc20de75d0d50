"""Deploys: a gateway that gets SIGTERM lets its clients go in order, and in time."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.acceptance.proxy import Balancer, listening
from tests.authority import Authority
from tests.faults.traffic import INBOX, broker_at, stored
from tests.soak.__main__ import soak
from tests.support import (
    ROOT,
    SERVERS,
    Gateway,
    Process,
    deaf_socket,
    knock,
    masked,
    running,
    unread,
    until,
)
from wsgateway.broker.base import Broker
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.client import Backoff, Client, GatewayError
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.subjects import Inbox

Gateways = Callable[..., Gateway]
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
DEADLINE = 5.0
"""WSGATEWAY_CLOSE_TIMEOUT, and what the server itself takes."""


async def last_words(connection: ClientConnection) -> tuple[float | None, int | None]:
    """Read to the end; return the delay that the gateway asked for, and the close code."""
    after = None
    try:
        async for text in connection:
            frame = json.loads(text)
            if frame["type"] == "closing":
                after = frame["reconnect_after"]
    except ConnectionClosed:
        pass
    return after, connection.close_code


async def test_clients_are_told_to_come_back_spread_over_a_time(gateway_factory: Gateways) -> None:
    gateway = gateway_factory(WSGATEWAY_DRAIN_RATE="10")
    sockets = [await gateway.connect("faults", f"u{n}", **V1) for n in range(40)]
    for each in sockets:
        assert json.loads(await each.recv())["type"] == "welcome"
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


@pytest.mark.parametrize("server", SERVERS)
async def test_clients_that_do_not_read_do_not_keep_a_gateway(
    server: str, gateway_factory: Gateways, broker: NatsBroker
) -> None:
    """Uvicorn waited for ever until the kernel had taken what waited for such a client."""
    gateway = gateway_factory(server, WSGATEWAY_CURSOR_INTERVAL="3600")
    for user in ("raw", "v1"):
        for number in range(20):
            await broker.publish(Inbox("faults", user), b"x" * 500_000, msg_id=f"{user}{number}")
    with (
        deaf_socket(gateway, "faults", "raw") as raw,
        deaf_socket(gateway, "faults", "v1", v1=True) as v1,
    ):
        for deaf in (raw, v1):
            await until(lambda deaf=deaf: unread(deaf), what="the backlog begins to arrive")
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
    assert "Traceback" not in gateway.output


async def test_client_over_tls_that_does_not_read_does_not_keep_a_gateway(
    gateway_factory: Gateways, broker: NatsBroker, tmp_path: Path
) -> None:
    """TLS has no half-closed connections, so uvicorn waits until everything is read."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway")
    gateway = gateway_factory(f"uvicorn --ssl-certfile {certificate} --ssl-keyfile {key}")
    context = ssl.create_default_context(cafile=str(authority.path))
    for number in range(20):
        await broker.publish(Inbox("faults", "raw"), b"x" * 500_000, msg_id=f"{number}")
    with deaf_socket(gateway, "faults", "raw", context=context) as deaf:
        await until(lambda: unread(deaf), what="the backlog begins to arrive")
        began = time.monotonic()
        await asyncio.to_thread(gateway.stop, 3 * DEADLINE)
        assert time.monotonic() - began < DEADLINE


@pytest.mark.parametrize("server", SERVERS)
async def test_frames_that_a_frozen_broker_does_not_take_do_not_keep_a_gateway(
    server: str, gateway_factory: Gateways, own_server: EmbeddedServer
) -> None:
    """Uvicorn waited for the consumer, and that for NATS, as long as a frame is retried: 25 s.

    Then it waited for cursors and the connection to NATS, each for its own time.
    """
    gateway = gateway_factory(
        server,
        NATS_BROKER_URL=own_server.url,
        WSGATEWAY_SEND_WINDOW="1",
        WSGATEWAY_CURSOR_INTERVAL="3600",
    )
    prefix = gateway.env["WSGATEWAY_PREFIX"]
    async with (
        gateway.connect("faults", "ann", **V1) as ann,
        broker_at([own_server.url], prefix) as broker,
    ):
        assert json.loads(await ann.recv())["type"] == "welcome"
        receipt = await broker.publish(Inbox("faults", "ann"), b"hello")
        assert json.loads(await ann.recv())["data"] == "hello"
        await ann.send(json.dumps({"type": "ack", "offset": receipt.offset}))
        await ann.send(json.dumps({"type": "ping"}))
        assert json.loads(await ann.recv()) == {"type": "pong"}
        await stop_with_frozen_broker(gateway, own_server)


async def stop_with_frozen_broker(gateway: Gateway, own_server: EmbeddedServer) -> None:
    with (
        deaf_socket(gateway, "faults", "raw") as raw,
        deaf_socket(gateway, "faults", "v1", v1=True) as v1,
    ):
        message = '{"type":"message","id":"%d","data":"x"}'
        v1.sendall(masked(message % 1))
        await until(lambda: b'"ack"' in v1.recv(4096), what="the first frame is stored")
        own_server.pause()
        raw.sendall(masked("x") * 5)
        v1.sendall(b"".join(masked(message % number) for number in range(2, 7)))
        v1.sendall(masked("websocket ping"))
        began = time.monotonic()
        await asyncio.to_thread(gateway.stop, 3 * DEADLINE)
        assert time.monotonic() - began < DEADLINE
    own_server.resume()
    assert "Traceback" not in gateway.output


@pytest.mark.parametrize("server", SERVERS)
async def test_handshakes_that_wait_for_a_frozen_broker_do_not_keep_a_gateway(
    server: str, gateway_factory: Gateways, own_server: EmbeddedServer
) -> None:
    """Uvicorn waited as long as what the handshake waited for, and answered 500."""
    gateway = gateway_factory(server, NATS_BROKER_URL=own_server.url)
    async with gateway.connect("faults", "ann", **V1) as ann:
        assert json.loads(await ann.recv())["type"] == "welcome"
        own_server.pause()
        with (
            knock(gateway, "faults", "raw") as raw,
            deaf_socket(gateway, "faults", "v1", v1=True) as v1,
        ):
            # v1 is accepted before its start asks the broker; raw came before
            await stop_during_handshakes(server, gateway, raw, v1)
    own_server.resume()


@pytest.mark.parametrize("server", SERVERS)
async def test_resolver_that_waits_does_not_keep_a_gateway(
    server: str, gateway_factory: Gateways
) -> None:
    """Uvicorn waited for the resolver, and answered 500."""
    gateway = gateway_factory(server, WSGATEWAY_IDENTITY="tests.resolvers.Slow")
    with knock(gateway, "faults", "raw") as raw, knock(gateway, "faults", "v1", v1=True) as v1:
        await until(lambda: gateway.output.count("the resolver waits") == 2, what="handshakes")
        await stop_during_handshakes(server, gateway, raw, v1)


async def stop_during_handshakes(server: str, gateway: Gateway, *sockets: socket.socket) -> None:
    began = time.monotonic()
    await asyncio.to_thread(gateway.stop, 3 * DEADLINE)
    assert time.monotonic() - began < DEADLINE
    if server != "daphne":  # which hangs up
        for each in sockets:
            assert b"shutting down" in everything(each)
    assert "500 Internal Server Error" not in gateway.output
    assert "Traceback" not in gateway.output


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(partial(connection.recv, 4096), b""))


async def cursor(broker: Broker, user: str) -> int:
    await broker.inboxes.position()  # learns the epoch
    return await broker.load_cursor(Inbox("faults", user), "default")


# -- two versions side by side ------------------------------------------------------------

PREVIOUS = "20885d7c50dbb247394ce48b26bf761592f70b76"
"""The last version that kept what clients sent to any service in one stream."""


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The tree of the previous version."""
    folder = tmp_path / "previous"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True)
    if archive.returncode != 0:
        pytest.skip("the previous version is not in this clone's history")
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


class Conversation:
    """A user who sends one message after the other, and is sent some, through *url*."""

    def __init__(self, broker: NatsBroker, url: str) -> None:
        self.broker = broker
        self.accepted: list[bytes] = []
        self.published: list[str] = []
        self.received: list[Any] = []
        cookie = {"Cookie": f"service={INBOX.service}; user={INBOX.user}"}
        fast = Backoff(0.05, cap=0.5)
        self.client = Client(url, additional_headers=cookie, proxy=None, backoff=fast)
        self._stop = asyncio.Event()

    async def send(self) -> None:
        number = 0
        while not self._stop.is_set():
            text = f"up {number}"
            try:
                await self.client.send(text, id=f"id-{number}")
            except GatewayError as exc:
                if not exc.temporary:
                    raise
                await asyncio.sleep(0.1)
                continue
            self.accepted.append(text.encode())
            number += 1

    async def publish(self) -> None:
        subject = self.broker.subjects.recv(INBOX)
        number = 0
        while not self._stop.is_set():
            text = f"down {number}"
            # As any program does that speaks NATS
            await self.broker.jetstream.publish(subject, text.encode(), msg_id=text)
            self.published.append(text)
            number += 1
            await asyncio.sleep(0.005)

    async def receive(self) -> None:
        async for message in self.client:
            self.received.append(message.data)

    async def __aenter__(self) -> Conversation:
        await self.client.open()
        works = (self.send(), self.publish(), self.receive())
        self.tasks = [asyncio.create_task(work) for work in works]
        return self

    async def more(self, count: int = 50) -> None:
        sent, got = len(self.accepted) + count, len(self.received) + count

        def there() -> bool:
            for task in self.tasks:
                if task.done():
                    task.result()
            return len(self.accepted) >= sent and len(self.received) >= got

        await until(there, 30, f"{count} more messages each way")

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop.set()
        await asyncio.gather(*self.tasks[:2])
        await until(lambda: len(self.received) >= len(self.published), 30, "the rest")
        await self.client.close()
        await self.tasks[2]


@pytest.mark.timeout(180)
async def test_two_versions_side_by_side(
    previous: Path, nats_server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """Deploy as docs/how-to/upgrade.md says: new gateways, `setup_streams`, old ones go."""
    env = {
        "NATS_BROKER_URL": nats_server.url,
        "WSGATEWAY_PREFIX": prefix,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
    }
    listed = {**env, "WSGATEWAY_SERVICES": INBOX.service}
    old, new = Gateway(tmp_path, env), Gateway(tmp_path, listed)
    old.cwd = previous
    setup = Process([sys.executable, "manage.py", "setup_streams"], tmp_path / "setup.log", new.env)
    async with (
        broker_at([nats_server.url], prefix) as broker,
        listening(Balancer([], random.choice)) as balancer,
    ):
        with running(old), running(new), running(setup):
            await asyncio.to_thread(old.start)
            balancer.targets = [old.port]
            url = f"ws://127.0.0.1:{balancer.port}/ws/{INBOX.service}/{INBOX.user}/"
            async with Conversation(broker, url) as conversation:
                await conversation.more()
                await asyncio.to_thread(new.start)
                for port in (new.port, old.port, new.port, old.port):
                    balancer.targets = [port]
                    await balancer.cut()
                    await conversation.more()
                setup.spawn()
                assert await asyncio.to_thread(setup.wait, 60) == 0, setup.output
                await conversation.more()
                balancer.targets = [new.port]
                await asyncio.to_thread(old.stop)
                await conversation.more()
        assert conversation.received == conversation.published
        assert await stored(broker, "send") == conversation.accepted
        with pytest.raises(BrokerError):
            await broker.jetstream.api(f"STREAM.INFO.{prefix.upper()}_SEND")
    assert "Traceback" not in old.output + new.output


# -- a rolling restart ---------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_rolling_restart_under_load_loses_nothing(tmp_path: Path) -> None:
    report = await soak(
        tmp_path, 7, seconds=60, most=2, gateways=2, users=6, servers=1, only="roll_gateways"
    )
    assert report.broken == []
    assert report.faults == 2
    assert report.received >= report.published > 100
