"""One connection: kept up, restored before it is announced, closed without leaving anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support import hears, until
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats import connection as connection_module
from wsgateway.broker.nats.connection import ConnectionOptions, ConnectionState, NatsConnection
from wsgateway.exceptions import BrokerClosed, BrokerUnavailable
from wsgateway.protocol.backoff import Backoff

FAST = Backoff(0.01, 2.0, 0.1)


@asynccontextmanager
async def connected(*urls: str, **options: Any) -> AsyncIterator[NatsConnection]:
    connection = NatsConnection(
        ConnectionOptions(urls, backoff=FAST, **{"timeout": 20.0, **options})
    )
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


def collect(connection: NatsConnection, subject: str, queue: str = "") -> list[bytes]:
    seen: list[bytes] = []
    connection.subscribe(subject, lambda _s, _r, data, _h: seen.append(data), queue)
    return seen


async def test_order_is_kept_over_subscriptions(nats_server: EmbeddedServer, prefix: str) -> None:
    """nats-py has a queue and a task for each subscription, which reorders them."""
    async with connected(nats_server.url) as connection:
        seen: list[bytes] = []
        for number in range(3):
            connection.subscribe(f"{prefix}.{number}", lambda _s, _r, data, _h: seen.append(data))
        await connection.ready()
        await connection.confirm()
        for number in range(300):
            connection.publish(f"{prefix}.{number % 3}", b"%d" % number)
        await connection.confirm()
        assert seen == [b"%d" % number for number in range(300)]


async def test_subscriptions_are_back_before_it_is_announced(
    own_server: EmbeddedServer, prefix: str
) -> None:
    async with connected(own_server.url) as connection, connected(own_server.url) as other:
        seen = collect(connection, f"{prefix}.kept")
        ended: list[bytes] = []
        end = connection.subscribe(f"{prefix}.ended", lambda _s, _r, data, _h: ended.append(data))
        await connection.ready()
        await other.ready()
        opened: list[int] = []
        lost: list[str] = []
        connection.on_open(lambda: opened.append(connection.times_connected))
        connection.on_lost(lambda: lost.append("lost"))
        await asyncio.to_thread(own_server.kill)
        await until(lambda: lost and not other.is_open, what="the loss")
        with pytest.raises(BrokerUnavailable, match="cannot reach NATS"):
            connection.publish(f"{prefix}.kept", b"lost")
        end.close()
        late = collect(connection, f"{prefix}.late")
        await own_server.astart()
        await connection.ready()
        await other.ready()
        for name in ("kept", "late", "ended"):
            other.publish(f"{prefix}.{name}", b"x")
        await until(lambda: seen and late, what="both subscriptions")
        assert (seen, late, ended) == ([b"x"], [b"x"], [])
        assert opened == [2]
        assert lost == ["lost"]


async def test_closed_subscription_hears_nothing_more(
    nats_server: EmbeddedServer, prefix: str
) -> None:
    async with connected(nats_server.url) as connection:
        seen: list[bytes] = []

        def once(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
            seen.append(data)
            subscription.close()

        subscription = connection.subscribe(prefix, once)
        await connection.ready()
        for number in range(10):
            connection.publish(prefix, b"%d" % number)
        await connection.confirm()
        subscription.close()
        assert seen == [b"0"]


async def test_queue_group_gives_each_message_to_one(
    nats_server: EmbeddedServer, prefix: str
) -> None:
    async with connected(nats_server.url) as connection, connected(nats_server.url) as other:
        mine, theirs = collect(connection, prefix, "q"), collect(other, prefix, "q")
        for each in (connection, other):
            await each.ready()
            await each.confirm()
        for number in range(100):
            connection.publish(prefix, b"%d" % number)
        await until(lambda: len(mine) + len(theirs) == 100, what="all")
        assert sorted(map(int, mine + theirs)) == list(range(100))


async def test_server_that_stops_answering_is_left(own_server: EmbeddedServer) -> None:
    """A half-dead server keeps the connection open; only a ping shows it."""
    async with connected(
        own_server.url, ping_interval=0.1, timeout=0.3, connect_timeout=0.2
    ) as connection:
        await connection.ready(20)
        async with hears(connection.on_lost):
            own_server.pause()
        with pytest.raises(BrokerUnavailable, match="no answer"):
            await connection.ready(0.05)
        own_server.resume()
        await connection.ready(20)
        assert connection.times_connected >= 2


async def test_request_without_anybody_there(nats_server: EmbeddedServer, prefix: str) -> None:
    async with connected(nats_server.url) as connection:
        await connection.ready()
        with pytest.raises(BrokerUnavailable, match=f"nobody answers on {prefix}"):
            await connection.request(prefix, b"x")
        collect(connection, prefix)  # listens, but does not answer
        with pytest.raises(BrokerUnavailable, match=r"no answer on .* within 0\.1 s"):
            await connection.request(prefix, b"x", timeout=0.1)
        assert not connection.requests_waiting


async def test_requests_fail_at_once_when_the_connection_is_lost(
    own_server: EmbeddedServer, prefix: str
) -> None:
    async with connected(own_server.url) as connection:
        await connection.ready()
        collect(connection, prefix)
        requests = [
            asyncio.create_task(connection.request(prefix, b"x", timeout=60)) for _ in range(5)
        ]
        await connection.confirm()
        await asyncio.to_thread(own_server.kill)
        done, _ = await asyncio.wait(requests, timeout=20)
        assert [type(task.exception()) for task in done] == [BrokerUnavailable] * 5


async def test_close_fails_everybody_who_waits(own_server: EmbeddedServer, prefix: str) -> None:
    connection = NatsConnection(ConnectionOptions((own_server.url,), timeout=60.0))
    await connection.open()
    await connection.ready()
    collect(connection, prefix)
    request = asyncio.create_task(connection.request(prefix, b"x"))
    await connection.confirm()
    await connection.close()
    with pytest.raises(BrokerClosed):
        await asyncio.wait_for(request, 10)
    never = NatsConnection(ConnectionOptions((f"nats://127.0.0.1:{free_port()}",), timeout=60.0))
    await never.open()
    waiter = asyncio.create_task(never.ready())
    await asyncio.sleep(0.05)
    await never.close()
    with pytest.raises(BrokerClosed):
        await asyncio.wait_for(waiter, 10)
    for each in (connection, never):
        assert each.state is ConnectionState.CLOSED
        await each.close()
        with pytest.raises(BrokerClosed):
            each.subscribe("x", lambda *_: None)
        with pytest.raises(BrokerClosed):
            each.publish("x", b"")
        with pytest.raises(BrokerClosed):
            await each.open()
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in left if name.startswith("wsgateway")}


async def test_no_server_is_one_line_not_one_a_try(caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with connected(f"nats://user:secret@{address}") as connection:
        with pytest.raises(BrokerUnavailable) as error:
            await connection.ready(0.5)
    lines = [r.getMessage() for r in caplog.records if r.levelname != "DEBUG"]
    assert len(lines) == 1
    assert lines[0].startswith(f"cannot reach NATS at {address}: connection refused (1 attempt in ")
    assert "secret" not in caplog.text + str(error.value)
    assert "NATS_BROKER_URL" in str(error.value)


def flood(connection: NatsConnection, subject: str) -> None:
    for _ in range(100):
        connection.publish(subject, bytes(500_000))


async def test_server_that_does_not_read_is_no_reason_to_fill_memory(
    own_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "OUTBOUND_LIMIT", 4_000_000)
    async with connected(own_server.url) as connection:
        await connection.ready()
        own_server.pause()
        try:
            with pytest.raises(BrokerUnavailable, match="does not read"):
                flood(connection, prefix)
        finally:
            own_server.resume()
        await connection.confirm()  # it reads again, and nothing is lost that was accepted


async def test_cancelled_waits_leave_nothing_behind(
    nats_server: EmbeddedServer, prefix: str
) -> None:
    async with connected(nats_server.url) as connection:
        await connection.ready()
        collect(connection, prefix)
        calls: list[Callable[[], Any]] = [
            lambda: connection.request(prefix, b"x"),
            connection.confirm,
            connection.pressure,
        ]
        for call in calls:
            for steps in range(5):
                task = asyncio.ensure_future(call())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
        assert not connection.requests_waiting
        await connection.confirm()
        assert connection.times_connected == 1


@pytest.mark.parametrize("attempt", [0, 1, 5, 1000])
def test_backoff_is_jittered_and_capped(attempt: int) -> None:
    delays = {Backoff(0.1, 2.0, 3.0, jitter=0.5).delay(attempt) for _ in range(50)}
    longest = min(3.0, 0.1 * 2 ** min(attempt, 10))
    assert len(delays) > 1
    assert all(longest / 2 <= delay <= longest for delay in delays)


async def test_address_never_shows_a_password() -> None:
    connection = NatsConnection(
        ConnectionOptions(("nats://u:p@h1:4222", "tls://tok@h2:4222", "nats://h3:1"))
    )
    assert connection.address == "h1:4222, h2:4222, h3:1"
