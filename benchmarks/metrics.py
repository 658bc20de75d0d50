"""Metrics: what counting, and being asked each second, cost the gateway per delivered message.

Each round measures every variant once, each with a new gateway, so that what else the machine does
hits all of them. ``--baseline`` is a checkout of a commit before counting began: the counting
itself is part of every gateway, whether somebody asks or not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
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


def cpu_seconds(pid: int) -> float:
    """Return how long a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def asking(port: int) -> None:
    """Ask for the metrics each second, more often than Prometheus does."""
    while True:
        await asyncio.to_thread(scrape, port)
        await asyncio.sleep(1.0)


async def deliver(
    gateway: Gateway, url: str, users: int, count: int, mode: str, *, asked: bool
) -> float:
    """Return microseconds of the gateway's CPU for each of *count* messages."""
    meter = Meter()
    names = [f"u{number}" for number in range(users)]
    sockets, _ = await connect_many(gateway.port, names, meter.take)
    background = asyncio.create_task(asking(gateway.port)) if asked else None
    prefix, total = gateway.env["WSGATEWAY_PREFIX"], 0
    begin = 0.0
    for part in (WARM_UP, count):
        begin = cpu_seconds(gateway.pid)
        process = await asyncio.create_subprocess_exec(
            *command(url, prefix, users, part, mode, 0), stdout=asyncio.subprocess.DEVNULL
        )
        await process.wait()
        total += part
        await meter.reach(total, 10)
        for each in sockets:
            each.seen = 0  # each publisher counts from zero
    spent = cpu_seconds(gateway.pid) - begin
    if background is not None:
        background.cancel()
        if background.done():
            background.result()
    for each in sockets:
        each.close()
    if meter.count != total:
        raise SystemExit(f"{meter.count} of {total} messages arrived")
    return spent / count * 1e6


def measure(variant: str, folder: Path, nats: EmbeddedServer, options: argparse.Namespace) -> float:
    """Return the microseconds of one run."""
    env = {
        "NATS_BROKER_URL": nats.url,
        "WSGATEWAY_PREFIX": f"b{secrets.token_hex(4)}",
        "WSGATEWAY_SERVICES": "bench",
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
    }
    if variant == "asked":
        env["WSGATEWAY_METRICS_TOKEN"] = TOKEN
    gateway = Gateway(folder, env, options.server)
    gateway.cwd = options.baseline if variant == "baseline" else ROOT
    gateway.start()
    try:
        return asyncio.run(
            deliver(
                gateway,
                nats.url,
                options.users,
                options.messages,
                options.mode,
                asked=variant == "asked",
            )
        )
    finally:
        gateway.stop()


def main(argv: list[str]) -> int:
    """Measure; print a row a round, and then the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks metrics", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn"], default="daphne")
    parser.add_argument("--mode", choices=["acked", "unacked"], default="acked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--baseline", type=Path, help="a checkout without counting")
    options = parser.parse_args(argv)
    variants = ["off", "asked", *(["baseline"] if options.baseline else [])]
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder) / "nats", sync_interval="2m") as nats,
    ):
        for number in range(options.rounds):
            # Each variant is first as often as the others
            shift = number % len(variants)
            for variant in variants[shift:] + variants[:shift]:
                found[variant].append(measure(variant, Path(folder), nats, options))
                time.sleep(0.5)
            print(json.dumps({v: round(runs[-1], 2) for v, runs in found.items()}), flush=True)
    medians = {variant: statistics.median(runs) for variant, runs in found.items()}
    base = medians[variants[-1] if options.baseline else "off"]
    for variant, median in medians.items():
        share = 100 * (median / base - 1)
        print(f"{variant:9} {median:7.2f} µs of CPU a message  {share:+.1f} %")
    return 0
