"""Presence while gateways are killed, frozen, cut off and drained: never a wrong answer."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.acceptance.proxy import Balancer, Proxy, listening, proxy_to
from tests.support import Gateway, until
from wsgateway import presence
from wsgateway.broker import runtime
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.inquiry import PATIENCE
from wsgateway.client import Backoff, Client, ClientState

Gateways = Callable[..., Gateway]
Settings = Any
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
SERVICE = "faults"
TTL = 4.0
"""WSGATEWAY_ROSTER_TTL here, so that the tests need not wait for the default."""
WITHIN = 1.0
"""Seconds after which an answer must be true, whatever has happened to a gateway."""


@pytest.fixture(autouse=True)
def asks(nats_settings: Settings) -> Settings:
    """Presence is asked in this process, over the same server and prefix as the gateways."""
    nats_settings.WSGATEWAY_ROSTER_TTL = TTL
    return nats_settings


class Fleet:
    """Gateways, their sockets, and what presence must say of them."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self.gateways = gateways
        self.ids: dict[Gateway, str] = {}
        self.sockets: dict[Gateway, list[tuple[str, ClientConnection]]] = {}
        self.opened: list[ClientConnection] = []

    async def begin(self) -> None:
        for gateway in self.gateways:
            self.sockets[gateway] = []
        found = await true_soon(lambda found: len(found) == len(self.gateways), presence.agateways)
        by_pid = {each.pid: each.id for each in found}
        self.ids = {gateway: by_pid[gateway.pid] for gateway in self.gateways}

    async def open(self, gateway: Gateway, user: str, **options: Any) -> ClientConnection:
        socket = await gateway.connect(SERVICE, user, **options)
        if options:  # v1: until its welcome, a broker that goes away ends it, with "come again"
            assert json.loads(await socket.recv())["type"] == "welcome"
        self.sockets[gateway].append((user, socket))
        self.opened.append(socket)
        return socket

    async def open_many(self, count: int) -> None:
        """Open sockets of users *count* apart on each gateway, raw and v1; one user is on all."""
        for at, gateway in enumerate(self.gateways):
            for n in range(count):
                await self.open(gateway, f"g{at}u{n}", **(V1 if n % 2 else {}))
            await self.open(gateway, "everywhere", **V1)

    def users(self, *gateways: Gateway) -> dict[str, int]:
        """Return how many sockets each user has on some gateways."""
        found: dict[str, int] = {}
        for gateway in gateways:
            for user, _ in self.sockets[gateway]:
                found[user] = found.get(user, 0) + 1
        return found

    async def require_exact(self, *gateways: Gateway, silent: tuple[Gateway, ...] = ()) -> None:
        """Fail unless presence says exactly what *gateways* hold, and who is silent.

        On a busy machine, a gateway that runs may count as silent, too. Then it is asked again: an
        answer that does not name a gateway must have all of its sockets.
        """
        expected = self.users(*gateways)
        names = tuple(sorted(self.ids[gateway] for gateway in silent))
        everybody = self.users(*self.gateways)

        async def ask() -> Any:
            # Together: each waits for the silent, who count as gone after a while
            return await asyncio.gather(
                presence.aonline(SERVICE),
                presence.acounts(),
                presence.aare_online(SERVICE, everybody),
                presence.aconnections_of((SERVICE, user) for user in everybody),
            )

        def nobody_else_is_silent(answers: Any) -> bool:
            page, counts, _, found = answers
            told = [page.silent, counts.silent, *(each.silent for each in found.values())]
            return {name for each in told for name in each} <= set(names)

        page, counts, online, found = await true_soon(nobody_else_is_silent, ask)
        assert page == presence.Page(dict(sorted(expected.items())), None, names)
        sockets = {SERVICE: sum(expected.values())} if expected else {}
        users = {SERVICE: len(expected)} if expected else {}
        assert counts == presence.Counts(sockets, users, len(gateways), names)
        unknown = self.users(*silent).keys() - expected.keys()
        assert online == {
            user: True if user in expected else None if user in unknown else False
            for user in everybody
        }
        for (_, user), connections in found.items():
            assert len(connections) == expected.get(user, 0)
            asked = user in expected or user in unknown
            assert connections.silent == (names if asked else ())

    async def counts(self) -> presence.Counts:
        """Return what presence counts; fail, with the reason, if a socket was closed."""
        for user, socket in itertools.chain(*self.sockets.values()):
            assert socket.close_code is None, (user, socket.close_code, socket.close_reason)
        return await presence.acounts()

    async def close(self) -> None:
        for socket in self.opened:
            socket.transport.abort()
        await asyncio.gather(*(socket.wait_closed() for socket in self.opened))


