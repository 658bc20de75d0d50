"""v1 beside raw sockets and plain Channels; a client that never acknowledges; a reconnect storm."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import django
from django.conf import settings as django_settings

from benchmarks import v1_peer
from benchmarks.load import payload, percentile, resident
from benchmarks.publisher import command
from benchmarks.v1_client import Crowd
from tests.support import Gateway, Process, listening, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import ConnectionOptions
from wsgateway.protocol.subjects import Inbox, Subjects

Row = dict[str, str | float]
KINDS = ("raw", "v1", *v1_peer.LAYERS)
SOCKETS = (100, 1000, 5000)
LATENCY_RATE = 500
PATIENCE = 5.0


class Bench:
    """The servers of one run.

    Args:
        folder: For stores and logs.
        quick: A tenth of everything.
    """

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.scale = 0.1 if quick else 1.0
        self.rows: list[Row] = []
        self.nats = EmbeddedServer(folder / "nats", sync_interval="2m")
        self._redis: Process | None = None
        self._redis_port = free_port()

    def __enter__(self) -> Bench:
        self.nats.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._redis is not None:
            self._redis.stop()
        self.nats.stop()

    def scaled(self, count: int) -> int:
        """Return how many of *count* this run takes."""
        return max(20, int(count * self.scale))

    @property
    def redis(self) -> str:
        """The URL of a redis-server, started at the first use."""
        if self._redis is None:
            program = shutil.which("redis-server")
            if program is None:
                raise SystemExit("the peers need redis-server; or choose --kinds raw v1")
            options = ["--port", str(self._redis_port), "--bind", "127.0.0.1", "--save", ""]
            log = self.folder / "redis.log"
            self._redis = Process([program, *options, "--dir", str(self.folder)], log, site_env())
            self._redis.spawn()
            wait_for(lambda: listening(self._redis_port), 10, "redis-server listens")
        return f"redis://127.0.0.1:{self._redis_port}"

    def gateway(self, server: str, prefix: str, **env: str) -> Gateway:
        """Start a gateway."""
        values = {
            "NATS_BROKER_URL": self.nats.url,
            "WSGATEWAY_PREFIX": prefix,
            "WSGATEWAY_SERVICES": "bench",
            "DATABASE_URL": f"sqlite:///{self.folder}/db.sqlite3",
            **env,
        }
        return Gateway(self.folder, values, server).start()

    def peer(self, server: str, layer: str) -> Gateway:
        """Start a plain Channels consumer."""
        peer = Gateway(self.folder, v1_peer.environment(layer, self.redis), server)
        peer.command[-1] = "benchmarks.v1_peer:application"
        return peer.start()

    def report(self, row: Row) -> None:
        """Keep and print a row."""
        self.rows.append(row)
        print(json.dumps({k: _round(v) for k, v in row.items()}), flush=True)

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: _round(v) for k, v in row.items()} for row in self.rows)


def _round(value: str | float) -> str | float:
    return round(value, 2) if isinstance(value, float) else value


def _prefix() -> str:
    return f"b{secrets.token_hex(4)}"


@contextlib.asynccontextmanager
async def _broker(bench: Bench, prefix: str) -> AsyncIterator[NatsBroker]:
    if not django_settings.configured:
        django_settings.configure(WSGATEWAY_SERVICES=["bench"])
        django.setup()
    broker = NatsBroker(ConnectionOptions((bench.nats.url,), timeout=30.0), Subjects(prefix), [])
    await broker.open()
    try:
        await broker.wait_ready()
        yield broker
    finally:
        await broker.close()


async def _run(argv: list[str], env: dict[str, str]) -> float:
    """Run a publisher process; return its rate."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.PIPE, env=site_env(**env)
    )
    output, _ = await process.communicate()
    return float(json.loads(output)["rate"])


# -- side by side ----------------------------------------------------------------------------


async def compare(bench: Bench, server: str, kind: str, sockets: int) -> None:
    """Connect; then 500 messages/s for the latency; then as many as go for the throughput."""
    ours = kind in ("raw", "v1")
    prefix = _prefix()
    target = bench.gateway(server, prefix) if ours else bench.peer(server, kind)
    crowd = Crowd([f"u{n}" for n in range(sockets)], v1=kind == "v1")

    async def publish(count: int, rate: float) -> float:
        """Publish to every user in turn, numbers from 0; wait until all came."""
        crowd.reset()
        crowd.expect(0)
        if ours:
            argv, env = command(bench.nats.url, prefix, sockets, count, "acked", rate), {}
        else:
            argv = v1_peer.publisher(sockets, count, rate)
            env = v1_peer.environment(kind, bench.redis)
        published = await _run(argv, env)
        await crowd.reach(count, PATIENCE)
        return published

    try:
        before = resident(target.pid)
        seconds = await crowd.connect(target.port)
        await asyncio.sleep(1)
        memory = (resident(target.pid) - before) / sockets / 1024
        paced, flood = bench.scaled(1000), bench.scaled(20_000 if ours else 5_000)
        await publish(paced, LATENCY_RATE)
        missing, delays = paced - crowd.count, list(crowd.delays)
        published = await publish(flood, 0)
        missing += flood - crowd.count
        bench.report(
            {
                "case": "side by side",
                "server": server,
                "kind": kind,
                "sockets": sockets,
                "connects/s": sockets / seconds,
                "KB/socket": memory,
                "p50 ms": percentile(delays, 0.5),
                "p99 ms": percentile(delays, 0.99),
                "published/s": published,
                "delivered/s": crowd.rate,
                "missing": missing,
                "out of order or twice": crowd.wrong,
            }
        )
    finally:
        crowd.close()
        target.kill()


