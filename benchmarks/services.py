"""Services: handlers a second, client to handler and back, send_many, the outbox.

Beside them the same jobs done by Channels' ``runworker`` on channels_redis and by Celery on
Redis. Every system gets the same jobs, queued before its workers start, and counts them with the
same counter; the rate is that of the jobs between the first and the last tenth.

The guarantees differ: a service's message is replicated on disk, acknowledged after its handler,
and handled in each user's order; ``runworker`` forgets what it has taken; Celery acknowledges
late here, and keeps no order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.layer_peers import Servers, servers
from benchmarks.services_app import ticks
from wsgateway.broker.embedded import free_port

ROOT = Path(__file__).resolve().parent.parent
USERS = 500
PAYLOAD = "x" * 100
SYSTEMS = ["ours", "runworker", "celery"]
COUNTS = {"noop": 10_000, "slow": 3_000, "many": 50_000, "outbox": 10_000}
SERIAL = 800
"""Of the slow jobs for runworker, which does one at a time."""


class Site:
    """Where the servers listen, and how a process of the benchmark is started."""

    def __init__(self, where: Servers, folder: Path) -> None:
        self.where = where
        self.folder = folder
        self.prefix = f"b{os.getpid()}"
        self._runs = 0

    def environment(self, system: str, ticking: Path) -> dict[str, str]:
        """Return the environment of a process."""
        values = {
            "DEBUG": "1",
            "SECRET_KEY": "benchmark",
            "DJANGO_SETTINGS_MODULE": "benchmarks.services_app.settings",
            "NATS_BROKER_URL": self.where.nats,
            "WSGATEWAY_PREFIX": self.prefix,
            "DATABASE_URL": f"sqlite:///{self.folder / 'db.sqlite3'}",
            "BENCH_TICKS": str(ticking),
        }
        if system != "ours":
            values["BENCH_REDIS"] = self.where.redis
        return {**os.environ, **values}

    @contextlib.contextmanager
    def running(self, system: str, ticking: Path, *command: str) -> Iterator[None]:
        """Run a Python process until the block ends."""
        self._runs += 1
        path = self.folder / f"log{self._runs}"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment(system, ticking),
                stdout=log,
                stderr=log,
            )
        try:
            yield
            if process.poll() is not None:
                raise SystemExit(f"{command} has ended:\n{path.read_text()}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# -- queueing jobs -----------------------------------------------------------------------


async def queue(system: str, job: str, count: int, where: Servers) -> None:
    """Queue *count* jobs, of all users in turn."""
    if system == "ours":
        await _queue_ours(job, count)
    elif system == "runworker":
        from channels_redis.core import RedisChannelLayer

        layer = RedisChannelLayer([where.redis], capacity=1_000_000)
        for number in range(count):
            event = {"type": f"job.{job}", "user": f"u{number % USERS}", "text": PAYLOAD}
            await layer.send(job, event)
        await layer.close_pools()
    else:
        from benchmarks.services_app import tasks

        tasks.app.conf.broker_url = where.redis
        with tasks.app.pool.acquire(block=True) as connection:
            for number in range(count):
                task = getattr(tasks, job)
                task.apply_async((f"u{number % USERS}", PAYLOAD), connection=connection)


async def _queue_ours(job: str, count: int) -> None:
    from wsgateway.protocol.frames import Frame
    from wsgateway.protocol.subjects import Inbox

    async with _broker() as broker:
        frame, run = Frame.of(PAYLOAD), os.urandom(4).hex()
        for start in range(0, count, 500):
            numbers = range(start, min(start + 500, count))
            await asyncio.gather(
                *(broker.offer(Inbox(job, f"u{n % USERS}"), frame, f"{run}.{n}") for n in numbers)
            )


@contextlib.asynccontextmanager
async def _broker() -> AsyncIterator[Any]:
    from wsgateway.broker.nats import broker_from_settings
    from wsgateway.conf import settings

    broker = broker_from_settings(settings)
    await broker.open()
    try:
        await broker.wait_ready()
        yield broker
    finally:
        await broker.close()


# -- throughput --------------------------------------------------------------------------


def worker(system: str, job: str, number: int) -> list[str]:
    """Return the command of a worker."""
    if system == "ours":
        return ["manage.py", "runservice", job, "--noreload"]
    if system == "runworker":
        return ["manage.py", "runworker", job]
    pool = ["--pool", "threads", "--concurrency", "16"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return [
        *["-m", "celery", "--quiet", "-A", "benchmarks.services_app.tasks", "worker"],
        *[*pool, *quiet, "-l", "ERROR", "-n", f"w{number}@bench"],
    ]


def throughput(site: Site, system: str, job: str, workers: int) -> float:
    """Return jobs a second."""
    count = SERIAL if (system, job) == ("runworker", "slow") else COUNTS[job]
    ticking = Path(tempfile.mkdtemp(dir=site.folder))
    asyncio.run(queue(system, job, count, site.where))
    with contextlib.ExitStack() as stack:
        for number in range(workers):
            stack.enter_context(site.running(system, ticking, *worker(system, job, number)))
        begin = _when(ticking, count // 10)
        end = _when(ticking, count * 9 // 10)
        _when(ticking, count)  # none is lost, and the next run finds the queue empty
    return (end[1] - begin[1]) / (end[0] - begin[0])


def _when(folder: Path, count: int) -> tuple[float, int]:
    """Wait for that many jobs; return the time, and how many they are."""
    deadline = time.monotonic() + 60
    while (done := ticks(folder)) < count:
        if time.monotonic() > deadline:
            logs = sorted(folder.parent.glob("log*"), key=lambda path: int(path.name[3:]))
            raise SystemExit(f"{done} of {count} jobs were done\n{logs[-1].read_text()[-2000:]}")
        time.sleep(0.002)
    return time.perf_counter(), done


# -- there and back ----------------------------------------------------------------------


async def _ask(system: str, port: int, count: int) -> list[float]:
    from websockets.asyncio.client import connect as connect_raw

    from wsgateway.client import connect

    took = []
    if system == "ours":
        cookies = {"Cookie": "service=echo; user=ann"}
        url = f"ws://127.0.0.1:{port}/ws/echo/ann/"
        async with connect(url, additional_headers=cookies, proxy=None) as client:
            for _ in range(count):
                begin = time.perf_counter()
                await client.request(PAYLOAD)
                took.append(time.perf_counter() - begin)
        return took
    async with connect_raw(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
        for _ in range(count):
            begin = time.perf_counter()
            await socket.send(PAYLOAD)
            await socket.recv()
            took.append(time.perf_counter() - begin)
    return took


def latency(site: Site, system: str, count: int = 1500) -> tuple[float, float]:
    """Return p50 and p99 in ms of one client that asks and waits, through a gateway."""
    port = free_port()
    application = "project.asgi" if system == "ours" else "benchmarks.services_app.peer"
    daphne = ["-m", "daphne", "-p", str(port), "-v0", f"{application}:application"]
    with (
        site.running(system, site.folder, *daphne),
        site.running(system, site.folder, *worker(system, "echo", 0)),
    ):
        time.sleep(4)  # neither says when it listens
        took = asyncio.run(_ask(system, port, count))[count // 10 :]
    cuts = statistics.quantiles(took, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


# -- publishing --------------------------------------------------------------------------


def many(count: int) -> float:
    """Return messages a second of one `send_many`, each for another user."""
    from wsgateway import Outgoing, send, send_many

    send("many", "warm", text=PAYLOAD)
    begin = time.perf_counter()
    outcomes = send_many(Outgoing("many", f"u{n}", text=PAYLOAD) for n in range(count))
    took = time.perf_counter() - begin
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failed or len(outcomes) != count:
        raise SystemExit(f"{len(failed)} failed: {failed[:1]}")
    return count / took


def outbox(count: int) -> float:
    """Return rows a second that one relay takes from SQLite into JetStream."""
    from django.core.management import call_command

    from wsgateway.outbox.models import OutboxMessage
    from wsgateway.outbox.relay import Relay

    call_command("migrate", "wsgateway_outbox", verbosity=0)
    rows = (
        OutboxMessage(service="many", user=f"u{n % USERS}", payload=PAYLOAD.encode(), kind="text")
        for n in range(count)
    )
    OutboxMessage.objects.bulk_create(rows, batch_size=1000)
    relay, done = Relay(), 0
    begin = time.perf_counter()
    while step := relay.step():
        done += step
    if done != count:
        raise SystemExit(f"{done} of {count} rows were relayed")
    return count / (time.perf_counter() - begin)


# -- the command -------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks services", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--jobs", type=int, default=10_000, help="noop jobs of a run")
    parser.add_argument("--messages", type=int, default=50_000, help="of one send_many")
    parser.add_argument("--rows", type=int, default=10_000, help="of the outbox")
    parser.add_argument("--only", default="throughput,latency,many,outbox")
    parser.add_argument("--sync-interval", default="10s", help="of nats-server; Redis has none")
    options = parser.parse_args(argv)
    only, systems = options.only.split(","), options.systems.split(",")
    COUNTS.update(noop=options.jobs, many=options.messages, outbox=options.rows)
    with (
        tempfile.TemporaryDirectory() as folder,
        servers(options.sync_interval, systems != ["ours"]) as where,
    ):
        site = Site(where, Path(folder))
        os.environ.update(
            {k: v for k, v in site.environment("ours", Path(folder)).items() if k != "BENCH_REDIS"}
        )
        import django

        django.setup()
        results = list(_measure(site, systems, only, options.rounds))
    print(json.dumps(dict(results)))
    return 0


def _measure(
    site: Site, systems: list[str], only: list[str], rounds: int
) -> Iterator[tuple[str, float]]:
    """Measure; every round has each system once, so that noise meets all."""
    if "throughput" in only:
        for job, workers in (("noop", 1), ("noop", 2), ("slow", 1), ("slow", 2)):
            rates: dict[str, list[float]] = {system: [] for system in systems}
            for _ in range(rounds):
                for system in systems:
                    rates[system].append(throughput(site, system, job, workers))
            for system in systems:
                rate = statistics.median(rates[system])
                print(f"{job:5} {workers} worker(s)  {system:10} {rate:10,.0f} jobs/s", flush=True)
                yield f"{job} {workers} {system}", rate
    if "latency" in only:
        for system in systems:
            if system != "celery":  # it has no way back to a client
                p50, p99 = latency(site, system)
                text = f"there and back    {system:10} {p50:10.2f} ms p50 {p99:8.2f} ms p99"
                print(text, flush=True)
                yield f"p50 {system}", p50
                yield f"p99 {system}", p99
    for name, measure in (("many", many), ("outbox", outbox)):
        if name in only:
            rate = statistics.median(measure(COUNTS[name]) for _ in range(rounds))
            print(f"{name:29} {rate:10,.0f} messages/s", flush=True)
            yield name, rate
