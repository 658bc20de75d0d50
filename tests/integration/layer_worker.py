"""A process with a channel layer, driven line by line: what tests kill.

Each line of its input is a JSON array: the name of a function of `Worker`, where to run it, its
arguments. Each line of its output answers one: ``[true, result]`` or ``[false, error]``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from re import Pattern
from typing import Any

from channels.exceptions import ChannelFull

from tests.support import ROOT, site_env

LASTING = ["loop", "other loop"]
"""Where a call may run: in the process's main loop, or in that of another thread."""
PLACES = [*LASTING, "new loop", "async_to_sync"]
"""The same, or in a loop made for this call, by ``asyncio.run`` or in a plain thread."""
CAPACITY = 4
"""Of process-specific channels."""


class Worker:
    """The functions that run in the process."""

    def __init__(self, url: str) -> None:
        from wsgateway.broker.nats import channels

        # What a killed process had fetched goes to others after that
        channels.ACK_WAIT = 5.0  # type: ignore[attr-defined]
        self.url = url
        self.layer: Any = None

    async def open(self, prefix: str) -> str:
        from wsgateway.layer import NatsChannelLayer

        capacities: dict[str | Pattern[str], int] = {"work*": 10_000}
        self.layer = NatsChannelLayer(
            self.url, prefix=prefix, capacity=CAPACITY, channel_capacity=capacities
        )
        return str(self.layer.client_prefix)

    async def close(self) -> None:
        await self.layer.close()

    async def new_channel(self) -> str:
        return str(await self.layer.new_channel())

    async def send(self, channel: str, numbers: list[int]) -> bool:
        """Return False if the channel is full."""
        try:
            for number in numbers:
                await self.layer.send(channel, {"type": "x", "n": number})
        except ChannelFull:
            return False
        return True

    async def group_send(self, group: str, number: int) -> None:
        await self.layer.group_send(group, {"type": "x", "n": number})

    async def group_add(self, group: str, channel: str) -> None:
        await self.layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self.layer.group_discard(group, channel)

    async def receive(self, channel: str) -> int:
        async with asyncio.timeout(30):
            return int((await self.layer.receive(channel))["n"])

    async def cancelled_receive(self, channel: str, turns: int) -> int | None:
        """Cancel a receive after so many turns of the loop; return what it had, if anything."""
        task = asyncio.create_task(self.layer.receive(channel))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return None if task.cancelled() else int(task.result()["n"])

    async def flush(self) -> None:
        await self.layer.flush()

    async def confirm(self) -> None:
        """Wait until the server has what was sent from here, and this process what came."""
        from wsgateway.broker import runtime

        for connection in runtime.connections():
            # A cancelled call may just have begun to connect
            await connection.call(connection.connect)
            await connection.call(connection.bus.confirm)
        await self.layer.local.confirm()

    async def stored(self, channel: str) -> int:
        """Return how many messages the server keeps for a normal channel."""
        from tests.integration.layers import stored

        return await stored(self.layer, channel)

    async def waiting(self, channel: str) -> int:
        """Return how many messages wait in this process for a reader of one of its channels."""
        box = self.layer.local.mailboxes.get(channel.encode())
        return len(box.queue) if box is not None else 0


async def serve(url: str) -> None:
    """Do what the lines of standard input say."""
    from asgiref.sync import async_to_sync

    worker = Worker(url)
    other = asyncio.new_event_loop()
    threading.Thread(target=other.run_forever, daemon=True).start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, place, *arguments = json.loads(line)
        function = getattr(worker, name)
        try:
            if place == "loop":
                result = await function(*arguments)
            elif place == "other loop":
                call = asyncio.run_coroutine_threadsafe(function(*arguments), other)
                result = await asyncio.wrap_future(call)
            elif place == "new loop":
                result = await asyncio.to_thread(asyncio.run, function(*arguments))
            else:
                result = await asyncio.to_thread(async_to_sync(function), *arguments)
            answer = [True, result]
        except Exception as exc:
            answer = [False, repr(exc)]
        print(json.dumps(answer), flush=True)


class WorkerProcess:
    """The process, seen from the test. Blocking.

    Args:
        url: Of the nats-server.
    """

    def __init__(self, url: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.layer_worker", url],
            cwd=ROOT,
            env=site_env(DJANGO_SETTINGS_MODULE="tests.settings"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.client = ""
        """What the names of its channels hold."""

    @property
    def pid(self) -> int:
        """The process's."""
        return self._child.pid

    def open(self, prefix: str) -> None:
        """Begin with a new layer."""
        self.client = self.call("open", "loop", prefix)

    def call(self, name: str, place: str, *arguments: Any) -> Any:
        """Run a function there; return its result."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([name, place, *arguments]) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, "the process has ended"
        done, result = json.loads(line)
        assert done, f"{name}{arguments}: {result}"
        return result

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._child.kill()
        self._child.communicate()


if __name__ == "__main__":
    import django

    django.setup()
    asyncio.run(serve(sys.argv[1]))
