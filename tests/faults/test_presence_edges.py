"""Who came online and who went offline, while gateways and ``runevents`` are killed: counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.proxy import Balancer, listening
from tests.faults.test_service_database import end_connections
from tests.support import Gateway, PostgresServer, Process, site_env, until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.client import Backoff, Client, ClientState, connect

USERS = 40
GRACE = 4.0
QUICK = Backoff(initial=0.05, factor=1.5, cap=0.5)
Gateways = Callable[..., Gateway]

pytestmark = [pytest.mark.timeout(120), pytest.mark.long]


class Events(Process):
    """``manage.py runevents`` with receivers that write into a file."""

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        self.ready_file = folder / f"{name}.ready"
        command = [sys.executable, "manage.py", "runevents", "--noreload"]
        command += ["--ready-file", str(self.ready_file)]
        super().__init__(command, folder / f"{name}.log", env)

    async def start(self) -> Events:
        self.ready_file.unlink(missing_ok=True)
        await asyncio.to_thread(self.spawn)
        await until(lambda: self.ready_file.exists() or self._ended(), 30, "ready")
        return self

    @property
    def is_active(self) -> bool:
        lines = [line for line in self.output.splitlines() if line.startswith("events: ")]
        states = [line for line in lines if line in ("events: active", "events: standing by")]
        return states[-1:] == ["events: active"]


class Log:
    """The signals that were sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def count(self, name: str) -> Counter[str]:
        """Return how often each user had a signal."""
        return Counter(line["user"] for line in self.lines if line["signal"] == name)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "signals.log")


@pytest.fixture
def runevents(
    tmp_path: Path, nats_server: EmbeddedServer, prefix: str, log: Log
) -> Iterator[Callable[..., Events]]:
    made: list[Events] = []

    def make(**env: str) -> Events:
        values = {
            "DEBUG": "1",
            "SECRET_KEY": "tests",
            "DJANGO_SETTINGS_MODULE": "tests.presence_app.settings",
            "NATS_BROKER_URL": nats_server.url,
            "WSGATEWAY_PREFIX": prefix,
            "WSGATEWAY_OFFLINE_GRACE": str(GRACE),
            "WSGATEWAY_ROSTER_TTL": "4",
            "SIGNALS_LOG": str(log.path),
            "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
            **env,
        }
        process = Events(tmp_path, f"events{len(made)}", site_env(**values))
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()


@pytest.fixture
async def balancer() -> AsyncIterator[Balancer]:
    numbers = random.Random(3)
    async with listening(Balancer([], numbers.choice)) as made:
        yield made


@contextlib.asynccontextmanager
async def clients(
    balancer: Balancer, names: list[str], **options: Any
) -> AsyncIterator[list[Client]]:
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name in names:
            headers = {"Cookie": f"service=faults; user={name}"}
            url = f"ws://127.0.0.1:{balancer.port}/ws/faults/{name}/"
            client = connect(url, additional_headers=headers, backoff=QUICK, **options)
            made.append(await stack.enter_async_context(client))
        yield made


NAMES = [f"u{number}" for number in range(USERS)]
ONCE = Counter(NAMES)
ROSTER = {"WSGATEWAY_ROSTER_TTL": "4"}


async def test_a_rolling_restart_is_an_edge_for_nobody(
    gateway_factory: Gateways, runevents: Callable[..., Events], balancer: Balancer, log: Log
) -> None:
    gateways = [gateway_factory(WSGATEWAY_DRAIN_RATE="20", **ROSTER) for _ in range(2)]
    balancer.targets = [gateway.port for gateway in gateways]
    await runevents().start()
    async with clients(balancer, NAMES) as made:
        await until(lambda: log.count("user_online") == ONCE)
        for gateway in gateways:
            balancer.targets = [each.port for each in gateways if each is not gateway]
            await asyncio.to_thread(gateway.stop)
            await asyncio.to_thread(gateway.start)
            balancer.targets = [each.port for each in gateways]
            await until(lambda: all(client.state is ClientState.OPEN for client in made))
        await asyncio.sleep(GRACE + 4.0)  # anybody who went offline would be known by now
        assert log.count("user_offline") == Counter()
        assert log.count("user_online") == ONCE
    await until(lambda: log.count("user_offline") == ONCE)
    assert log.count("user_online") == ONCE


