"""Break Kafka, NATS and the bridges between them at random, and count.

Three servers of each, and two bridges. What was acknowledged to a client must reach the service,
and what was confirmed to a service must be in the inbox once, each user's in order.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import django

from tests.bridges import kafka_server
from tests.bridges.kafka_server import KafkaServer
from tests.support import Process
from wsgateway.broker.cluster import Cluster

if TYPE_CHECKING:
    from tests.bridges.sides import Seen

__all__ = ["run"]

USERS = 20
PAUSE = 0.1
"""Seconds between two messages of a user, each way: what one machine with all of it can carry."""
ANSWER = 5.0
"""Seconds in which NATS says that it has a client's message; then it is sent again."""
SETTLE = 120.0
SETTINGS = "tests.bridges.site_settings"


class Soak:
    """Everything that runs, and what can be broken.

    Args:
        folder: For stores and logs.
        kafka: Its servers.
        nats: Those of NATS.
        draw: Decides everything that is random.
    """

    def __init__(
        self, folder: Path, kafka: list[KafkaServer], nats: Cluster, draw: random.Random
    ) -> None:
        from tests.bridges.processes import Bridges
        from tests.bridges.sides import KafkaSide
        from wsgateway.broker.nats.broker import NatsBroker
        from wsgateway.broker.nats.connection import ConnectionOptions
        from wsgateway.protocol.subjects import Subjects

        self.kafka, self.nats, self.draw = kafka, nats, draw
        self.side = KafkaSide(kafka[0])
        self.side.url = "kafka://" + ",".join(server.address() for server in kafka)
        self.maker = Bridges(folder, self.side, ",".join(nats.urls))
        self.bridges: list[Process] = []
        options = ConnectionOptions(tuple(nats.urls), timeout=60.0)
        self.broker = NatsBroker(options, Subjects(self.side.prefix), [])
        self.offered: Counter[str] = Counter()  # acknowledged to each client
        self.produced: Counter[str] = Counter()  # confirmed to the service, for each user
        self._faults = 0
        self._traffic: list[asyncio.Task[None]] = []
        self._ended = False

    async def start(self) -> None:
        """Start bridges and traffic."""
        from wsgateway.bridges.buses import make_bus

        await make_bus(self.side.bridge()).set_up()
        self.bridges = [await self.maker.start(), await self.maker.start()]
        await self.broker.open()
        await self.broker.wait_ready()
        users = [f"u{n}" for n in range(USERS)]
        for each in (self._offer, self._produce):
            for user in users:
                name = f"{each.__name__[1:]} for {user}"
                self._traffic.append(asyncio.create_task(each(user), name=name))

    async def _offer(self, user: str) -> None:
        from wsgateway.exceptions import WsGatewayError
        from wsgateway.protocol.frames import Frame
        from wsgateway.protocol.subjects import Inbox

        while not self._ended:
            number = self.offered[user]
            try:
                frame = Frame(b"%d" % number, True)
                async with asyncio.timeout(ANSWER):  # as gateways do: a dead leader gives none
                    await self.broker.offer(Inbox("orders", user), frame, f"{user}.{number}")
            except (WsGatewayError, TimeoutError):
                await asyncio.sleep(0.2)
                continue
            self.offered[user] += 1
            await asyncio.sleep(PAUSE)

    async def _produce(self, user: str) -> None:
        while not self._ended:
            await self.side.produce(f"orders.{user}", b"%d" % self.produced[user])
            self.produced[user] += 1
            await asyncio.sleep(PAUSE)

    # -- faults ----------------------------------------------------------------------------

    async def kill_kafka(self) -> None:
        server = self.draw.choice(self.kafka)
        server.kill()
        await asyncio.sleep(self.draw.uniform(0.0, 5.0))
        await asyncio.to_thread(server.start)

    async def freeze_kafka(self) -> None:
        server = self.draw.choice(self.kafka)
        server.pause()
        await asyncio.sleep(self.draw.uniform(1.0, 15.0))
        server.resume()

    async def kill_bridge(self) -> None:
        bridge = self.bridges.pop(self.draw.randrange(len(self.bridges)))
        bridge.kill()
        self.bridges.append(await self.maker.start())

    async def end_bridge(self) -> None:
        bridge = self.bridges.pop(self.draw.randrange(len(self.bridges)))
        await asyncio.to_thread(bridge.stop, 30)
        self.bridges.append(await self.maker.start())

    async def kill_nats(self) -> None:
        server = self.draw.choice(list(self.nats))
        server.kill()
        await asyncio.sleep(self.draw.uniform(0.0, 5.0))
        await asyncio.to_thread(server.start)

    def faults(self) -> list[Callable[[], Awaitable[None]]]:
        """Return what can be broken."""
        return [
            self.kill_kafka,
            self.freeze_kafka,
            self.kill_bridge,
            self.end_bridge,
            self.kill_nats,
        ]

    async def break_things(self, seconds: float) -> None:
        """Inject one fault after the other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            fault = self.draw.choice(self.faults())
            print(time.strftime("%X"), fault.__name__.replace("_", " "), flush=True)
            self._faults += 1
            await fault()
            await asyncio.sleep(self.draw.uniform(0.5, 4.0))

    # -- the count -------------------------------------------------------------------------

    async def settle(self) -> list[str]:
        """End the traffic, wait until all of it has arrived, and return what is wrong."""
        self._ended = True
        done, late = await asyncio.wait(self._traffic, timeout=SETTLE)
        for task in done:
            task.result()
        problems = [f"not confirmed within {SETTLE:g} s: {task.get_name()}" for task in late]
        for task in late:
            task.cancel()
        problems += await self._check_service() + await self._check_inboxes()
        await self.broker.close()
        await self.side.close()
        for bridge in self.bridges:
            await asyncio.to_thread(bridge.stop, 30)
        return problems

    async def _check_service(self) -> list[str]:
        total = sum(self.offered.values())
        seen: dict[str, list[int]] = {}
        known: set[tuple[str, bytes]] = set()

        def enough(records: list[Seen]) -> bool:
            if not records:
                return False
            record = records[-1]
            seen.setdefault(record.key, []).append(int(record.payload))
            known.add((record.key, record.payload))
            return len(known) >= total

        with suppress(TimeoutError):  # what is missing then is said below
            # Faults may have left a long queue, and three servers of each kind share this machine
            await self.side.sent_until("orders", enough, within=SETTLE + total / 100)
        twice = sum(len(each) - len(set(each)) for each in seen.values())
        print(f"clients sent {total} messages; {twice} came to the service twice")
        problems = [
            f"{user}: the service has {list(dict.fromkeys(seen.get(user, [])))[-5:]} last, of {n}"
            for user, n in self.offered.items()
            if list(dict.fromkeys(seen.get(user, []))) != list(range(n))
        ]
        if twice > USERS * self._faults:
            problems.append(f"{twice} are more than one of each user for each fault")
        return problems

    async def _check_inboxes(self) -> list[str]:
        from tests.bridges.processes import read_inbox

        problems = []
        deadline = time.monotonic() + SETTLE
        for user, n in self.produced.items():
            found: list[int] = []
            while time.monotonic() < deadline:
                found = await read_inbox(self.broker, user)
                if len(found) >= n:
                    break
                await asyncio.sleep(0.5)
            if found != list(range(n)):
                problems.append(f"{user}: the inbox has {len(found)} messages, not {n} in order")
        print(f"the service produced {sum(self.produced.values())} messages")
        return problems


async def _soak(folder: Path, seed: int, seconds: float) -> list[str]:
    with (
        Cluster(folder / "nats", sync_interval="10s") as nats,
        kafka_server.kafka_cluster(folder, 3) as kafka,
    ):
        soak = Soak(folder, kafka, nats, random.Random(seed))
        try:
            await soak.start()
            await soak.break_things(seconds)
            return await soak.settle()
        finally:
            for bridge in soak.bridges:
                bridge.kill()


def run(folder: Path, seed: int, seconds: float) -> int:
    """Run, print the counts, and return 0 if every promise was kept."""
    reason = kafka_server.why_not()
    if reason:
        print(f"no Kafka: {reason}", file=sys.stderr)
        return 2
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    os.environ["TEST_REPLICAS"] = "3"
    django.setup()
    problems = asyncio.run(_soak(folder, seed, seconds))
    print("\n".join(problems) or "every promise was kept", flush=True)
    return 1 if problems else 0
