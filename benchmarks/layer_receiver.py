"""The second process: joins groups, receives, counts. Driven by JSON lines on its stdin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from typing import Any

import django

from benchmarks.layer_peers import Servers, make_layer
from benchmarks.load import percentile

__all__ = ["Receiver", "RemoteReceiver"]

QUIET = 3.0
"""Seconds without a message after which no more are expected."""


class Receiver:
    """Members of groups, and readers of channels, in this process.

    Args:
        layer: The channel layer.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._channels: list[str] = []
        self._memberships: list[tuple[str, str]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0
        self._last = 0.0  # when the last one came
        self._delays: list[float] = []  # ms

    async def prepare(self, channels: int, groups: list[str], normal: str = "") -> list[str]:
        """Start reading *channels* new channels, each in one of *groups* or all in the only one.

        Args:
            channels: How many.
            groups: As many as channels, or one, or none.
            normal: Read this normal channel as well.

        Returns:
            The channels' names.
        """
        self._channels = [await self.layer.new_channel() for _ in range(channels)]
        for number, channel in enumerate(self._channels):
            if groups:
                group = groups[number % len(groups)]
                await self.layer.group_add(group, channel)
                self._memberships.append((group, channel))
        if normal:
            self._channels.append(normal)
        self._tasks = [asyncio.create_task(self._read(channel)) for channel in self._channels]
        await asyncio.sleep(0.1)
        return self._channels

    async def _read(self, channel: str) -> None:
        receive = self.layer.receive
        while True:
            message = await receive(channel)
            self._count += 1
            self._last = time.time()
            if "at" in message:
                self._delays.append((self._last - message["at"]) * 1000)

    async def collect(self, count: int) -> dict[str, float]:
        """Wait for *count* messages, or until no more come; return what came in this burst."""
        before, quiet = -1, time.monotonic()
        while self._count < count and time.monotonic() - quiet < QUIET:
            if self._count != before:
                before, quiet = self._count, time.monotonic()
            await asyncio.sleep(0.01)
        result = {
            "count": self._count,
            "last": self._last,
            "p50": percentile(self._delays, 0.5),
            "p99": percentile(self._delays, 0.99),
        }
        self._count, self._delays = 0, []
        return result

    async def leave(self) -> None:
        """End the readers and the memberships."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for group, channel in self._memberships:
            await self.layer.group_discard(group, channel)
        self._tasks, self._memberships, self._count, self._delays = [], [], 0, []


class RemoteReceiver:
    """A `Receiver` in a process of its own."""

    def __init__(self, name: str, where: Servers) -> None:
        self._arguments = [name, *where]
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the receiver."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.layer_receiver",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receiver of {self._arguments[0]} has ended")
        return json.loads(line)

    async def prepare(self, channels: int, groups: list[str], normal: str = "") -> list[str]:
        """As `Receiver.prepare`."""
        names: list[str] = await self.call("prepare", channels, groups, normal)
        return names

    async def collect(self, count: int) -> dict[str, float]:
        """As `Receiver.collect`."""
        result: dict[str, float] = await self.call("collect", count)
        return result

    async def leave(self) -> None:
        """As `Receiver.leave`."""
        await self.call("leave")

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def serve(name: str, where: Servers) -> None:
    """Do what the lines on stdin say, until it is closed."""
    receiver = Receiver(make_layer(name, where))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        method, *arguments = json.loads(line)
        result = await getattr(receiver, method)(*arguments)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    asyncio.run(serve(sys.argv[1], Servers(*sys.argv[2:4])))