async def test_the_users_of_a_killed_gateway_go_offline_once_unless_they_come_back(
    gateway_factory: Gateways, runevents: Callable[..., Events], balancer: Balancer, log: Log
) -> None:
    kept, killed = (gateway_factory(**ROSTER) for _ in range(2))
    balancer.targets = [kept.port]
    await runevents().start()
    stay, gone = NAMES[: USERS // 2], NAMES[USERS // 2 :]
    back = gone[: USERS // 4]
    async with clients(balancer, stay):
        balancer.targets = [killed.port]
        async with contextlib.AsyncExitStack() as stack:
            returning = await stack.enter_async_context(clients(balancer, back))
            await stack.enter_async_context(clients(balancer, [n for n in gone if n not in back]))
            await until(lambda: log.count("user_online") == ONCE)
            balancer.targets = []  # nobody comes back
            killed.kill()
            begin = time.monotonic()
            away = [name for name in gone if name not in back]
            async with clients_when(kept, balancer, back):
                await until(lambda: log.count("user_offline") == Counter(away))
                took = time.monotonic() - begin
                assert GRACE - 0.5 <= took < GRACE + 4.0
                assert log.count("user_online") == ONCE
                assert len(returning) == len(back)
                await asyncio.sleep(3.0)
                assert log.count("user_offline") == Counter(away)


@contextlib.asynccontextmanager
async def clients_when(
    gateway: Gateway, balancer: Balancer, names: list[str]
) -> AsyncIterator[None]:
    """Connect *names* to *gateway* directly, whatever the balancer does."""
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(gateway.connect("faults", name))
        yield


async def test_another_goes_on_when_the_active_process_is_killed_or_frozen(
    gateway_factory: Gateways, runevents: Callable[..., Events], balancer: Balancer, log: Log
) -> None:
    gateway = gateway_factory(**ROSTER)
    balancer.targets = [gateway.port]
    first = await runevents().start()
    await until(lambda: first.is_active)
    second = await runevents().start()
    async with clients(balancer, NAMES):
        await until(lambda: log.count("user_online") == ONCE)
        first.send(signal.SIGSTOP)
        await until(lambda: second.is_active, 20)
    # Those who leave now are the second one's; the first wakes, and must not speak
    first.send(signal.SIGCONT)
    await until(lambda: log.count("user_offline") == ONCE, 20)
    await asyncio.sleep(2.0)
    assert log.count("user_offline") == log.count("user_online") == ONCE
    pids = {line["pid"] for line in log.lines if line["signal"] == "user_offline"}
    assert pids == {second.pid}
    second.kill()
    await until(lambda: first.output.count("events: active") == 2, 20)
    async with clients(balancer, ["late"]):
        await until(lambda: log.count("user_online")["late"] == 1)


async def test_a_process_that_ends_hands_over_at_once(
    gateway_factory: Gateways, runevents: Callable[..., Events], balancer: Balancer, log: Log
) -> None:
    gateway = gateway_factory(**ROSTER)
    balancer.targets = [gateway.port]
    first = await runevents().start()
    await until(lambda: first.is_active)
    second = await runevents().start()
    async with clients(balancer, NAMES):
        await until(lambda: log.count("user_online") == ONCE)
    await until(lambda: sum(log.count("socket_disconnected").values()) == USERS)
    await asyncio.to_thread(first.stop)  # in the grace period: the edges are the second one's
    await until(lambda: second.is_active, 3)
    await until(lambda: log.count("user_offline") == ONCE)
    assert "events: ended" in first.output


async def test_clients_watch_users_of_a_killed_and_of_a_frozen_gateway(
    gateway_factory: Gateways, balancer: Balancer
) -> None:
    rights = {"WSGATEWAY_MAY_WATCH": "tests.presence_app.rights.may_watch", **ROSTER}
    watched_by, killed = gateway_factory(**rights), gateway_factory(**rights)
    seen: list[tuple[float, bool | None]] = []

    def on_presence(presence: Any) -> None:
        seen.append((time.monotonic(), presence.online))

    balancer.targets = [watched_by.port]
    async with clients(balancer, ["ann"], on_presence=on_presence) as [ann]:
        async with killed.connect("faults", "bob"):
            assert await ann.watch("bob") is True
            killed.send(signal.SIGSTOP)
            await until(lambda: seen[-1][1] is None, 10)
            killed.send(signal.SIGCONT)
            await until(lambda: seen[-1][1] is True, 10)
            killed.kill()
            begin = time.monotonic()
            await until(lambda: seen[-1][1] is False, 10)
            assert seen[-1][0] - begin < 2.0
        assert [online for _, online in seen] == [True, None, True, False]


async def test_users_of_a_frozen_gateway_are_offline_once_nobody_expects_it_any_more(
    gateway_factory: Gateways, runevents: Callable[..., Events], balancer: Balancer, log: Log
) -> None:
    frozen, other = (gateway_factory(**ROSTER) for _ in range(2))
    await runevents(WSGATEWAY_OFFLINE_GRACE="0.5").start()
    stay, gone = NAMES[: USERS // 2], NAMES[USERS // 2 :]
    async with contextlib.AsyncExitStack() as stack:
        for name in stay:
            await stack.enter_async_context(other.connect("faults", name))
        for name in gone:
            await stack.enter_async_context(frozen.connect("faults", name))
        await until(lambda: log.count("user_online") == ONCE)
        frozen.send(signal.SIGSTOP)
        begin = time.monotonic()
        await until(lambda: log.count("user_offline") == Counter(gone))
        assert time.monotonic() - begin > 3.0  # WSGATEWAY_ROSTER_TTL is 4 s, written each 0.8 s
        frozen.send(signal.SIGCONT)
        await until(lambda: log.count("user_online") == ONCE + Counter(gone))
        await asyncio.sleep(2.0)
        assert log.count("user_offline") == Counter(gone)


async def test_a_restart_of_nats_is_an_edge_for_nobody(
    gateway_factory: Gateways,
    runevents: Callable[..., Events],
    own_server: EmbeddedServer,
    log: Log,
) -> None:
    url = own_server.url
    gateways = [gateway_factory(NATS_BROKER_URL=url, **ROSTER) for _ in range(2)]
    process = await runevents(NATS_BROKER_URL=url).start()
    async with contextlib.AsyncExitStack() as stack:
        for number, name in enumerate(NAMES):
            await stack.enter_async_context(gateways[number % 2].connect("faults", name))
        await until(lambda: log.count("user_online") == ONCE)
        await asyncio.to_thread(own_server.kill)
        await asyncio.sleep(1.0)
        await own_server.astart()
        await until(lambda: process.is_active)
        await asyncio.sleep(GRACE + 4.0)
        assert log.count("user_offline") == Counter()
        assert log.count("user_online") == ONCE
    await until(lambda: log.count("user_offline") == ONCE)


async def test_receivers_get_new_connections_after_the_database_ended_theirs(
    gateway_factory: Gateways,
    runevents: Callable[..., Events],
    own_postgresql: PostgresServer,
    log: Log,
) -> None:
    gateway = gateway_factory()
    url = f"{own_postgresql.url}/postgres"
    await runevents(DATABASE_URL=url, SIGNALS_QUERY="1").start()
    for name in ("before", "after"):
        async with gateway.connect("faults", name):
            for kind in ("sync query", "async query"):
                await until(lambda kind=kind, name=name: log.count(kind)[name] == 1, 20)
        await asyncio.to_thread(end_connections, url)


async def test_edges_and_watches_are_exact_in_a_cluster_that_loses_a_node(
    gateway_factory: Gateways,
    runevents: Callable[..., Events],
    nats_cluster: Cluster,
    balancer: Balancer,
    log: Log,
) -> None:
    """Events, interest and answers take different routes between the nodes."""
    # The lease must outlive an election of its stream's leader
    env = {"WSGATEWAY_ROSTER_TTL": "15", "WSGATEWAY_REPLICAS": "3"}
    rights = {"WSGATEWAY_MAY_WATCH": "tests.presence_app.rights.may_watch"}
    one, two, three = nats_cluster.urls
    watched_by = await asyncio.to_thread(
        gateway_factory, NATS_BROKER_URL=one, WSGATEWAY_NATS_IGNORE_DISCOVERED="1", **env, **rights
    )
    other = await asyncio.to_thread(
        gateway_factory, NATS_BROKER_URL=two, WSGATEWAY_NATS_IGNORE_DISCOVERED="1", **env
    )
    await runevents(NATS_BROKER_URL=f"{three},{one}", **env).start()
    seen: list[bool | None] = []
    balancer.targets = [watched_by.port]
    async with (
        clients(balancer, ["ann"], on_presence=lambda p: seen.append(p.online)) as [ann],
        other.connect("faults", "u1"),
    ):
        assert await ann.watch("bob") is False
        for _ in range(15):
            async with other.connect("faults", "bob"):
                await until(lambda: seen[-1] is True, 5)
            await until(lambda: seen[-1] is False, 5)
        assert seen == [False, *[True, False] * 15]
        await until(lambda: log.count("user_offline")["bob"] == 1)
        nodes = dict(zip(nats_cluster.urls, nats_cluster, strict=True))
        await asyncio.to_thread(nodes[three].kill)  # the one of runevents
        try:
            async with other.connect("faults", "u2"):
                await until(lambda: log.count("user_online")["u2"] == 1, 40)
            await until(lambda: log.count("user_offline")["u2"] == 1, 40)
        finally:
            await nodes[three].astart()
    expected = Counter(ann=1, u1=1, bob=1, u2=1)
    assert log.count("user_online") == expected
    await until(lambda: log.count("user_offline") == expected)
