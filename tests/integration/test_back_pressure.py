"""Publishers wait for a server that reads too slowly, and hear from the transport when to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.authority import Authority
from tests.integration.test_auth_tls import server
from tests.support import until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.connection import ConnectionOptions, NatsConnection
from wsgateway.broker.nats.handshake import DirectClient

AT_ONCE = 100_000
"""Bytes of a message."""


@pytest.fixture(params=["clear", "tls"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[EmbeddedServer, NatsConnection]]:
    """A server, and a connection to it that is not open."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    tls = request.param == "tls"
    config = {"tls": {"cert_file": certificate, "key_file": key}} if tls else {}
    with server(tmp_path, **config) as nats:
        trusted = str(authority.path) if tls else ""
        yield nats, NatsConnection(ConnectionOptions((nats.url,), timeout=20.0, tls_ca=trusted))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each look into a connection's buffers found, where anything was.

    A connection that another test has left to the process may look, too; nothing waits in it.
    """
    found: list[int] = []
    buffered: property = vars(DirectClient)["buffered"]

    def look(client: DirectClient) -> int:
        size = int(buffered.__get__(client))
        if size:
            found.append(size)
        return size

    monkeypatch.setattr(DirectClient, "buffered", property(look))
    return found


async def fill(connection: NatsConnection, subject: str) -> None:
    """Publish until the kernel takes nothing more and much waits.

    The kernel's buffers grow, so it may take more a moment later.
    """
    quiet = 0
    while quiet < 5:
        quiet += 1
        while not connection.is_crowded:
            connection.publish(subject, bytes(AT_ONCE))
            await asyncio.sleep(0)
            quiet = 0
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("then", ["reads", "dies"])
def test_pressure_waits_for_the_transport(
    served: tuple[EmbeddedServer, NatsConnection],
    looks: list[int],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    then: str,
) -> None:
    """It looked at the buffers every millisecond, once for each who waited."""
    nats, connection = served

    async def wait() -> None:
        await connection.open()
        await connection.ready()
        nats.pause()
        await fill(connection, "x")
        waiting = [asyncio.create_task(connection.pressure()) for _ in range(3)]
        await until(lambda: len(looks) > 3, what="all have begun to wait")
        looks.clear()
        await asyncio.sleep(0.3)  # nothing happens; a poll would look some hundred times
        assert not any(task.done() for task in waiting)
        assert len(looks) <= 6
        if then == "reads":
            nats.resume()
        else:
            await asyncio.to_thread(nats.kill)
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        if then == "reads":
            assert not connection.is_crowded
            await connection.confirm()
            assert connection.times_connected == 1
        await connection.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(wait())
