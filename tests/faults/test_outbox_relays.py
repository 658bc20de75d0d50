"""Relays killed with SIGKILL: every committed message once, in order per user."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.proxy import proxy_to
from tests.faults.traffic import broker_at
from tests.support import Process, site_env, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.subjects import Inbox

USERS, EACH = 10, 60
TOTAL = USERS * EACH


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'db.sqlite3'}"


@pytest.fixture
def environment(tmp_path: Path, nats_server: EmbeddedServer, prefix: str) -> dict[str, str]:
    return site_env(
        DEBUG="1",
        SECRET_KEY="tests",
        DJANGO_SETTINGS_MODULE="tests.service_app.settings",
        NATS_BROKER_URL=nats_server.url,
        WSGATEWAY_PREFIX=prefix,
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def make(env: dict[str, str], *command: str) -> Process:
        log = tmp_path / f"process{len(started)}.log"
        process = Process([sys.executable, *command], log, env)
        process.spawn()
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()


async def until_relayed(broker: NatsBroker) -> None:
    """Wait until the stream holds the last message of each user."""
    async with asyncio.timeout(40):
        for user in range(USERS):
            inbox = Inbox("orders", f"u{user}")
            while True:
                with contextlib.suppress(BrokerError):
                    found = (await broker.inboxes.read_after(inbox, 0, limit=1000)).messages
                    if found and found[-1].payload == b"%d" % (EACH - 1):
                        break
                await asyncio.sleep(0.05)


RELAY = ("manage.py", "runoutbox", "--interval", "0.02")


@pytest.mark.long
@pytest.mark.parametrize(("database", "relays"), [("sqlite", 1), ("postgresql", 2)])
async def test_killed_relays(
    database: str,
    relays: int,
    request: pytest.FixtureRequest,
    broker: NatsBroker,
    environment: dict[str, str],
    start: Callable[..., Process],
) -> None:
    env = {**environment, "DATABASE_URL": request.getfixturevalue(database)}
    migrate = start(env, "manage.py", "migrate", "wsgateway_outbox", "-v0")
    assert await asyncio.to_thread(migrate.wait, 30) == 0, migrate.output
    running = [start(env, *RELAY) for _ in range(relays)]
    for relay in running:
        await until(lambda relay=relay: "outbox: ready" in relay.output, 20)
    writer = start(env, "-m", "tests.service_app.write_outbox", str(USERS), str(EACH))
    kills = 0
    while (last := (await broker.inboxes.position()).last) < TOTAL:
        if last > TOTAL * (kills + 1) // 4 and kills < 3:
            running[kills % relays].kill()
            running[kills % relays] = start(env, *RELAY)
            kills += 1
        await until(lambda: all(r.running for r in running), 0, running[0].output)
        await asyncio.sleep(0.005)
    assert await asyncio.to_thread(writer.wait, 30) == 0, writer.output
    for relay in running:
        await until(lambda relay=relay: "outbox: ready" in relay.output, 20)
        await asyncio.to_thread(relay.stop)
        assert "Traceback" not in relay.output
    assert kills >= 1
    for user in range(USERS):
        messages = (
            await broker.inboxes.read_after(Inbox("orders", f"u{user}"), 0, limit=1000)
        ).messages
        assert [m.payload for m in messages] == [b"%d" % number for number in range(EACH)]


@pytest.mark.timeout(120)
async def test_broker_that_stops_in_the_middle_of_a_batch(
    postgresql: str,
    own_server: EmbeddedServer,
    environment: dict[str, str],
    start: Callable[..., Process],
    prefix: str,
) -> None:
    """What was stored came back with what was not, and was stored again: 155 of 800."""
    env = {
        **environment,
        "NATS_BROKER_URL": own_server.url,
        "DATABASE_URL": postgresql,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "WSGATEWAY_SERVICES": "orders",
        "WSGATEWAY_DUPLICATE_WINDOW": "1",
        "WSGATEWAY_PUBLISH_TIMEOUT": "1",
        "WSGATEWAY_BROKER_TIMEOUT": "1",
    }
    writer = start(env, "-m", "tests.service_app.write_outbox", str(USERS), str(EACH), "prepare")
    assert await asyncio.to_thread(writer.wait, 60) == 0, writer.output
    async with (
        broker_at([own_server.url], prefix) as broker,
        proxy_to(own_server.port) as proxy,
    ):
        await broker.wait_ready(20)
        proxy.pause = 0.01  # or everything may be relayed before the broker stops
        relay = start({**env, "NATS_BROKER_URL": f"nats://127.0.0.1:{proxy.port}"}, *RELAY)
        while (await broker.inboxes.position()).last < TOTAL // 4:
            assert relay.running, relay.output
        own_server.pause()
        try:
            await until(lambda: "the outbox waits" in relay.output, 30, "the relay has noticed")
        finally:
            own_server.resume()
        proxy.pause = 0.0
        await until_relayed(broker)
        extra = 0
        for user in range(USERS):
            read = await broker.inboxes.read_after(Inbox("orders", f"u{user}"), 0, limit=1000)
            texts = [m.payload for m in read.messages]
            assert list(dict.fromkeys(texts)) == [b"%d" % number for number in range(EACH)]
            extra += len(texts) - EACH
    # Only what was on its way when the broker stopped, one message a user, may be there twice
    assert extra <= USERS, extra
    await asyncio.to_thread(relay.stop)
    assert "Traceback" not in relay.output
