"""Bridges: messages a second and milliseconds each way, beside the clients of both ends alone.

A bridge takes a message from one side and puts it on the other, and confirms one of a user before
the next. So it can be as fast as both clients one after the other: 1 / (1 / bus + 1 / JetStream).
The clients alone do the same work with the same messages: aiokafka or aio-pika on the bus, and
nats-py on JetStream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import django
from django.test import override_settings

from benchmarks import bridges_peers as peers
from benchmarks.bridges_peers import PEERS, SERVICE, Peer, each_in_turn, user
from benchmarks.load import payload, percentile, stamp
from benchmarks.metrics import cpu_seconds
from tests.support import ROOT, Process, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer

WAYS = ("send", "receive")
RATE = 200
"""Messages a second while the latency is measured."""
PATIENCE = 120.0


class Bench:
    """The servers of one run.

    Args:
        folder: For stores and logs.
        url: Of NATS.
        count: Messages of each measurement.
    """

    def __init__(self, folder: Path, url: str, count: int) -> None:
        self.folder = folder
        self.url = url
        self.count = count
        self._runs = 0

    def environment(self, peer: Peer) -> dict[str, str]:
        """Return the environment of the site that has a bridge to *peer*."""
        return {
            "DEBUG": "0",
            "SECRET_KEY": "benchmark-of-bridges",
            "DJANGO_SETTINGS_MODULE": "benchmarks.bridges_app.settings",
            "NATS_BROKER_URL": self.url,
            "WSGATEWAY_PREFIX": peer.prefix,
            "DATABASE_URL": f"sqlite:///{self.folder / 'db.sqlite3'}",
            "BENCH_BRIDGES": json.dumps({"bench": peer.options}),
        }

    def command(self, peer: Peer, *arguments: str) -> Process:
        """Start a command of the site."""
        self._runs += 1
        process = Process(
            [sys.executable, "manage.py", *arguments],
            self.folder / f"log{self._runs}",
            site_env(**self.environment(peer)),
            ROOT,
        )
        process.spawn()
        return process

    @contextlib.contextmanager
    def bridge(self, peer: Peer) -> Iterator[Process]:
        """Run a bridge, which is ready."""
        ready = self.folder / f"ready{self._runs}"
        process = self.command(peer, "runbridge", "--noreload", "--ready-file", str(ready))
        try:
            wait_for(lambda: ready.exists() or not process.running, 60, "the bridge is ready")
            assert process.running, process.output
            yield process
        finally:
            process.stop(30)


class Speed(NamedTuple):
    """How fast messages went."""

    rate: float
    """A second."""
    cost: float
    """Milliseconds of the processor for each."""

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s, {self.cost:.3f} ms of CPU"


async def timed(work: Coroutine[Any, Any, None], count: int) -> Speed:
    """Do it in this process; return how fast it was."""
    begin, used = time.perf_counter(), time.process_time()
    await work
    took, used = time.perf_counter() - begin, time.process_time() - used
    return Speed(count / took, used / count * 1000)


async def speed(count: int, arrived: Callable[[], Awaitable[int]], bridge: Process) -> Speed:
    """Return how fast messages arrive, between the first tenth of them and the last."""
    before = await arrived()
    marks: list[tuple[float, int, float]] = []
    deadline = time.monotonic() + PATIENCE
    while not marks or marks[-1][1] < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {marks[-1][1]} of {count} messages arrived")
        await asyncio.sleep(0.02)
        marks.append((time.perf_counter(), await arrived() - before, cpu_seconds(bridge.pid)))
    first = next(mark for mark in marks if mark[1] >= count // 10)
    last = next(mark for mark in marks if mark[1] >= count * 9 // 10)
    if last[1] == first[1]:
        return Speed(float("nan"), float("nan"))  # too few messages to say
    messages = last[1] - first[1]
    return Speed(messages / (last[0] - first[0]), (last[2] - first[2]) / messages * 1000)


async def paced(count: int, send: Callable[[int], Awaitable[object]]) -> None:
    loop = asyncio.get_running_loop()
    begin, sending = loop.time(), []
    for number in range(count):
        await asyncio.sleep(max(0.0, begin + number / RATE - loop.time()))
        sending.append(asyncio.ensure_future(send(number)))
    await asyncio.gather(*sending)


class Latency:
    """The time that messages of `payload` take."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def __call__(self, data: bytes) -> None:
        self.took.append((time.time_ns() - stamp(data)[1]) / 1e6)

    async def wait(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.took) < count and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def __str__(self) -> str:
        middle, slow = percentile(self.took, 0.5), percentile(self.took, 0.99)
        return f"p50 {middle:.1f} ms, p99 {slow:.1f} ms"


class Round(NamedTuple):
    """The bridge and both clients alone, measured one after the other.

    The machine's own speed changes within seconds, so only what was measured together is compared.
    """

    ours: Speed
    bus: Speed
    stream: Speed
    latency: Latency
    """Of the last round's bridge; empty in the others."""

    @property
    def both(self) -> float:
        """Messages a second of both clients, one after the other."""
        return 1 / (1 / self.bus.rate + 1 / self.stream.rate)

    @property
    def ratio(self) -> float:
        """How fast the bridge is, compared with `both`."""
        return self.ours.rate / self.both


