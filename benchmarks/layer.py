"""The channel layer beside its peers: rates, latencies and ratios, interleaved in one run."""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import itertools
import logging
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import django
from asgiref.sync import async_to_sync

from benchmarks.layer_peers import NAMES, Servers, available, make_layer, servers
from benchmarks.layer_receiver import Receiver, RemoteReceiver

MESSAGE = {"type": "bench.message", "text": "x" * 100}
SERVICE = "service"
"""One that exists with the tests' settings, so that its users' groups are durable."""
PROBE = 40
"""Messages from which the number for the wanted duration is estimated."""
MOST = {"sends": 60_000, "deliveries": 400_000}
_numbers = itertools.count()


class Pair(NamedTuple):
    """One layer: the sender's here and the receiver's."""

    name: str
    layer: Any
    receiver: Any


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        title: What is measured.
        unit: Of the values.
        run: Measures for about so many seconds; returns the value, and the messages lost.
        reach: What ours should be as a multiple of the best of *against*; at most, for latencies.
        against: The peers that count.
        layers: Who takes part.
        beside: The row whose peers count, if it is another one.
        floor: What ours should reach by itself, where no peer has the same.
    """

    title: str
    unit: str
    run: Callable[[Pair, float], Awaitable[tuple[float, int]]]
    reach: float
    against: tuple[str, ...] = ("core", "pubsub", "channels-nats")
    layers: tuple[str, ...] = tuple(NAMES)
    beside: str = ""
    floor: float = 0

    @property
    def less_is_better(self) -> bool:
        """Whether the value is a latency."""
        return self.unit == "ms"


# -- what is measured ------------------------------------------------------------------------


async def flood(
    pair: Pair, seconds: float, each: int, send: Callable[[int], Awaitable[None]], at_once: int = 1
) -> tuple[float, int]:
    """Send as fast as `send` allows; return deliveries per second until the last arrived.

    Args:
        pair: The layer.
        seconds: About how long.
        each: Deliveries that one sent message means.
        send: Sends the message with this number.
        at_once: How many sends may be in flight.
    """
    rate, _ = await _burst(pair, PROBE, each, send, at_once)
    count = int(rate / each * seconds)
    count = max(PROBE, min(count, MOST["sends"], MOST["deliveries"] // each))
    return await _burst(pair, count, each, send, at_once)


async def _burst(
    pair: Pair, count: int, each: int, send: Callable[[int], Awaitable[None]], at_once: int
) -> tuple[float, int]:
    gc.collect()
    begin = time.time()
    if at_once == 1:
        for number in range(count):
            await send(number)
    else:
        numbers = iter(range(count))

        async def sender() -> None:
            for number in numbers:
                await send(number)

        await asyncio.gather(*(sender() for _ in range(at_once)))
    result = await pair.receiver.collect(count * each)
    arrived = int(result["count"])
    return arrived / max(result["last"] - begin, 1e-9), count * each - arrived


async def to_channel(pair: Pair, seconds: float) -> tuple[float, int]:
    """Send to one process-specific channel."""
    [channel] = await pair.receiver.prepare(1, [])
    return await flood(pair, seconds, 1, lambda _: pair.layer.send(channel, MESSAGE))


def to_normal(at_once: int = 1) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: send to a normal channel."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        [channel] = await pair.receiver.prepare(0, [], f"normal-{next(_numbers)}")
        return await flood(pair, seconds, 1, lambda _: pair.layer.send(channel, MESSAGE), at_once)

    return run


def to_absent(
    at_once: int = 1, users: int = 1000
) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: store for *users* who are offline."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        tag = f"{SERVICE}.absent{next(_numbers)}"

        async def store(count: int) -> float:
            numbers = iter(range(count))

            async def sender() -> None:
                for number in numbers:
                    await pair.layer.group_send(f"{tag}-user{number % users}", MESSAGE)

            begin = time.perf_counter()
            await asyncio.gather(*(sender() for _ in range(at_once)))
            return count / (time.perf_counter() - begin)

        rate = await store(PROBE)
        return await store(max(PROBE, min(int(rate * seconds), MOST["sends"]))), 0

    return run


def to_group(members: int) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: one group, *members* members."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        group = f"group-{next(_numbers)}"
        await pair.receiver.prepare(members, [group])
        return await flood(pair, seconds, members, lambda _: pair.layer.group_send(group, MESSAGE))

    return run


def to_users(
    durable: bool, at_once: int = 1, users: int = 1000
) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: *users* groups with a member each, addressed in turn."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        tag = (f"{SERVICE}." if durable else "") + f"bench{next(_numbers)}"
        groups = [f"{tag}-user{number}" for number in range(users)]
        await pair.receiver.prepare(users, groups)
        send = pair.layer.group_send
        return await flood(
            pair, seconds, 1, lambda number: send(groups[number % users], MESSAGE), at_once
        )

    return run


async def latency(pair: Pair, seconds: float) -> tuple[float, int]:
    """Send 200 messages a second; return the median delay."""
    [channel] = await pair.receiver.prepare(1, [])
    for _ in range(PROBE):
        await pair.layer.send(channel, MESSAGE)
    await pair.receiver.collect(PROBE)
    count = max(100, int(200 * seconds))
    begin = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, begin + number / 200 - time.monotonic()))
        await pair.layer.send(channel, {**MESSAGE, "at": time.time()})
    result = await pair.receiver.collect(count)
    return float(result["p50"]), count - int(result["count"])


def joins(at_once: int = 1) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: add one channel to distinct groups; each call waits for its effect."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        channel = await pair.layer.new_channel()
        tag = f"join{next(_numbers)}"

        async def add(numbers: Iterator[int]) -> None:
            for number in numbers:
                await pair.layer.group_add(f"{tag}-{number}", channel)

        async def rate(first: int, count: int) -> float:
            numbers = iter(range(first, first + count))
            begin = time.perf_counter()
            await asyncio.gather(*(add(numbers) for _ in range(at_once)))
            return count / (time.perf_counter() - begin)

        count = max(PROBE, min(20_000, int(await rate(0, PROBE) * seconds)))
        result = await rate(PROBE, count)
        for number in range(PROBE + count):
            await pair.layer.group_discard(f"{tag}-{number}", channel)
        return result, 0

    return run


def from_thread(
    function: Callable[[Any], Callable[[str, dict[str, Any]], None]],
) -> Callable[[Pair, float], Awaitable[tuple[float, int]]]:
    """Return a case: a plain thread calls what *function* makes of the layer."""

    async def run(pair: Pair, seconds: float) -> tuple[float, int]:
        group = f"sync-{next(_numbers)}"
        await pair.receiver.prepare(1, [group])
        sent: list[float] = []

        def work() -> None:
            send = function(pair.layer)
            for _ in range(PROBE):
                send(group, MESSAGE)
            begin = time.perf_counter()
            count = 0
            while time.perf_counter() - begin < seconds:
                send(group, MESSAGE)
                count += 1
            sent.extend((count + PROBE, count / (time.perf_counter() - begin)))

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(thread.join)
        result = await pair.receiver.collect(int(sent[0]))
        return sent[1], int(sent[0]) - int(result["count"])

    return run


async def _group_send(layer: Any, group: str, message: dict[str, Any]) -> None:
    await layer.group_send(group, message)  # the pub/sub layer wants a loop to look it up


def cases() -> list[Case]:
    """Return the table's rows."""
    stored = ("core",)
    return [
        Case("send to one process-specific channel", "messages/s", to_channel, 1.8),
        Case(
            "send to a normal channel",
            "messages/s",
            to_normal(),
            2,
            stored,
            ("ours", "core", "memory"),
        ),
        Case(
            "the same, 64 in flight",
            "messages/s",
            to_normal(at_once=64),
            5,
            stored,
            ("ours", "core", "memory"),
        ),
        Case("group_send, 1 member", "deliveries/s", to_group(1), 1.5),
        Case("group_send, 10 members", "deliveries/s", to_group(10), 2.5),
        Case("group_send, 100 members", "deliveries/s", to_group(100), 1.3),
        Case("group_send, 1,000 members", "deliveries/s", to_group(1000), 1.5),
        Case("1,000 groups of 1 member", "deliveries/s", to_users(durable=False), 1.6),
        Case(
            "the same, durable", "deliveries/s", to_users(durable=True), 3, stored, ("ours", "core")
        ),
        Case(
            "the same, durable, 64 in flight",
            "deliveries/s",
            to_users(durable=True, at_once=64),
            12,
            stored,
            ("ours", "core"),
        ),
        Case("durable, nobody there", "stored/s", to_absent(), 0, (), ("ours",), floor=4300),
        Case(
            "durable, nobody there, 64 in flight",
            "stored/s",
            to_absent(at_once=64),
            0,
            (),
            ("ours",),
            floor=29_000,
        ),
        Case("latency at 200/s, median", "ms", latency, 0.9),
        Case("group_add, one by one", "calls/s", joins(), 0.9),
        Case("the same, 32 at once", "calls/s", joins(at_once=32), 2),
        Case(
            "async_to_sync(group_send) in a thread",
            "calls/s",
            from_thread(lambda layer: async_to_sync(partial(_group_send, layer))),
            2,
        ),
        Case(
            "group_send_sync in a thread",
            "calls/s",
            from_thread(lambda layer: layer.group_send_sync),
            8,
            layers=("ours",),
            beside="async_to_sync(group_send) in a thread",
        ),
    ]