async def true_soon(
    condition: Callable[[Any], object], ask: Callable[[], Awaitable[Any]], within: float = 20.0
) -> Any:
    """Ask until *condition* holds for the answer; fail after *within* seconds."""
    deadline = time.monotonic() + within
    while not condition(answer := await ask()):
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.02)
    return answer


@pytest.fixture
async def fleet(gateway_factory: Gateways) -> AsyncIterator[Fleet]:
    """Three gateways with sockets, on daphne and uvicorn."""
    servers = ["daphne", "uvicorn", "daphne"]
    made = [
        await asyncio.to_thread(gateway_factory, server, WSGATEWAY_ROSTER_TTL=str(TTL))
        for server in servers
    ]
    fleet = Fleet(made)
    await fleet.begin()
    await fleet.open_many(4)
    await fleet.require_exact(*made)
    yield fleet
    await fleet.close()


async def test_truth_within_a_second_after_sigkill(fleet: Fleet) -> None:
    one, two, three = fleet.gateways
    for victim, left in ((two, (one, three)), (one, (three,))):
        began = time.monotonic()
        victim.kill()
        async with asyncio.timeout(WITHIN):
            gone = f"g{fleet.gateways.index(victim)}u0"
            while await presence.ais_online(SERVICE, gone) is not False:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began < WITHIN
        await fleet.require_exact(*left)
    assert {each.id for each in await presence.agateways()} == {fleet.ids[three]}
    # A new one takes its place, and counts
    await asyncio.to_thread(one.start)
    fleet.sockets[one].clear()
    await true_soon(lambda found: len(found) == 2, presence.agateways)
    await fleet.open(one, "g0u0")
    await fleet.require_exact(one, three)


async def test_frozen_gateway_is_unknown_then_gone_then_back(fleet: Fleet) -> None:
    one, two, three = fleet.gateways
    two.send(signal.SIGSTOP)
    frozen_at = time.monotonic()
    try:
        await fleet.require_exact(one, three, silent=(two,))
        assert (await presence.agateways()).silent == (fleet.ids[two],)
        await true_soon(lambda found: found.complete, presence.agateways, TTL + 2.0)
        settled = time.monotonic() - frozen_at
        assert settled < TTL + 1.5
        await fleet.require_exact(one, three)  # counts as gone
    finally:
        two.send(signal.SIGCONT)
    await true_soon(lambda found: len(found) == 3, presence.agateways)
    await fleet.require_exact(one, two, three)


async def test_disconnect_while_a_gateway_is_frozen_says_so(fleet: Fleet) -> None:
    one, two, _ = fleet.gateways
    two.send(signal.SIGSTOP)
    try:
        done = await presence.adisconnect(SERVICE, "everywhere", reason="out")
        assert done == presence.Disconnected(2, (fleet.ids[two],))
        assert await presence.ais_online(SERVICE, "everywhere") is None
    finally:
        two.send(signal.SIGCONT)
    # It got the request, and does as it was told
    await true_soon(
        lambda online: online is False, lambda: presence.ais_online(SERVICE, "everywhere")
    )
    for gateway in fleet.gateways:
        [socket] = [socket for user, socket in fleet.sockets[gateway] if user == "everywhere"]
        await asyncio.wait_for(socket.wait_closed(), 20)
        assert (socket.close_code, socket.close_reason) == (4505, "out")
        fleet.sockets[gateway] = [s for s in fleet.sockets[gateway] if s[0] != "everywhere"]
    await fleet.require_exact(*fleet.gateways)
    assert one.running