# -- the broker's side -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened_broker() -> Any:
    from wsgateway.broker.nats import broker_from_settings
    from wsgateway.conf import settings

    broker = broker_from_settings(settings)
    await broker.open()
    try:
        await broker.wait_ready()
        yield broker
    finally:
        await broker.close()


async def offer(broker: Any, number: int, data: bytes, run: str) -> None:
    """Store what a client sends."""
    from wsgateway.protocol.frames import Frame
    from wsgateway.protocol.subjects import Inbox

    await broker.offer(Inbox(SERVICE, user(number)), Frame(data, True), f"{run}.{number}")


# -- measurements ----------------------------------------------------------------------------


async def send_way(bench: Bench, peer: Peer, is_last: bool) -> Round:
    """Client to service."""
    run = secrets.token_hex(4)
    latency = Latency()
    async with opened_broker() as broker:
        with bench.bridge(peer):
            pass  # so that the service's stream is there
        await each_in_turn(bench.count, lambda n: offer(broker, n, payload(n), run))
        process = bench.command(peer, "runbridge", "--noreload")
        try:
            ours = await speed(bench.count, peer.arrived, process)
            if is_last:
                async with peer.listen(latency):
                    count = min(bench.count, 1000)
                    await paced(count, lambda n: offer(broker, n, payload(n), f"{run}l"))
                    await latency.wait(count)
        finally:
            process.stop(30)
    bus = await timed(
        each_in_turn(bench.count, lambda n: peer.send(user(n), payload(n))), bench.count
    )
    stream = await peers.jetstream_reads(bench.url, bench.count, payload, timed)
    return Round(ours, bus, stream, latency)


async def receive_way(bench: Bench, peer: Peer, is_last: bool) -> Round:
    """Service to client."""
    import nats

    await each_in_turn(bench.count, lambda n: peer.produce(n, payload(n)))
    connection = await nats.connect(bench.url)
    stream = connection.jetstream()
    latency = Latency()

    async def stored() -> int:
        return int((await stream.stream_info(f"{peer.prefix.upper()}_RECV")).state.messages)

    async with opened_broker():
        process = bench.command(peer, "runbridge", "--noreload")
        try:
            ours = await speed(bench.count, stored, process)

            async def on_message(message: Any) -> None:
                latency(message.data)

            if is_last:
                await connection.subscribe(f"{peer.prefix}.live.{SERVICE}.*", cb=on_message)
                await connection.flush()
                count = min(bench.count, 1000)
                await paced(count, lambda n: peer.produce(n, payload(n)))
                await latency.wait(count)
        finally:
            process.stop(30)
            await connection.close()
    bus = await timed(peer.consume(bench.count), bench.count)
    published = await peers.jetstream_publishes(bench.url, bench.count, payload, timed)
    return Round(ours, bus, published, latency)


def report(peer: Peer, way: str, rounds: list[Round]) -> None:
    """Print a line for people: the round whose ratio is the middle one, and the others' ratios."""
    rounds = sorted(rounds, key=lambda each: each.ratio)
    found = rounds[len(rounds) // 2]
    latency = next(each.latency for each in rounds if each.latency.took)
    print(
        f"{peer.name}, {way}: bridge {found.ours}; {found.ratio:.2f} of both clients one after the "
        f"other, {found.both:,.0f}/s (bus {found.bus}; JetStream {found.stream}); {latency}; "
        f"{len(rounds)} rounds: {' '.join(f'{each.ratio:.2f}' for each in rounds)}",
        flush=True,
    )


async def measure(bench: Bench, peer: Peer, ways: list[str], rounds: int) -> None:
    setting_up = bench.command(peer, "setup_bridges")
    assert await asyncio.to_thread(setting_up.wait, 60) == 0, setting_up.output
    await peer.open()
    try:
        for way, name, measured in (
            ("send", "client to service", send_way),
            ("receive", "service to client", receive_way),
        ):
            if way in ways:
                found = [await measured(bench, peer, n == rounds - 1) for n in range(rounds)]
                report(peer, name, found)
    finally:
        await peer.close()


def main(argv: list[str]) -> int:
    """Measure; print a line for each bus and way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks bridges", description=__doc__)
    parser.add_argument("--buses", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--messages", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers end with us
    for name in options.buses:
        reason = PEERS[name].why_not()
        if reason:
            print(f"{name:6} left out: {reason}")
            continue
        with tempfile.TemporaryDirectory(prefix="wsgateway-bench-") as text:
            folder = Path(text)
            (folder / "bus").mkdir()
            kind = PEERS[name]
            with (
                EmbeddedServer(folder / "nats", sync_interval="2m") as server,
                kind.server(folder / "bus") as bus,
            ):
                peer = kind(bus, f"b{secrets.token_hex(3)}")  # type: ignore[arg-type]
                bench = Bench(folder, server.url, options.messages)
                os.environ.update(bench.environment(peer))
                django.setup()
                # The environment was read for the first bus
                mine = {"NATS_BROKER_URL": server.url, "WSGATEWAY_PREFIX": peer.prefix}
                with override_settings(**mine):
                    asyncio.run(measure(bench, peer, options.ways, options.rounds))
    return 0
