"""Metrics: what counting, and being asked, cost the gateway per delivered message.

Each round measures every variant once, each with a new gateway, so that what else the machine does
hits all of them. The counting itself is part of every gateway, whether somebody asks or not, so the
baseline is a copy of the package from which the lines that count are removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.load import connect_many
from benchmarks.publisher import command
from benchmarks.sockets import Meter
from tests.scrape import TOKEN, scrape
from tests.support import ROOT, Gateway
from wsgateway.broker.embedded import EmbeddedServer

WARM_UP = 1000
"""Messages that do not count."""
COUNTING = {
    "gateway/sockets.py": [
        "        traffic = self.traffic\n",
        "        traffic.frames_out += 1\n",
        "        traffic.bytes_out += len(frame) if frame.isascii() else size_of(frame)\n",
    ],
    "gateway/subscription.py": [
        "                    if not message.offset % SAMPLE:\n"
        "                        self._observe_lag(message)\n",
    ],
    "protocol/window.py": [
        "        if self._gap:\n            self._look_at_gap()\n",
        "            self._stalled = False\n",
    ],
}
"""What counts a delivered message."""


def without_counting(folder: Path) -> Path:
    """Return a copy of what a gateway needs, without counting."""
    for name in ("wsgateway", "project"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, lines in COUNTING.items():
        path = folder / "wsgateway" / name
        source = path.read_text()
        for line in lines:
            if line not in source:
                raise SystemExit(f"{name} counts in another way; correct COUNTING")
            source = source.replace(line, "")
        path.write_text(source)
    return folder


def cpu_seconds(pid: int) -> float:
    """Return how long a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def asking(port: int, interval: float) -> None:
    """Ask for the metrics, more often than Prometheus does."""
    while True:
        await asyncio.to_thread(scrape, port)
        await asyncio.sleep(interval)


async def deliver(gateway: Gateway, url: str, options: argparse.Namespace, *, asked: bool) -> float:
    """Return microseconds of the gateway's CPU for each delivered message."""
    meter = Meter()
    names = [f"u{number}" for number in range(options.users)]
    sockets, _ = await connect_many(gateway.port, names, meter.take)
    prefix, total, begin = gateway.env["WSGATEWAY_PREFIX"], 0, 0.0
    scraping: asyncio.Task[None] | None = None
    if asked:
        await asyncio.to_thread(scrape, gateway.port)  # imports what it needs
    for part in (WARM_UP, options.messages):
        if asked and part == options.messages:
            scraping = asyncio.create_task(asking(gateway.port, options.interval))
        begin = cpu_seconds(gateway.pid)
        process = await asyncio.create_subprocess_exec(
            *command(url, prefix, options.users, part, options.mode, 0),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await process.wait()
        total += part
        await meter.reach(total, 10)
        for each in sockets:
            each.seen = 0  # each publisher counts from zero
    spent = cpu_seconds(gateway.pid) - begin
    if scraping is not None:
        if scraping.done():
            scraping.result()
        scraping.cancel()
    for each in sockets:
        each.close()
    if meter.count != total:
        raise SystemExit(f"{meter.count} of {total} messages arrived")
    return float(spent / options.messages * 1e6)


def measure(
    variant: str, folder: Path, source: Path, nats: EmbeddedServer, options: argparse.Namespace
) -> float:
    """Return the microseconds of one run of the code in *source*."""
    env = {
        "NATS_BROKER_URL": nats.url,
        "WSGATEWAY_PREFIX": f"b{secrets.token_hex(4)}",
        "WSGATEWAY_SERVICES": "bench",
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
    }
    if variant == "asked":
        env["WSGATEWAY_METRICS_TOKEN"] = TOKEN
    gateway = Gateway(folder, env, options.server)
    gateway.cwd = source
    gateway.start()
    try:
        asked = variant == "asked"
        return asyncio.run(deliver(gateway, nats.url, options, asked=asked))
    finally:
        gateway.stop()


def main(argv: list[str]) -> int:
    """Measure; print a row a round, and then the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks metrics", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn"], default="daphne")
    parser.add_argument("--mode", choices=["acked", "unacked"], default="acked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two scrapes")
    options = parser.parse_args(argv)
    variants = ["baseline", "off", "asked"]
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder) / "nats", sync_interval="2m") as nats,
    ):
        copy = without_counting(Path(folder) / "copy")
        for number in range(options.rounds):
            # Each variant is first as often as the others
            shift = number % len(variants)
            for variant in variants[shift:] + variants[:shift]:
                source = copy if variant == "baseline" else ROOT
                found[variant].append(measure(variant, Path(folder), source, nats, options))
                time.sleep(0.5)
            print(json.dumps({v: round(runs[-1], 2) for v, runs in found.items()}), flush=True)
    medians = {variant: statistics.median(runs) for variant, runs in found.items()}
    for variant, median in medians.items():
        share = 100 * (median / medians["baseline"] - 1)
        print(f"{variant:9} {median:7.2f} µs of CPU a message  {share:+.1f} %")
    return 0