async def test_disconnected_client_stays_away(fleet: Fleet) -> None:
    gateway, states = fleet.gateways[0], list[ClientState]()
    headers = {"Cookie": f"service={SERVICE}; user=kicked"}
    url = gateway.ws(f"/ws/{SERVICE}/kicked/")
    async with Client(url, additional_headers=headers, on_state=states.append):
        await true_soon(bool, lambda: presence.ais_online(SERVICE, "kicked"))
        assert await presence.adisconnect(SERVICE, "kicked") == presence.Disconnected(1)
        await until(lambda: states[-1] is ClientState.CLOSED, what="the client gave up")
    assert states.count(ClientState.OPEN) == 1
    assert await presence.ais_online(SERVICE, "kicked") is False


async def test_drained_gateway_lets_go_says_so_and_keeps_answering(
    gateway_factory: Gateways,
) -> None:
    drained, other = [
        await asyncio.to_thread(
            gateway_factory, server, WSGATEWAY_DRAIN_RATE="20", WSGATEWAY_ROSTER_TTL=str(TTL)
        )
        for server in ("daphne", "uvicorn")
    ]
    fleet = Fleet([drained, other])
    await fleet.begin()
    await fleet.open_many(20)
    assert readyz(drained) == 200
    began = time.monotonic()
    assert await presence.adrain(fleet.ids[drained]) is True
    assert readyz(drained) == 503
    found = {each.id: each for each in await presence.agateways()}
    assert found[fleet.ids[drained]].draining
    assert not found[fleet.ids[other]].draining
    ended = [socket for _, socket in fleet.sockets[drained]]
    words = await asyncio.gather(*map(last_words, ended))
    took = time.monotonic() - began
    assert 0.9 < took < 10  # 21 sockets, 20 a second
    assert {code for code, _ in words} == {4001, 1012}
    assert {after for code, after in words if code == 4001} == {0}  # the closing was spread
    fleet.sockets[drained].clear()
    await fleet.require_exact(drained, other)
    async with drained.connect(SERVICE, "late", **V1) as late:
        await asyncio.wait_for(late.wait_closed(), 20)
        assert late.close_code == 4001
    assert http_status(drained, "/healthz") == 200
    assert readyz(other) == 200
    await asyncio.to_thread(drained.stop)
    assert {each.id for each in await presence.agateways()} == {fleet.ids[other]}
    await fleet.close()


async def test_clients_of_a_drained_gateway_go_to_the_other(gateway_factory: Gateways) -> None:
    """A load balancer asks /readyz; until it notices, clients are sent back, and try again."""
    gateways = [
        await asyncio.to_thread(gateway_factory, WSGATEWAY_DRAIN_RATE="30") for _ in range(2)
    ]
    fleet = Fleet(gateways)
    await fleet.begin()
    drained, other = gateways
    async with (
        listening(Balancer([g.port for g in gateways], random.choice)) as balancer,
        contextlib.AsyncExitStack() as clients,
    ):
        for n in range(30):
            headers = {"Cookie": f"service={SERVICE}; user=u{n}"}
            url = f"ws://127.0.0.1:{balancer.port}/ws/{SERVICE}/u{n}/"
            client = Client(url, additional_headers=headers, backoff=Backoff(0.1, cap=0.5))
            await clients.enter_async_context(client)
        everybody = presence.Counts({SERVICE: 30}, {SERVICE: 30}, 2)
        await true_soon(lambda counts: counts == everybody, presence.acounts)
        assert await presence.adrain(fleet.ids[drained]) is True
        await asyncio.sleep(0.5)  # the balancer's interval
        balancer.targets = [g.port for g in gateways if readyz(g) == 200]
        assert balancer.targets == [other.port]
        await true_soon(
            lambda found: (
                [(g.id, g.sockets) for g in found if g.sockets] == [(fleet.ids[other], 30)]
            ),
            presence.agateways,
            30,
        )
        assert await presence.acounts() == everybody
        assert len((await presence.aonline(SERVICE)).users) == 30
    await true_soon(lambda counts: counts == presence.Counts({}, {}, 2), presence.acounts)


