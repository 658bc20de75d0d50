"""Raw sockets: backlog of 2,000 users, live throughput and latency of 1,000."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.load import LoadSocket, connect_many, percentile, resident, stamp
from benchmarks.publisher import command, publish
from tests.support import Gateway
from wsgateway.broker.embedded import EmbeddedServer

Row = dict[str, str | float]


class Meter:
    """Counts what arrives, and whether it is in order."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong = 0
        """Messages that were not the next one of their inbox."""
        self.first = 0.0
        self.last = 0.0
        self.delays: list[float] = []
        """Milliseconds from publishing to arrival."""

    def take(self, socket: LoadSocket, data: bytes) -> None:
        """Take a message."""
        number, sent = stamp(data)
        now = time.time_ns()
        if number != socket.seen:
            self.wrong += 1
        socket.seen = number + 1
        self.count += 1
        self.last = now / 1e9
        self.first = self.first or self.last
        self.delays.append((now - sent) / 1e6)

    async def reach(self, count: int, timeout: float) -> None:
        """Wait until *count* messages have come; give up once none comes for *timeout* s."""
        before, quiet = -1, time.monotonic()
        while self.count < count and time.monotonic() - quiet < timeout:
            if self.count != before:
                before, quiet = self.count, time.monotonic()
            await asyncio.sleep(0.05)

    @property
    def rate(self) -> float:
        """Messages per second between the first and the last."""
        return self.count / max(self.last - self.first, 1e-9)


async def backlog(gateway: Gateway, nats: EmbeddedServer, users: int, each: int) -> Row:
    """Connect users for whom messages wait."""
    prefix = gateway.env["WSGATEWAY_PREFIX"]
    await publish(nats.url, prefix, users, users * each, "acked", 0)
    before = resident(gateway.pid), resident(nats.pid)
    meter = Meter()
    begin = time.time()
    names = [f"u{number}" for number in range(users)]
    sockets, seconds = await connect_many(gateway.port, names, meter.take)
    await meter.reach(users * each, 20)
    await asyncio.sleep(2)
    row: Row = {
        "case": f"backlog, {users} sockets x {each}",
        "connects/s": users / seconds,
        "arrived": meter.count,
        "wanted": users * each,
        "out of order or twice": meter.wrong,
        "seconds to last": meter.last - begin,
        "gateway KB/socket": (resident(gateway.pid) - before[0]) / users / 1024,
        "nats KB/socket": (resident(nats.pid) - before[1]) / users / 1024,
    }
    for socket in sockets:
        socket.close()
    return row


async def live(
    gateway: Gateway, nats: EmbeddedServer, users: int, count: int, mode: str, rate: float
) -> Row:
    """Publish from a process of its own to connected users."""
    prefix = gateway.env["WSGATEWAY_PREFIX"]
    meter = Meter()
    names = [f"u{number}" for number in range(users)]
    sockets, seconds = await connect_many(gateway.port, names, meter.take)
    await asyncio.sleep(2)
    process = await asyncio.create_subprocess_exec(
        *command(nats.url, prefix, users, count, mode, rate), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    await meter.reach(count, 10)
    for socket in sockets:
        socket.close()
    return {
        "case": f"live, {users} sockets, {mode}" + (f", {rate:g}/s" if rate else ""),
        "connects/s": users / seconds,
        "arrived": meter.count,
        "wanted": count,
        "out of order or twice": meter.wrong,
        "published/s": json.loads(output)["rate"],
        "delivered/s": meter.rate,
        "p50 ms": percentile(meter.delays, 0.5),
        "p99 ms": percentile(meter.delays, 0.99),
    }


def measure(server: str, scale: float, sync_interval: str) -> list[Row]:
    """Run all cases on *server*, each with a new gateway process."""
    rows = []
    users, many = max(50, int(1000 * scale)), max(100, int(2000 * scale))
    cases: list[Callable[[Gateway, EmbeddedServer], Coroutine[Any, Any, Row]]] = [
        lambda g, n: backlog(g, n, many, 10),
        lambda g, n: live(g, n, users, int(100_000 * scale), "acked", 0),
        lambda g, n: live(g, n, users, int(200_000 * scale), "unacked", 0),
        lambda g, n: live(g, n, users, int(5_000 * scale), "acked", 500),
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder) / "nats", sync_interval=sync_interval) as nats,
    ):
        for case in cases:
            env = {
                "NATS_BROKER_URL": nats.url,
                "WSGATEWAY_PREFIX": f"b{secrets.token_hex(4)}",
                "WSGATEWAY_SERVICES": "bench",
                "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
            }
            gateway = Gateway(Path(folder), env, server).start()
            try:
                rows.append({"server": server, **asyncio.run(case(gateway, nats))})
            finally:
                gateway.stop()
            print(json.dumps({k: _round(v) for k, v in rows[-1].items()}), flush=True)
    return rows


def _round(value: str | float) -> str | float:
    return value if isinstance(value, (str, int)) else round(value, 2)


def main(argv: list[str]) -> int:
    """Measure; print a row per case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sockets", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--sync-interval", default="2m", help="when nats-server calls fsync")
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    options = parser.parse_args(argv)
    servers = ["daphne", "uvicorn"] if options.server == "both" else [options.server]
    rows = []
    for server in servers:
        rows += measure(server, 0.1 if options.quick else 1.0, options.sync_interval)
    if options.csv:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: _round(v) for k, v in row.items()} for row in rows)
    complete = all(
        row["arrived"] == row["wanted"] and not row["out of order or twice"] for row in rows
    )
    return 0 if complete else 1
