"""A TCP proxy between a client and a gateway: it can lead elsewhere, or go deaf."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

P = TypeVar("P", bound="Proxy")


class Proxy:
    """Forwards connections to *target*, a port of loopback.

    While it is `deaf` it forwards nothing and tells nobody: what a lost network looks like to
    both ends. What was under way arrives later, if both still are there.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.pause = 0.0
        """Seconds that each piece of up to 64 KiB takes, in each direction."""
        self._hearing = asyncio.Event()
        self._hearing.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def deaf(self) -> bool:
        """Whether it forwards nothing."""
        return not self._hearing.is_set()

    @deaf.setter
    def deaf(self, value: bool) -> None:
        if value:
            self._hearing.clear()
        else:
            self._hearing.set()

    async def serve(
        self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter
    ) -> None:
        """Forward one connection until either end closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [client_writer]
        try:
            await self._hearing.wait()
            reader, writer = await asyncio.open_connection("127.0.0.1", self.choose())
            writers.append(writer)
            pumps = [
                asyncio.create_task(self._pump(client_reader, writer)),
                asyncio.create_task(self._pump(reader, client_writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there now, or the test ends
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._hearing.wait()
            if self.pause:
                await asyncio.sleep(self.pause)
            writer.write(data)
            await writer.drain()
        await self._hearing.wait()

    def choose(self) -> int:
        """Return the port that a new connection leads to."""
        return self.target

    async def cut(self) -> None:
        """Cut every connection; new ones are forwarded."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Balancer(Proxy):
    """Forwards each connection to one of several ports, chosen at random.

    Args:
        targets: The ports; change the list at any time.
        draw: Chooses one.
    """

    def __init__(self, targets: list[int], draw: Callable[[list[int]], int]) -> None:
        super().__init__(0)
        self.targets = targets
        self._draw = draw

    def choose(self) -> int:
        """Return one of the targets; a port that refuses if there is none."""
        return self._draw(self.targets) if self.targets else 1


@contextlib.asynccontextmanager
async def proxy_to(target: int) -> AsyncIterator[Proxy]:
    """Forward from a free port of loopback to *target*."""
    async with listening(Proxy(target)) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def listening(proxy: P) -> AsyncIterator[P]:
    """Listen on a free port of loopback."""
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.cut()
        await server.wait_closed()
