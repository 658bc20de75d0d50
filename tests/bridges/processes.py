"""Bridges in processes of their own, between a NATS and a bus of the tests."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bridges.sides import Side
from tests.support import ROOT, Process, site_env, wait_for
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

__all__ = ["Bridges", "offer_all", "produce_all", "read_inbox"]


class Bridges:
    """Runs ``manage.py runbridge``; use `running`.

    Args:
        folder: For logs.
        side: Where the bridge leads.
        nats: The URL of NATS.
        options: Of the bridge.
    """

    def __init__(self, folder: Path, side: Side, nats: str, **options: Any) -> None:
        self._folder = folder
        self._count = 0
        self._stack = ExitStack()
        self._env = site_env(
            DJANGO_SETTINGS_MODULE="tests.bridges.site_settings",
            NATS_BROKER_URL=nats,
            WSGATEWAY_PREFIX=side.prefix,
            TEST_BRIDGES=json.dumps({"warehouse": side.options(**options)}),
        )

    @classmethod
    @contextmanager
    def running(cls, folder: Path, side: Side, nats: str, **options: Any) -> Iterator[Bridges]:
        """Make it, and kill all of its processes in the end."""
        self = cls(folder, side, nats, **options)
        with self._stack:
            yield self

    async def start(self) -> Process:
        """Start a bridge, and wait until it carries messages."""
        self._count += 1
        ready = self._folder / f"ready{self._count}"
        command = ["manage.py", "runbridge", "--noreload", "--ready-file", str(ready)]
        log = self._folder / f"bridge{self._count}.log"
        process = Process([sys.executable, *command], log, self._env, ROOT)
        self._stack.callback(process.kill)
        process.spawn()
        await asyncio.to_thread(
            wait_for,
            lambda: ready.exists() or not process.running,
            40,
            lambda: f"the bridge is ready:\n{process.output}",
        )
        assert process.running, process.output
        return process


async def offer_all(broker: NatsBroker, users: int, count: int) -> None:
    """Store *count* numbers that clients send, each user's in order."""
    for begin in range(0, count, 500):
        numbers = range(begin, min(begin + 500, count))
        offers = [
            broker.offer(Inbox("orders", f"u{n % users}"), Frame(b"%d" % n, True), f"offer{n}")
            for n in numbers
        ]
        await asyncio.gather(*offers)


async def produce_all(side: Side, users: int, count: int) -> None:
    """Store *count* numbers that services produce, each user's in order."""

    async def produce(user: int) -> None:
        for n in range(user, count, users):
            await side.produce(f"orders.u{user}", b"%d" % n, id=f"produced{n}")

    await asyncio.gather(*(produce(user) for user in range(users)))


async def read_inbox(broker: NatsBroker, user: str) -> list[int]:
    """Return the numbers in a user's inbox."""
    found: list[int] = []
    inbox, offset = Inbox("orders", user), 0
    while True:
        batch = await broker.log(inbox).read_after(inbox, offset, limit=1000)
        if not batch.messages:
            return found
        found += [int(message.payload) for message in batch.messages]
        offset = batch.messages[-1].offset