# -- the run ---------------------------------------------------------------------------------


async def measure(
    where: Servers, names: list[str], rows: list[Case], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Return title -> layer -> a value per round; the layers take turns within each case."""
    pairs = []
    for name in names:
        layer = make_layer(name, where)
        remote = name != "memory"
        pairs.append(Pair(name, layer, RemoteReceiver(name, where) if remote else Receiver(layer)))
    values: dict[str, dict[str, list[float]]] = {row.title: {} for row in rows}
    try:
        for turn in range(rounds):
            for row in rows:
                for pair in pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]:
                    if pair.name not in row.layers:
                        continue
                    value, lost = await row.run(pair, seconds)
                    await pair.receiver.leave()
                    values[row.title].setdefault(pair.name, []).append(value)
                    note = f"   {lost} LOST" if lost else ""
                    print(
                        f"{turn + 1}  {row.title:40} {pair.name:14} {value:12,.2f}{note}",
                        flush=True,
                    )
    finally:
        for pair in pairs:
            if isinstance(pair.receiver, RemoteReceiver):
                await pair.receiver.close()
            if hasattr(pair.layer, "close_pools"):
                await pair.layer.close_pools()
    return values


class Result(NamedTuple):
    """A finished row: medians by layer, and ours as a multiple of the best peer."""

    case: Case
    medians: dict[str, float]
    ratio: float

    @property
    def reached(self) -> bool:
        """Whether that is what is wanted."""
        if self.case.floor:
            return self.medians.get("ours", 0) >= self.case.floor
        if self.case.less_is_better:
            return self.ratio <= self.case.reach
        return self.ratio >= self.case.reach


def summarize(rows: list[Case], values: dict[str, dict[str, list[float]]]) -> list[Result]:
    """Return medians and ratios."""
    results = []
    for row in rows:
        medians = {name: statistics.median(found) for name, found in values[row.title].items()}
        beside = values.get(row.beside) or values[row.title]
        peers = [statistics.median(beside[name]) for name in row.against if name in beside]
        best = (min if row.less_is_better else max)(peers, default=0.0)
        results.append(Result(row, medians, medians.get("ours", 0.0) / best if best else 0.0))
    return results


def show(results: list[Result], names: list[str]) -> None:
    """Print the table, in Markdown."""
    print("\n| case | unit | " + " | ".join(names) + " | ours ÷ best | wanted |")
    print("|---|---|" + "---:|" * (len(names) + 2))
    for case, medians, ratio in results:
        cells = [
            f"{medians[n]:,.{2 if case.unit == 'ms' else 0}f}" if n in medians else ""
            for n in names
        ]
        if case.floor:
            end = f" | ≥ {case.floor:,.0f} {case.unit} |"
        else:
            sign = "≤" if case.less_is_better else "≥"
            end = f"{ratio:.2f} | {sign} {case.reach} x |"
        print(f"| {case.title} | {case.unit} | {' | '.join(cells)} | {end}")


def write_csv(path: Path, values: dict[str, dict[str, list[float]]]) -> None:
    """Write every single value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "layer", "round", "value"])
        for title, by_layer in values.items():
            for name, found in by_layer.items():
                writer.writerows([title, name, turn + 1, value] for turn, value in enumerate(found))


