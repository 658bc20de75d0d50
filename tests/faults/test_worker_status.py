"""What workers say of themselves: running, frozen, killed, ended."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.test_service_workers import WorkerProcess, send, services, worker
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.status import KIND, Workers, ask_workers

__all__ = ["services", "worker"]  # fixtures


async def workers_of(broker: NatsBroker, *processes: WorkerProcess) -> Workers:
    """Return what is known once these processes have joined."""
    pids = sorted(process.pid for process in processes)
    found = await ask_workers(broker)
    async with asyncio.timeout(20):
        while sorted(each.pid for each in found) != pids:
            await asyncio.sleep(0.02)
            found = await ask_workers(broker)
    assert found.complete
    return found


async def test_nobody_works(broker: NatsBroker) -> None:
    found = await ask_workers(broker)
    assert (found, found.silent, found.complete) == ((), (), True)


async def test_what_each_handles_now_and_has_handled(
    broker: NatsBroker, worker: Callable[..., WorkerProcess]
) -> None:
    one = await worker(SERVICE_PAUSE="60").start()
    before = dt.datetime.now(dt.UTC)
    await broker.offer(Inbox("counted", "ann"), Frame.of("x"), "a")
    receipt = await broker.offer(Inbox("counted", "bob"), Frame.of("y"), "b")
    [status] = await workers_of(broker, one)
    async with asyncio.timeout(20):
        while len((await ask_workers(broker))[0].running) < 2:
            await asyncio.sleep(0.02)
    [status] = await ask_workers(broker)
    assert {(each.service, each.user, each.attempt) for each in status.running} == {
        ("counted", "ann", 1),
        ("counted", "bob", 1),
    }
    assert max(each.offset for each in status.running) == receipt.offset
    assert all(before < each.since <= dt.datetime.now(dt.UTC) for each in status.running)
    assert status.busy == 2
    work = status.services["counted"]
    assert (work.in_hand, work.handled, work.failed) == (2, 0, 0)
    assert work.concurrency == status.concurrency > 0
    assert before - dt.timedelta(seconds=60) < status.started < before


async def test_counts_and_rates_of_two_processes(
    broker: NatsBroker, worker: Callable[..., WorkerProcess]
) -> None:
    one, two = await asyncio.gather(worker().start(), worker("threaded").start())
    await send(broker, "counted", range(5))
    await send(broker, "threaded", range(3))

    async def done() -> bool:
        return sum(each.handled for each in await ask_workers(broker)) == 12 * 8

    async with asyncio.timeout(30):
        while not await done():
            await asyncio.sleep(0.05)
    found = {each.pid: each for each in await workers_of(broker, one, two)}
    assert {pid: list(each.services) for pid, each in found.items()} == {
        one.pid: ["counted"],
        two.pid: ["threaded"],
    }
    assert found[one.pid].handled == found[one.pid].services["counted"].handled == 60
    for each in found.values():
        assert (each.running, each.busy, each.failed, each.retried) == ((), 0, 0, 0)
        assert each.rates["handled"] > 0
        assert each.rates["failed"] == 0


async def test_killed_frozen_and_ended(
    broker: NatsBroker, worker: Callable[..., WorkerProcess]
) -> None:
    """Gone at once after SIGKILL; silent, and named, while frozen; gone after SIGTERM."""
    killed, frozen, ended = await asyncio.gather(*(worker().start() for _ in range(3)))
    ids = {each.pid: each.id for each in await workers_of(broker, killed, frozen, ended)}
    killed.kill()
    begin = time.monotonic()
    await workers_of(broker, frozen, ended)
    assert time.monotonic() - begin < 5.0  # its entry in the roster lasts for 15 s
    frozen.send(signal.SIGSTOP)
    found = await ask_workers(broker)
    assert [each.pid for each in found] == [ended.pid]
    assert found.silent == (ids[frozen.pid],)
    assert not found.complete
    frozen.send(signal.SIGCONT)
    await workers_of(broker, frozen, ended)
    ended.send(signal.SIGTERM)
    assert await asyncio.to_thread(ended.wait) == 0
    await workers_of(broker, frozen)
    assert ids[ended.pid] not in await broker.roster.members(KIND)


async def test_nats_command_line_shows_workers(
    broker: NatsBroker,
    worker: Callable[..., WorkerProcess],
    nats_server: EmbeddedServer,
    nats_command: str,
) -> None:
    one = await worker().start()
    [status] = await workers_of(broker, one)
    await send(broker, "counted", range(2))

    def stats() -> dict[str, dict[str, Any]]:
        command = [nats_command, "--server", nats_server.url, "micro", "stats", "--json"]
        command += ["wsgateway-worker", status.id]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        found = found[0] if isinstance(found, list) else found
        return {each["name"]: each for each in found["endpoints"]}

    async with asyncio.timeout(20):
        while (counted := (await asyncio.to_thread(stats))["counted"])["num_requests"] < 24:
            await asyncio.sleep(0.1)
    assert counted["num_errors"] == 0
    assert counted["average_processing_time"] > 5_000_000  # the handler's pause, nanoseconds
    assert counted["data"]["done"] == 24


STRANGE = {"version": "2", "host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "busy": 0}


LARGE = {
    **dict.fromkeys(("concurrency", "in_hand", "handled", "retried", "rejected", "failed"), 3),
    "rates": {"handled": 10**400},
}


async def test_answer_of_a_newer_version_is_understood(broker: NatsBroker) -> None:
    """While workers are replaced, one that says more than this version knows is not silent."""
    work = dict.fromkeys(("concurrency", "in_hand", "handled", "retried", "rejected", "failed"), 3)
    answer = {
        **STRANGE,
        "new": 1,
        "services": {"orders": {**work, "rates": {"handled": 1}, "new": 1}},
        "running": [
            {
                "service": "orders",
                "user": "ann",
                "offset": 1,
                "attempt": 1,
                "since": "2026-01-01T00:00:00Z",
                "new": 1,
            }
        ],
    }
    with answering(broker, json.dumps(answer).encode()):
        await broker.roster.join(KIND, "strange-1")
        [found] = await ask_workers(broker)
    assert (found.id, found.handled, found.rates) == ("strange-1", 3, {"handled": 1.0})
    assert found.running[0].user == "ann"


@contextmanager
def answering(broker: NatsBroker, answer: bytes) -> Iterator[None]:
    """Answer in the place of a worker."""
    listening = broker.connection.subscribe(
        broker.subjects.member(KIND, "strange-1"),
        lambda _s, reply, *_: broker.connection.publish(reply.decode(), answer),
    )
    yield
    listening.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version": 1}',
        b"\xff",
        json.dumps({**STRANGE, "services": [], "running": []}).encode(),
        json.dumps({**STRANGE, "services": {"x": {"rates": 1}}, "running": []}).encode(),
        json.dumps({**STRANGE, "services": {"x": LARGE}, "running": []}).encode(),
        json.dumps({**STRANGE, "services": {}, "running": [1]}).encode(),
        json.dumps({**STRANGE, "services": {}, "running": [], "pid": "x"}).encode(),
        json.dumps({**STRANGE, "services": {}, "running": [], "started": "now"}).encode(),
    ],
)
async def test_answer_that_means_nothing_counts_as_silence(
    broker: NatsBroker, answer: bytes
) -> None:
    with answering(broker, answer):
        await broker.roster.join(KIND, "strange-1")
        found = await ask_workers(broker)
    assert (found, found.silent) == ((), ("strange-1",))