async def test_sigterm_while_it_drains_ends_the_rest_at_once(gateway_factory: Gateways) -> None:
    gateway = await asyncio.to_thread(gateway_factory, WSGATEWAY_DRAIN_RATE="1")
    fleet = Fleet([gateway])
    await fleet.begin()
    await fleet.open_many(20)
    assert await presence.adrain(fleet.ids[gateway]) is True
    words = asyncio.gather(*(last_words(socket) for _, socket in fleet.sockets[gateway]))
    began = time.monotonic()
    await asyncio.to_thread(gateway.stop)
    assert {code for code, _ in await words} == {4001, 1012}
    assert time.monotonic() - began < 6
    delays = [after for code, after in await words if code == 4001 and after is not None]
    assert max(delays) > 1  # they do not come back all at once
    assert "Traceback" not in gateway.output


async def last_words(socket: ClientConnection) -> tuple[int | None, float | None]:
    """Read to the end; return the close code, and when the client is to come back."""
    after = None
    with contextlib.suppress(ConnectionClosed):
        async for text in socket:
            after = json.loads(text).get("reconnect_after", after)
    return socket.close_code, after


def http_status(gateway: Gateway, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def readyz(gateway: Gateway) -> int:
    return http_status(gateway, "/readyz")


# -- the way to the broker -----------------------------------------------------------------


@pytest.fixture
async def behind_a_proxy(
    gateway_factory: Gateways, nats_server: EmbeddedServer
) -> AsyncIterator[tuple[Fleet, Proxy]]:
    """Two gateways, the second of which reaches the broker through a proxy."""
    async with proxy_to(nats_server.port) as proxy:
        near = await asyncio.to_thread(gateway_factory, WSGATEWAY_ROSTER_TTL=str(TTL))
        far = await asyncio.to_thread(
            gateway_factory,
            NATS_BROKER_URL=f"nats://127.0.0.1:{proxy.port}",
            WSGATEWAY_ROSTER_TTL=str(TTL),
            WSGATEWAY_NATS_IGNORE_DISCOVERED="1",
        )
        fleet = Fleet([near, far])
        await fleet.begin()
        await fleet.open_many(4)
        await fleet.require_exact(near, far)
        yield fleet, proxy
        await fleet.close()


async def test_gateway_behind_a_lost_network_is_unknown_then_gone_then_back(
    behind_a_proxy: tuple[Fleet, Proxy],
) -> None:
    fleet, proxy = behind_a_proxy
    near, far = fleet.gateways
    proxy.deaf = True
    lost_at = time.monotonic()
    await fleet.require_exact(near, silent=(far,))
    await true_soon(lambda found: found.complete, presence.agateways, TTL + 2.0)
    assert time.monotonic() - lost_at < TTL + 1.5
    await fleet.require_exact(near)
    proxy.deaf = False
    await true_soon(lambda found: len(found) == 2, presence.agateways, 60)
    await true_soon(
        lambda counts: counts.sockets == {SERVICE: 10}, presence.acounts, 60
    )  # its sockets stayed open
    await fleet.require_exact(near, far)


async def test_gateway_that_reconnects_answers_again(behind_a_proxy: tuple[Fleet, Proxy]) -> None:
    """A closed connection is what a killed process leaves, too: who lost it counts as gone."""
    fleet, proxy = behind_a_proxy
    near, far = fleet.gateways
    for _ in range(3):
        await proxy.cut()
        await true_soon(lambda c: c.sockets == {SERVICE: 10} and c.complete, fleet.counts, 30)
        await fleet.require_exact(near, far)


async def test_server_that_restarts(
    gateway_factory: Gateways, own_server: EmbeddedServer, asks: Settings
) -> None:
    asks.NATS_BROKER_URL = own_server.url
    gateways = [
        await asyncio.to_thread(
            gateway_factory, NATS_BROKER_URL=own_server.url, WSGATEWAY_ROSTER_TTL=str(TTL)
        )
        for _ in range(2)
    ]
    fleet = Fleet(gateways)
    await fleet.begin()
    await fleet.open_many(3)
    await fleet.require_exact(*gateways)
    for _ in range(2):
        await asyncio.to_thread(own_server.kill)
        await own_server.astart()
        await runtime.current().broker.wait_ready(20)
        await true_soon(lambda c: c.sockets == {SERVICE: 8} and c.complete, fleet.counts, 30)
        await fleet.require_exact(*gateways)
    await fleet.close()


async def test_cluster_of_three_nodes(
    gateway_factory: Gateways, nats_cluster: Cluster, asks: Settings
) -> None:
    """Each gateway has its own node, and the one that asks is not on the victim's."""
    asks.NATS_BROKER_URL = nats_cluster.urls[0]
    asks.WSGATEWAY_NATS_IGNORE_DISCOVERED = True
    asks.WSGATEWAY_REPLICAS = 3
    gateways = [
        await asyncio.to_thread(
            gateway_factory,
            NATS_BROKER_URL=url,
            WSGATEWAY_NATS_IGNORE_DISCOVERED="1",
            WSGATEWAY_REPLICAS="3",
            WSGATEWAY_ROSTER_TTL=str(TTL),
        )
        for url in nats_cluster.urls
    ]
    fleet = Fleet(gateways)
    await fleet.begin()
    await fleet.open_many(4)
    await true_soon(lambda c: c.sockets == {SERVICE: 15}, presence.acounts)
    await fleet.require_exact(*gateways)
    one, two, three = gateways
    two.send(signal.SIGSTOP)
    try:
        await fleet.require_exact(one, three, silent=(two,))
    finally:
        two.send(signal.SIGCONT)
    await true_soon(lambda found: found.complete, presence.agateways)
    await fleet.require_exact(*gateways)
    began = time.monotonic()
    three.kill()
    async with asyncio.timeout(WITHIN):
        while await presence.ais_online(SERVICE, "g2u0") is not False:
            await asyncio.sleep(0.01)
    assert time.monotonic() - began < WITHIN
    await fleet.require_exact(one, two)
    assert PATIENCE < WITHIN
    await fleet.close()


async def test_node_of_a_cluster_that_is_killed(
    gateway_factory: Gateways, nats_cluster: Cluster, asks: Settings
) -> None:
    """Gateways on it go to other nodes, and the roster may have to elect a leader."""
    asks.NATS_BROKER_URL = nats_cluster.urls[2]
    asks.WSGATEWAY_NATS_IGNORE_DISCOVERED = True
    asks.WSGATEWAY_REPLICAS = 3
    gateways = [
        await asyncio.to_thread(
            gateway_factory,
            NATS_BROKER_URL=",".join(nats_cluster.urls),
            WSGATEWAY_REPLICAS="3",
            WSGATEWAY_ROSTER_TTL="15",
        )
        for _ in range(3)
    ]
    fleet = Fleet(gateways)
    await fleet.begin()
    await fleet.open_many(4)
    everybody = presence.Counts({SERVICE: 15}, {SERVICE: 13}, 3)
    await true_soon(lambda counts: counts == everybody, presence.acounts)
    node = nats_cluster.nodes[0]
    await asyncio.to_thread(node.kill)
    try:
        await true_soon(lambda counts: counts == everybody, presence.acounts, 40)
        await fleet.require_exact(*gateways)
    finally:
        await node.astart()
    await true_soon(lambda counts: counts == everybody, presence.acounts, 40)
    await fleet.close()