# -- a client that never acknowledges --------------------------------------------------------


async def slow_client(bench: Bench, server: str) -> None:
    """Let 100,000 messages of 1 kB wait for one client, while 100 others are served."""
    prefix, count, others = _prefix(), bench.scaled(100_000), 100
    limits = {
        "WSGATEWAY_INBOX_MAX_MESSAGES": str(2 * count),
        "WSGATEWAY_PING_INTERVAL": "60",
    }
    gateway = bench.gateway(server, prefix, **limits)
    crowd, sleeper = Crowd([f"u{n}" for n in range(others)]), Crowd(["sleeper"])
    sleeper.clients["sleeper"].awake = False
    paced = bench.scaled(2000)
    argv = command(bench.nats.url, prefix, others, paced, "acked", LATENCY_RATE)

    async def p99() -> float:
        crowd.reset()
        crowd.expect(0)
        await _run(argv, limits)
        await crowd.reach(paced, PATIENCE)
        return percentile(crowd.delays, 0.99)

    try:
        await crowd.connect(gateway.port)
        async with _broker(bench, prefix) as broker:
            alone = await p99()
            await sleeper.connect(gateway.port)
            before = resident(gateway.pid)
            await _fill(broker, Inbox("bench", "sleeper"), count, 1000)
            filled = resident(gateway.pid)
        beside = await p99()
        waited, peak = sleeper.count, max(filled, resident(gateway.pid))
        client = sleeper.clients["sleeper"]
        sleeper.reset()
        client.awake = True
        client.acknowledge()
        complete = await sleeper.reach(count - waited, PATIENCE)
        bench.report(
            {
                "case": f"{count} messages of 1 kB wait for a client that never acknowledges",
                "server": server,
                "sent without acknowledgement": waited,
                "gateway grew, MB": (peak - before) / 2**20,
                "others' p99 ms before": alone,
                "others' p99 ms during that": beside,
                "missing": 0 if complete else count - waited - sleeper.count,
                "out of order or twice": sleeper.wrong + crowd.wrong,
                "messages/s once it wakes": sleeper.rate,
                "gateway grew in the end, MB": (resident(gateway.pid) - before) / 2**20,
            }
        )
    finally:
        crowd.close()
        sleeper.close()
        gateway.kill()


async def _fill(broker: NatsBroker, inbox: Inbox, count: int, size: int) -> None:
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        await asyncio.gather(*(broker.publish(inbox, payload(n, size)) for n in numbers))


# -- the reconnect storm ---------------------------------------------------------------------


async def storm(bench: Bench, server: str) -> None:
    """Kill the gateway of 2,000 clients; let them come to another one, 20 messages later."""
    prefix, clients, each = _prefix(), bench.scaled(2000), 20
    first, second = bench.gateway(server, prefix), bench.gateway(server, prefix)
    crowd = Crowd([f"u{n}" for n in range(clients)])
    try:
        await crowd.connect(first.port)
        # One message each before, so that there is a position to prove.
        await _run(command(bench.nats.url, prefix, clients, clients, "acked", 0), {})
        await crowd.reach(clients, PATIENCE)
        first.send(signal.SIGKILL)
        first.wait()
        await _run(command(bench.nats.url, prefix, clients, clients * each, "acked", 0), {})
        crowd.reset()
        crowd.expect(0)
        begin = asyncio.get_running_loop().time()
        connected = await crowd.come_back(second.port)
        complete = await crowd.reach(clients * each, PATIENCE)
        seconds = asyncio.get_running_loop().time() - begin
        bench.report(
            {
                "case": f"storm: {clients} sockets, {each} missed messages each",
                "server": server,
                "seconds until all are welcomed": connected,
                "seconds until all have everything": seconds,
                "attempts that failed": crowd.failed,
                "recovered": sum(bool(c.recovered) for c in crowd.clients.values()),
                "missing": 0 if complete else clients * each - crowd.count,
                "out of order or twice": crowd.wrong,
            }
        )
    finally:
        crowd.close()
        first.kill()
        second.kill()


# -- all of it -------------------------------------------------------------------------------


def _cases(options: argparse.Namespace, bench: Bench) -> Iterator[object]:
    for server in options.servers:
        if "compare" in options.cases:
            for sockets in options.sockets:
                for kind in options.kinds:
                    yield compare(bench, server, kind, sockets)
        if "slow" in options.cases:
            yield slow_client(bench, server)
        if "storm" in options.cases:
            yield storm(bench, server)


def main(argv: list[str]) -> int:
    """Measure; print a row per case. Fails if ours lost, repeated or reordered anything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks v1", description=__doc__)
    parser.add_argument("--servers", nargs="+", default=["daphne", "uvicorn"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sockets", nargs="+", type=int, default=SOCKETS)
    parser.add_argument("--cases", nargs="+", default=["compare", "slow", "storm"])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    options = parser.parse_args(argv)
    if options.quick:
        options.sockets = [max(20, number // 10) for number in options.sockets]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gateways end with us
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), options.quick) as bench:
        for case in _cases(options, bench):
            asyncio.run(case)  # type: ignore[arg-type]
        rows = bench.rows
    if options.csv:
        bench.write(options.csv)
    ours = [row for row in rows if row.get("kind") not in v1_peer.LAYERS]
    return 0 if not any(row["missing"] or row["out of order or twice"] for row in ours) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
