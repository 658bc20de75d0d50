"""Break a whole installation at random for some time, and count.

Three NATS servers (or one), three gateways, two workers, publishers and clients run as processes
on this machine; faults come one after the other, or two at once. Everything that was
acknowledged must arrive. The seed decides which faults come, so a run can be repeated as far as
timing allows.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.breakage import CLUSTER, SINGLE, name_of
from tests.soak.checker import Report, check
from tests.soak.world import World, running_world

__all__ = ["soak"]


async def break_things(
    world: World, seconds: float, most: int | None, *, say: bool, only: str = ""
) -> None:
    """Inject faults until *seconds* have passed, or *most* were injected."""
    faults = CLUSTER if len(world.servers) > 1 else SINGLE
    faults = [fault for fault in faults if only in name_of(fault)]
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline and (most is None or count < most):
        fault = world.draw.choice(faults)
        others = [other for other in faults if _together(name_of(fault), name_of(other))]
        chosen = [fault]
        if others and world.draw.random() < 0.3:
            chosen.append(world.draw.choice(others))
        for each in chosen:
            count += 1
            world.note("fault", name=name_of(each))
        if say:
            print(f"{time.strftime('%X')} {' and '.join(map(name_of, chosen))}", flush=True)
        await asyncio.gather(*(each(world) for each in chosen))
        world.require_alive()
        await asyncio.sleep(world.draw.uniform(0.5, 3.0))


def _together(first: str, second: str) -> bool:
    """Whether two faults may happen at once: not two to servers, and none beside a lost stream."""
    servers = ("server", "leader", "nats", "store", "stream", "tail")
    gateways = ("gateway", "freeze")
    return not any(
        any(word in first for word in group) and any(word in second for word in group)
        for group in (servers, gateways, ("worker", "freeze"), ("client", "freeze"))
    )


async def soak(
    folder: Path,
    seed: int,
    *,
    seconds: float,
    most: int | None = None,
    servers: int = 3,
    gateways: int = 3,
    users: int = 12,
    pause: float = 0.05,
    say: bool = False,
    only: str = "",
) -> Report:
    """Run once; return what the ledgers say.

    Args:
        folder: An empty one.
        seed: Decides the faults.
        seconds: How long faults come.
        most: How many faults at most.
        servers: 3, or 1: then streams are replaced and lose their end too.
        gateways: Daphne and uvicorn by turns.
        users: Who each have a client, and some a slow one and a raw socket too.
        pause: Seconds between two messages to one user.
        say: Print each fault.
        only: A part of the names of faults that may come.
    """
    draw = random.Random(seed)
    async with running_world(folder, servers=servers, draw=draw) as world:
        await world.start(gateways=gateways, users=users, pause=pause)
        await asyncio.sleep(1.0)
        await break_things(world, seconds, most, say=say, only=only)
        await world.settle()
        report = check(world.entries())
        for text in world.tracebacks():
            report.break_promise(text)
    return report


def main() -> int:
    """Run, print the counts, and return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults come")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--servers", type=int, choices=[1, 3], default=3)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--faults", type=int, help="how many at most")
    parser.add_argument("--only", default="", help="part of the names of faults that may come")
    parser.add_argument(
        "--bridges", action="store_true", help="break Kafka and bridges instead of gateways"
    )
    parser.add_argument("--folder", type=Path, help="where stores, logs and ledgers stay")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="wsgateway-soak-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.bridges:
            from tests.soak import bridges  # it needs what only bridges need

            return bridges.run(folder, options.seed, options.minutes * 60)
        report = asyncio.run(
            soak(
                folder,
                options.seed,
                seconds=options.minutes * 60,
                most=options.faults,
                servers=options.servers,
                users=options.users,
                say=True,
                only=options.only,
            )
        )
    print(report, flush=True)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
