"""Handlers whose database ends their connections, or restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.faults.test_service_workers import WorkerProcess, lines, worker
from tests.support import PostgresServer, until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import deadletters

__all__ = ["worker"]  # a fixture

USERS = 5


def end_connections(url: str) -> int:
    """End all connections but this one; return how many there were."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    connection.close()
    return len(found)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("service", ["queries", "async_queries"])
async def test_handlers_get_new_connections_after_the_database_ended_theirs(
    broker: NatsBroker,
    worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    own_postgresql: PostgresServer,
    service: str,
) -> None:
    """An asynchronous handler kept its dead connection: from then on, each message failed until
    it was in the dead letters.
    """
    url = f"{own_postgresql.url}/postgres"

    async def offer_and_wait(number: int) -> None:
        for user in range(USERS):
            frame = Frame.of(str(number))
            await broker.offer(Inbox(service, f"u{user}"), frame, f"{user}-{number}")
        expected = USERS * (number + 1)
        await until(lambda: len(lines(tmp_path, "end")) == expected, 20, f"round {number}")

    process = await worker(service, DATABASE_URL=url).start()
    await offer_and_wait(0)
    assert await asyncio.to_thread(end_connections, url) > 0
    await offer_and_wait(1)
    await asyncio.to_thread(own_postgresql.stop)
    await asyncio.to_thread(own_postgresql.start)
    await offer_and_wait(2)
    assert [letter async for letter in deadletters.letters(broker)] == []
    process.stop()
    backends = {pid for pid, *_ in lines(tmp_path, "end")}
    if service == "async_queries":  # one thread, whose connection lives on between messages
        assert len(backends) == 3
