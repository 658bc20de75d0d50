"""The same two jobs by HTTP, on wsgateway and on Pushpin; and what each loses when it is killed.

The first job: publish by HTTP to 1,000 readers, to each alone and to all at once. The second: give
what clients send to an HTTP backend, and its answers to the clients. One process publishes, one
holds all readers, and one is the backend, whichever system serves.

The guarantees differ. wsgateway stores each message before it answers the publisher, and its
readers resume. Pushpin passes messages on, and what its readers missed is for the backend to know.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.http_client import Crowd, EventReader, SocketReader
from benchmarks.http_frames import frames, kill_frames
from benchmarks.http_publisher import command
from benchmarks.http_systems import Backend, Ours, Pushpin, System, cpu, memory, missing, site
from benchmarks.http_table import tables
from benchmarks.load import percentile
from tests.support import site_env

Row = dict[str, Any]
SYSTEMS = ("daphne", "uvicorn", "pushpin")
TRANSPORTS = {"sse": EventReader, "ws": SocketReader}
READERS = 1000
TOPIC_PACE = 5.0
USER_PACE = 200.0
"""Messages a second while the latency is measured."""
PATIENCE = 20.0


class Bench:
    """What all cases share.

    Args:
        folder: For stores and logs.
        scale: Of all numbers.
    """

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder = folder
        self.scale = scale
        self.rows: list[Row] = []
        self.backend = Backend(folder)
        self.key = ""

    def __enter__(self) -> Bench:
        self.backend.start()
        os.environ.update(DEBUG="1", SECRET_KEY="tests", **site(self.folder, self.backend))
        self.key = _make_key()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.backend.kill()

    def scaled(self, count: int) -> int:
        """Return how many of *count* this run takes."""
        return max(20, int(count * self.scale))

    def system(self, name: str, *, worker: bool = False) -> System:
        """Return a new system, which is not started."""
        if name == "pushpin":
            return Pushpin(self.folder, self.backend)
        return Ours(self.folder, name, self.backend, self.key, worker=worker)

    def report(self, row: Row) -> None:
        """Keep and print a row."""
        self.rows.append({name: _round(value) for name, value in row.items()})
        print(json.dumps(self.rows[-1]), flush=True)


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _round(each) for name, each in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def _make_key() -> str:
    import django

    django.setup()
    from django.core.management import call_command

    from wsgateway.api import keys

    call_command("migrate", "wsgateway", verbosity=0)
    return keys.create("bench", ["*"], ["publish"], rate=0)[1]


# -- publishing ------------------------------------------------------------------------------


async def _start_publisher(system: System, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command(**system.publish, **options), stdout=asyncio.subprocess.PIPE, env=site_env()
    )


async def _publish(system: System, crowd: Crowd, wanted: int, **options: Any) -> Row:
    """Run a publisher process until *wanted* messages have come; return what it says."""
    crowd.begin()
    publisher = await _start_publisher(system, **options)
    output, _ = await publisher.communicate()
    await crowd.reach(wanted, PATIENCE)
    return {**json.loads(output), "missing": wanted - crowd.count}


async def publish(bench: Bench, name: str, transport: str) -> None:
    """Connect readers; then a few messages a second for the latency; then a flood."""
    system, readers = bench.system(name), bench.scaled(READERS)
    crowd = Crowd(TRANSPORTS[transport], readers, ours=name != "pushpin")
    loads: dict[str, Row] = {
        "topic": {"to": "topic", "count": bench.scaled(100), "batch": 10},
        "user": {"to": "user", "count": bench.scaled(2000), "lanes": 16},
        "users at once": {"to": "user", "count": bench.scaled(20_000), "batch": 100},
    }
    system.start()
    try:
        before = memory(system)
        seconds = await crowd.connect(system.port)
        await asyncio.sleep(1)
        after = memory(system)
        shared = {"transport": transport, "users": readers}
        await _publish(system, crowd, 20, **shared, to="user", count=20)  # imports what it needs
        row: Row = {"case": "publish", "system": name, "transport": transport, "readers": readers}
        row |= {"connects/s": readers / seconds, "MB": after}
        row["KB/reader"] = sum(after[each] - before[each] for each in after) * 1024 / readers
        for to, pace in (("topic", TOPIC_PACE), ("user", USER_PACE)):
            count = max(10, int(4 * pace * bench.scale))
            wanted = count * readers if to == "topic" else count
            done = await _publish(system, crowd, wanted, **shared, to=to, count=count, rate=pace)
            delays = crowd.delays
            row[f"{to} p50 ms"], row[f"{to} p99 ms"] = (percentile(delays, p) for p in (0.5, 0.99))
            row[f"{to} missing"] = done["missing"]
        for load, options in loads.items():
            wanted = options["count"] * (readers if options["to"] == "topic" else 1)
            spent, busy = cpu(system), time.process_time()
            done = await _publish(system, crowd, wanted, **shared, **options)
            row[f"{load}: delivered/s"] = crowd.rate
            row[f"{load}: CPU us"] = (cpu(system) - spent) / wanted * 1e6
            row[f"{load}: readers' CPU us"] = (time.process_time() - busy) / wanted * 1e6
            row[f"{load}: publisher's CPU"] = done["CPU"]
            row[f"{load}: missing"] = done["missing"]
            row[f"{load}: twice or out of order"] = crowd.twice + crowd.disorder
        bench.report({**row, "MB in the end": memory(system)})
    finally:
        crowd.close()
        system.close()


# -- killed in the middle --------------------------------------------------------------------


async def kill(bench: Bench, name: str, transport: str) -> None:
    """Kill the gateway while one process publishes to a topic, and one to users; start it again.

    The publishers repeat each request until it is answered with success, so every message was
    accepted. Readers come back 0.5 to 1.5 seconds after they were cut, as browsers do.
    """
    system, readers = bench.system(name), bench.scaled(READERS)
    crowd = Crowd(TRANSPORTS[transport], readers, ours=name != "pushpin")
    topics, users = max(20, int(60 * bench.scale)), max(200, int(1200 * bench.scale))
    shared = {"transport": transport, "users": readers, "ids": 1}
    seconds = max(2.0, 6 * bench.scale)
    system.start()
    try:
        await crowd.connect(system.port)
        await asyncio.sleep(1)
        crowd.begin()
        crowd.returns = True
        publishers = [
            await _start_publisher(
                system, **shared, to="topic", count=topics, rate=topics / seconds
            ),
            await _start_publisher(system, **shared, to="user", count=users, rate=users / seconds),
        ]
        await crowd.reach(topics * readers // 3, PATIENCE)
        system.kill()
        begin = time.monotonic()
        system.revive()
        outputs = [json.loads((await each.communicate())[0]) for each in publishers]
        while crowd.away and time.monotonic() - begin < 60:
            await asyncio.sleep(0.1)
        await crowd.reach(topics * readers + users, 3.0)
        got_topic = sum(sum(number < 10**9 for number in each.seen) for each in crowd.readers)
        bench.report(
            {
                "case": "kill",
                "system": name,
                "transport": transport,
                "readers": readers,
                "wanted of the topic": topics * readers,
                "lost of the topic": topics * readers - got_topic,
                "wanted of users": users,
                "lost of users": users - (crowd.count - got_topic),
                "twice": crowd.twice,
                "out of order": crowd.disorder,
                "tries of the publishers that failed": sum(each["failed"] for each in outputs),
                "readers that did not come back": crowd.away,
            }
        )
    finally:
        crowd.close()
        system.close()


# -- all of it -------------------------------------------------------------------------------


def _cases(options: argparse.Namespace, bench: Bench) -> Iterator[Any]:
    for name in options.systems:
        for transport in options.transports:
            if "publish" in options.cases:
                yield publish(bench, name, transport)
            if "kill" in options.cases:
                yield kill(bench, name, transport)
        if "frames" in options.cases:
            yield frames(bench, name)
        if "kill" in options.cases:
            yield kill_frames(bench, name)


def _failures(row: Row) -> int:
    """Return how many messages ours lost, repeated or reordered."""
    if row["system"] == "pushpin":
        return 0
    words = ("missing", "out of order", "lost", "twice", "wrong")
    return sum(value for name, value in row.items() if any(word in name for word in words))


def main(argv: list[str]) -> int:
    """Measure; print a row per case. Fails if ours lost, repeated or reordered anything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks http", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--transports", nargs="+", choices=[*TRANSPORTS], default=[*TRANSPORTS])
    parser.add_argument("--cases", nargs="+", default=["publish", "kill", "frames"])
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument(
        "--tables", type=Path, help="print what --json wrote as tables; measure not"
    )
    options = parser.parse_args(argv)
    if options.tables:
        print(tables(json.loads(options.tables.read_text())))
        return 0
    if "pushpin" in options.systems and missing():
        raise SystemExit(f"{missing()}; or choose --systems daphne uvicorn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes end with us
    scale = 0.05 if options.quick else 1.0
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), scale) as bench:
        for case in _cases(options, bench):
            asyncio.run(case)
    if options.json:
        options.json.write_text(json.dumps(bench.rows, indent=1) + "\n")
    return 1 if sum(map(_failures, bench.rows)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
