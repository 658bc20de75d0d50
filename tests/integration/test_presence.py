"""What presence costs: subscriptions, round trips, and nothing while sockets connect."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator

from tests.acceptance.proxy import proxy_to
from tests.contract.test_presence import Sockets
from tests.support import ROOT, Gateway, until, wait_for
from wsgateway import presence, send
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.hub import Hub
from wsgateway.protocol.endpoint import RawEndpoint
from wsgateway.protocol.subjects import Inbox
from wsgateway.routing import websocket_urlpatterns

USERS = 10_000
SERVICE = "service1"


@pytest.fixture
def monitored(tmp_path: Path, settings: Any, prefix: str) -> Any:
    """A server of the test's own that counts; returns how to ask it."""
    port = free_port()
    config = {"http": f"127.0.0.1:{port}"}
    with EmbeddedServer(tmp_path / "nats", sync_interval="10s", config=config) as server:
        settings.PUBSUB_BROKER = "nats"
        settings.NATS_BROKER_URL = server.url
        settings.WSGATEWAY_PREFIX = prefix

        def ask(path: str) -> dict[str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            connection.close()
            return answer

        yield ask
        runtime.stop_background()


@asynccontextmanager
async def gateway_hub() -> AsyncIterator[Hub]:
    """A gateway in this process."""
    hub = Hub(Connection(asyncio.get_running_loop(), broker_from_settings(wsgateway_settings)))
    await hub.open()
    try:
        await hub.broker.wait_ready(20)
        await hub.presence.listed()
        yield hub
    finally:
        await hub.close()


async def test_connected_user_costs_one_more_subscription_and_nothing_else(monitored: Any) -> None:
    """At the server: one for the user's live messages, and one for presence."""

    def subscriptions() -> int:
        return int(monitored("/subsz")["num_subscriptions"])

    async def settled(expected: int) -> None:
        await hub.broker.in_effect()
        what = f"{expected} subscriptions"
        await until(lambda: subscriptions() == expected, what=what)

    async with gateway_hub() as hub:
        sockets = Sockets()
        # What the first socket needs besides, and what the hub begins with, is not what counts
        await (await sockets.open(hub, "first")).stop()
        before, streams = await at_rest(subscriptions), monitored("/jsz")["messages"]
        opened = [await sockets.open(hub, f"user{n}") for n in range(200)]
        opened += [await sockets.open(hub, f"user{n}") for n in range(200)]
        await settled(before + 2 * 200)
        assert monitored("/jsz")["messages"] - streams <= 1  # and our entry in the roster
        held = [hub.presence.hold(Inbox(SERVICE, f"user{n}")) for n in range(USERS)]
        await settled(before + 2 * 200 + USERS)
        for each in held:
            each.close()
        for session in opened:
            await session.stop()
        await settled(before)


async def at_rest(count: Callable[[], int]) -> int:
    """Return *count* once it has been the same ten times."""
    found = [count()]
    async with asyncio.timeout(30):
        while len(found) < 10 or len(set(found[-10:])) > 1:
            await asyncio.sleep(0.02)
            found.append(count())
    return found[-1]


async def test_hundred_lookups_take_one_round_trips_time(
    nats_settings: Any, nats_server: EmbeddedServer
) -> None:
    """Each piece that goes through the proxy takes so long; a hundred would take 100 times that."""
    pause = 0.1
    async with gateway_hub() as hub, proxy_to(nats_server.port) as proxy:
        sockets = Sockets()
        names = [f"user{n}" for n in range(100)]
        for name in names[::2]:
            await sockets.open(hub, name)
        nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{proxy.port}"
        nats_settings.WSGATEWAY_NATS_IGNORE_DISCOVERED = True
        runtime.reset()
        await presence.agateways()  # connects
        proxy.pause = pause
        one = await timed(lambda: presence.ais_online(SERVICE, "user1"))
        hundred = await timed(lambda: presence.aare_online(SERVICE, names))
        connections = await timed(
            lambda: presence.aconnections_of((SERVICE, name) for name in names)
        )
        assert one >= 2 * pause
        assert hundred < one + 3 * pause
        assert connections < one + 6 * pause
        proxy.pause = 0
        found = await presence.aare_online(SERVICE, names)
        assert found == {name: n % 2 == 0 for n, name in enumerate(names)}


async def timed(ask: Callable[[], Any]) -> float:
    """Return how long *ask* takes, seconds; the median of a few."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        await ask()
        times.append(time.monotonic() - began)
    return statistics.median(times)


async def test_connecting_waits_for_no_answer_about_presence(
    nats_settings: Any, nats_server: EmbeddedServer
) -> None:
    """A new socket waits for its cursor: for one round trip, as before there was presence."""
    pause = 0.2
    async with proxy_to(nats_server.port) as proxy:
        nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{proxy.port}"
        nats_settings.WSGATEWAY_NATS_IGNORE_DISCOVERED = True
        async with gateway_hub() as hub:
            proxy.pause = pause
            began = time.monotonic()
            await Sockets().open(hub, "ann", kind=RawEndpoint)
            took = time.monotonic() - began
            proxy.pause = 0
            assert 2 * pause <= took < 4 * pause
            assert await presence.ais_online(SERVICE, "ann") is True


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
@pytest.mark.parametrize("v1", [False, True], ids=["raw", "v1"])
async def test_socket_is_known_once_it_is_open_and_no_longer_once_it_is_closed(
    gateway_factory: Callable[..., Gateway], broker: NatsBroker, server: str, v1: bool
) -> None:
    """The first socket of a gateway, too: it is in the roster before it lets anybody in."""
    gateway = gateway_factory(server)
    options: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]} if v1 else {}
    options["user_agent_header"] = "tests/1"
    for _ in range(3):
        async with gateway.connect("orders", "ann", query="?device=d", **options) as ws:
            if v1:
                await ws.recv()
            [found] = await presence.aconnections("orders", "ann")
            assert found.gateway in await broker.roster.members("gateway")
            assert (found.address, found.user_agent, found.device) == ("127.0.0.1", "tests/1", "d")
            assert found.protocol == ("wsgateway.v1" if v1 else "")
            assert await presence.ais_online("orders", "ann") is True
        await until_online(False, "ann")


async def until_online(online: bool | None, user: str) -> None:
    deadline = time.monotonic() + 20
    while await presence.ais_online("orders", user) is not online:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_several_event_loops_of_a_process_are_several_gateways(nats_settings: Any) -> None:
    ready, done = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def serve() -> None:
        async with gateway_hub() as hub:
            await Sockets().open(hub, "ann")
            loop.call_soon_threadsafe(ready.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(done.wait(), loop))

    async with gateway_hub() as hub:
        await Sockets().open(hub, "ann")
        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, serve()))
        await ready.wait()
        found = await presence.aconnections(SERVICE, "ann")
        assert len(found) == len({each.gateway for each in found}) == 2
        gateways = await presence.agateways()
        assert len(gateways) == 2
        assert len({each.pid for each in gateways}) == 1
        assert (await presence.acounts()).users == {SERVICE: 1}
        done.set()
        await thread
        assert len(await presence.aconnections(SERVICE, "ann")) == 1


async def test_gateway_that_may_not_write_the_roster_serves_sockets_all_the_same(
    nats_settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(kind: str, id: str, details: object) -> None:
        raise BrokerUnavailable("not now")

    connection = Connection(asyncio.get_running_loop(), broker_from_settings(wsgateway_settings))
    monkeypatch.setattr(connection.broker.roster, "join", refuse)
    hub = Hub(connection)
    await hub.open()
    await hub.broker.wait_ready(20)
    await hub.presence.listed()
    await until(lambda: "not in the roster yet: not now" in caplog.text)
    await Sockets().open(hub, "ann")
    assert await presence.ais_online(SERVICE, "ann") is True
    await hub.close()


def test_nobody_is_offline_while_a_frozen_server_keeps_the_gateways_unknown(
    own_server: EmbeddedServer, settings: Any, prefix: str
) -> None:
    """A process that had not asked before took everybody for offline."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_PREFIX = prefix
    send("orders", "ann", text="connected")
    own_server.pause()
    try:
        for ask in (presence.is_online, presence.connections):
            with pytest.raises(BrokerUnavailable, match="'gateway' exist is not known"):
                ask("orders", "ann")
    finally:
        own_server.resume()
    wait_for(lambda: presence.is_online("orders", "ann") is False)
    runtime.stop_background()


@pytest.mark.parametrize("is_djangos", [False, True], ids=["own loop", "async_to_sync"])
def test_socket_of_a_projects_own_test_in_memory(settings: Any, is_djangos: bool) -> None:
    """In a loop of its own, and in one that Django makes for an asynchronous test.

    The user is the test's own: the memory of this process may hold messages for others.
    """
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    runtime.reset()

    async def talk() -> None:
        client = WebsocketCommunicator(
            URLRouter(websocket_urlpatterns), "/ws/orders/", headers=[(b"cookie", b"user=own")]
        )
        assert await presence.ais_online("orders", "own") is False
        assert await client.connect(timeout=20) == (True, None)
        assert await presence.ais_online("orders", "own") is True
        assert await asyncio.to_thread(presence.is_online, "orders", "own") is True
        assert (await presence.acounts()).users == {"orders": 1}
        assert await presence.adisconnect("orders", "own") == presence.Disconnected(1)
        assert await client.receive_output(timeout=20) == {
            "type": "websocket.close",
            "code": 1008,
            "reason": "disconnected by an operator",
        }
        assert await presence.ais_online("orders", "own") is False
        await client.disconnect()

    if is_djangos:
        async_to_sync(talk)()
    else:
        asyncio.run(talk())
    runtime.reset()


async def test_nats_own_command_line_as_documented(
    nats_settings: Any, nats_server: EmbeddedServer, nats_command: str
) -> None:
    """Each line of docs/reference/presence.md, with names of ours."""
    async with gateway_hub() as hub:
        await Sockets().open(hub, "ann", service="orders")
        page = (ROOT / "docs/reference/presence.md").read_text()
        lines = re.findall(r"^nats (.*?) +# ", page, re.M)
        assert len(lines) == 4
        prefix, upper = hub.broker.subjects.prefix, hub.broker.subjects.upper
        found = []
        for line in lines:
            ours = line.replace("web1-4711-a3f0", hub.gateway_id).replace(" ws.", f" {prefix}.")
            command = [nats_command, "--server", nats_server.url, *shlex.split(ours)]
            command = [word.replace("WS_ROSTER", f"{upper}_ROSTER") for word in command]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=20
            )
            assert done.returncode == 0, done.stderr
            found.append(done.stdout)
        assert json.loads(found[0]) == {"gateway": hub.gateway_id, "sockets": 1}
        assert '"user_agent":"Firefox' in found[1]
        assert json.loads(found[2])["sockets"] == 1
        assert f"gateway.{hub.gateway_id}" in found[3]


async def test_code_of_the_page_runs(
    nats_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/how-to/presence.md, block by block, with two users who are online."""
    page = (ROOT / "docs/how-to/presence.md").read_text()
    ask, silence, disconnect, drain = re.findall(r"```python\n(.*?)```", page, re.S)
    async with gateway_hub() as hub:
        sockets = Sockets()
        for user, device in (("ann", "laptop"), ("ann", "phone"), ("carol", "phone")):
            await sockets.open(hub, user, service="orders", device=device)
        names: dict[str, Any] = {}

        async def run(code: str) -> str:
            await asyncio.to_thread(exec, code.replace("web1-4711-a3f0", hub.gateway_id), names)
            return capsys.readouterr().out

        shown = (await run(ask)).splitlines()
        assert [line.split()[0] for line in shown] == ["laptop", "phone"]
        assert await run(silence) == ""
        await run(disconnect)
        await until(lambda: sockets.codes["ann"] == [4505])
        assert (await run(drain)).split()[0] == hub.gateway_id
        assert hub.draining
