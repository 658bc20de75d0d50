"""One topic on many sockets, beside the bare writes and Channels' groups; a storm of resumes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import django
from django.conf import settings as django_settings

from benchmarks import v1_peer
from benchmarks.load import payload, percentile, resident
from benchmarks.metrics import cpu_seconds
from benchmarks.topics_app import SUBJECT
from benchmarks.topics_client import Audience
from benchmarks.v1 import Bench
from tests.support import Gateway, site_env
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import ConnectionOptions
from wsgateway.protocol.subjects import Inbox, Subjects, Topic

KINDS = ("floor", "ephemeral", "durable", "acknowledged", "redis-pubsub")
SOCKETS = (1000, 5000)
DELIVERIES = 200_000
"""Deliveries of one flood, on however many sockets."""
PACE = 5000
"""Deliveries a second while the latency is measured."""
IN_FLIGHT = 64
PATIENCE = 30.0


def _settings(**more: str) -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": "benchmarks.topics_app.settings", **more}


def _gateway(bench: Bench, server: str, prefix: str, application: str, **env: str) -> Gateway:
    values = {
        "NATS_BROKER_URL": bench.nats.url,
        "WSGATEWAY_PREFIX": prefix,
        "DATABASE_URL": f"sqlite:///{bench.folder}/db.sqlite3",
        **_settings(**env),
    }
    return Gateway(bench.folder, values, server, application=application).start(60)


@contextlib.asynccontextmanager
async def _publisher(bench: Bench, prefix: str) -> AsyncIterator[NatsBroker]:
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


async def _publish(broker: NatsBroker, topic: Topic, kind: str, count: int, rate: float) -> None:
    """Publish numbers from 0: *rate* a second, or as fast as the broker confirms them."""
    loop = asyncio.get_running_loop()
    begin, numbers = loop.time(), iter(range(count))

    async def lane() -> None:
        for number in numbers:
            if rate:
                await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))
            if kind in ("durable", "acknowledged"):
                await broker.publish(topic, payload(number))
            else:
                broker.connection.publish(_core_subject(broker, topic, kind), payload(number))
                if not number % IN_FLIGHT:
                    await broker.publish(Inbox("bench", "nobody"), b"")  # lets it be written

    async with asyncio.TaskGroup() as group:
        for _ in range(1 if rate or kind not in ("durable", "acknowledged") else IN_FLIGHT):
            group.create_task(lane())


def _core_subject(broker: NatsBroker, topic: Topic, kind: str) -> str:
    return SUBJECT if kind == "floor" else broker.subjects.cast(topic)


# -- one topic, many sockets -----------------------------------------------------------------


async def fan_out(bench: Bench, server: str, kind: str, sockets: int) -> None:
    """Connect, subscribe; then a few messages a second for the latency; then a flood."""
    prefix = f"b{secrets.token_hex(4)}"
    ours = kind != "redis-pubsub"
    topic = Topic("floor", "0") if kind == "floor" else Topic("durable", "0")
    topic = Topic("ephemeral", "0") if kind == "ephemeral" else topic
    if ours:
        application = "benchmarks.topics_app.floor" if kind == "floor" else "project.asgi"
        window = {"BENCH_WINDOW": "1000000"} if kind == "durable" else {}
        target = _gateway(bench, server, prefix, f"{application}:application", **window)
    else:
        target = bench.peer(server, kind)
    name, path = (str(topic), "/ws/bench/{user}/") if ours else ("", "/ws/bench/u0/")
    acknowledges = kind == "acknowledged"
    audience = Audience([[name]] * sockets, v1=ours, acknowledges=acknowledges, path=path)
    count = bench.scaled(DELIVERIES) // sockets
    paced = max(10, count // 10)
    try:
        before = resident(target.pid)
        seconds = await audience.connect(target.port)
        connected = resident(target.pid)
        if ours and kind != "floor":
            await audience.subscribe()
        await asyncio.sleep(1)
        subscribed = resident(target.pid)
        missing, spent, delays = 0, 0.0, list[float]()
        async with _publisher(bench, prefix) as broker:
            for number, rate in ((paced, PACE / sockets), (count, 0.0)):
                audience.begin()
                spent = cpu_seconds(target.pid)
                if ours:
                    await _publish(broker, topic, kind, number, rate)
                else:
                    await _publish_peer(bench, kind, number, rate)
                await audience.reach(number * sockets, PATIENCE)
                missing += number * sockets - audience.count
                delays = delays or list(audience.delays)
                spent = cpu_seconds(target.pid) - spent
        bench.report(
            {
                "case": "fan-out",
                "server": server,
                "kind": kind,
                "sockets": sockets,
                "connects/s": sockets / seconds,
                "KB/socket": (connected - before) / sockets / 1024,
                "KB/subscription": (subscribed - connected) / sockets / 1024,
                "p50 ms": percentile(delays, 0.5),
                "p99 ms": percentile(delays, 0.99),
                "delivered/s": audience.rate,
                "share of the floor": _share(bench, server, sockets, audience.rate),
                "gateway's CPU, us/delivery": spent / (count * sockets) * 1e6,
                "missing": missing,
                "out of order or twice": audience.wrong,
            }
        )
    finally:
        audience.close()
        target.kill()


def _share(bench: Bench, server: str, sockets: int, rate: float) -> str | float:
    """Return *rate* as a share of what the bare writes deliver; "" if that was not measured."""
    wanted = {"case": "fan-out", "server": server, "kind": "floor", "sockets": sockets}
    rows = (row for row in bench.rows if wanted.items() <= row.items())
    return next((rate / float(row["delivered/s"]) for row in rows), "")


async def _publish_peer(bench: Bench, kind: str, count: int, rate: float) -> None:
    process = await asyncio.create_subprocess_exec(
        *v1_peer.publisher(1, count, rate),
        stdout=asyncio.subprocess.DEVNULL,
        env=site_env(**v1_peer.environment(kind, bench.redis)),
    )
    await process.wait()


# -- one socket, many topics -----------------------------------------------------------------


async def many_topics(bench: Bench, server: str) -> None:
    """Subscribe one client to 1,000 topics, then publish to each."""
    prefix, number, each = f"b{secrets.token_hex(4)}", bench.scaled(1000), 10
    names = [f"durable.t{n}" for n in range(number)]
    target = _gateway(bench, server, prefix, "project.asgi:application")
    audience = Audience([names])
    try:
        await audience.connect(target.port)
        seconds = await audience.subscribe()
        audience.begin()
        async with _publisher(bench, prefix) as broker:
            await asyncio.gather(
                *(_publish(broker, Topic.parse(name), "durable", each, 0) for name in names)
            )
            complete = await audience.reach(number * each, PATIENCE)
        bench.report(
            {
                "case": f"one socket of {number} topics, {each} messages each",
                "server": server,
                "seconds until all are subscribed": seconds,
                "delivered/s": audience.rate,
                "missing": 0 if complete else number * each - audience.count,
                "out of order or twice": audience.wrong,
            }
        )
    finally:
        audience.close()
        target.kill()


# -- the storm -------------------------------------------------------------------------------


async def storm(bench: Bench, server: str) -> None:
    """Kill the gateway of 1,000 clients of 20 topics each; let them come to another one."""
    prefix, sockets, each, missed = f"b{secrets.token_hex(4)}", bench.scaled(1000), 20, 5
    many = max(each, sockets // 5)
    names = [[f"durable.t{(n + 7 * k) % many}" for k in range(each)] for n in range(sockets)]
    site = "project.asgi:application"
    first = _gateway(bench, server, prefix, site)
    second = _gateway(bench, server, prefix, site)
    audience = Audience(names)
    topics = [Topic("durable", f"t{n}") for n in range(many)]
    loop = asyncio.get_running_loop()
    try:
        await audience.connect(first.port)
        await audience.subscribe()
        async with _publisher(bench, prefix) as broker:
            # One message each before, so that there is a position to prove
            await asyncio.gather(*(_publish(broker, each, "durable", 1, 0) for each in topics))
            await audience.reach(sockets * each, PATIENCE)
            await asyncio.sleep(1)
            first.send(signal.SIGKILL)
            first.wait()
            audience.close()
            await asyncio.gather(*(_publish(broker, each, "durable", missed, 0) for each in topics))
        audience.begin()
        begin = loop.time()
        await audience.connect(second.port)
        connected = loop.time() - begin
        await audience.subscribe()
        subscribed = loop.time() - begin
        complete = await audience.reach(sockets * each * missed, PATIENCE)
        seconds = loop.time() - begin
        bench.report(
            {
                "case": f"storm: {sockets} sockets of {each} topics, {missed} missed messages each",
                "server": server,
                "seconds until all are welcomed": connected,
                "seconds until all are subscribed": subscribed,
                "seconds until all have everything": seconds,
                "recovered": sum(reader.recovered for reader in audience.readers),
                "missing": 0 if complete else sockets * each * missed - audience.count,
                "out of order or twice": audience.wrong,
            }
        )
    finally:
        audience.close()
        first.kill()
        second.kill()


# -- all of it -------------------------------------------------------------------------------


def _cases(options: argparse.Namespace, bench: Bench) -> Iterator[object]:
    for server in options.servers:
        if "fan-out" in options.cases:
            for sockets in options.sockets:
                for kind in options.kinds:
                    yield fan_out(bench, server, kind, sockets)
        if "topics" in options.cases:
            yield many_topics(bench, server)
        if "storm" in options.cases:
            yield storm(bench, server)


def main(argv: list[str]) -> int:
    """Measure; print a row per case. Fails if ours lost, repeated or reordered anything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks topics", description=__doc__)
    parser.add_argument("--servers", nargs="+", default=["daphne", "uvicorn"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sockets", nargs="+", type=int, default=SOCKETS)
    parser.add_argument("--cases", nargs="+", default=["fan-out", "topics", "storm"])
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