def plot(path: Path, results: list[Result], names: list[str]) -> None:
    """Draw each layer's median as a share of ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(results) + 1.5))
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place + index * height for place in range(len(results))]
        shares = [result.medians.get(name, 0) / result.medians["ours"] for result in results]
        axes.barh(places, shares, height, label=name)
    axes.set_yticks(
        [place + 0.4 - height / 2 for place in range(len(results))],
        [result.case.title for result in results],
    )
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set_xlabel("median as a multiple of ours (for the latency, less is better)")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Measure; print a table of medians and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks layer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="for each value, about")
    parser.add_argument("--only", default="", help="cases whose title contains this; a|b for more")
    parser.add_argument("--layers", default="", help="comma-separated; default: all installed")
    parser.add_argument("--sync-interval", default="2m", help="when nats-server calls fsync")
    parser.add_argument("--csv", type=Path, help="where to write every value")
    parser.add_argument("--plot", type=Path, help="where to draw the medians (.svg or .png)")
    options = parser.parse_args(argv)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    logging.getLogger("channels_redis").setLevel(logging.ERROR)
    names = [
        name
        for name in available()
        if name in (options.layers.split(",") if options.layers else NAMES)
    ]
    rows = [row for row in cases() if any(part in row.title for part in options.only.split("|"))]
    rounds, seconds = (1, 0.3) if options.quick else (options.rounds, options.seconds)
    with servers(options.sync_interval, names != ["ours"]) as where:
        values = asyncio.run(measure(where, names, rows, rounds, seconds))
    results = summarize(rows, values)
    show(results, names)
    if options.csv:
        write_csv(options.csv, values)
    if options.plot:
        plot(options.plot, results, names)
    return 0 if all(result.reached for result in results) else 1
