"""The second job of the benchmark `http`: client frames to an HTTP backend, and its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.http_client import Crowd, SocketReader
from benchmarks.http_systems import cpu, memory
from benchmarks.load import payload, percentile

if TYPE_CHECKING:
    from benchmarks.http import Bench

__all__ = ["frames", "kill_frames"]

CLIENTS = 100
PATIENCE = 20.0
"""Seconds that an answer may take."""


class _Asking:
    """A client that sends the next frame once the last one is answered."""

    def __init__(self, reader: SocketReader) -> None:
        self.delays: list[float] = []
        self.wrong = self.lost = self.twice = 0
        self._reader = reader
        self._sent = b""
        self._begin = 0.0
        self._answered = asyncio.Event()
        self._answered.set()
        reader.on_frame = self._on_answer
        reader.on_back = self._on_back

    async def run(self, until: Callable[[int], bool]) -> None:
        """Ask while *until* says so of the number of the next frame."""
        number = 0
        while until(number):
            while self._reader.is_away:
                await asyncio.sleep(0.05)
            self._answered.clear()
            self._sent, self._begin = payload(number), time.perf_counter()
            self._reader.ask(self._sent)
            async with asyncio.timeout(PATIENCE):
                await self._answered.wait()
            number += 1

    def _on_back(self) -> None:
        """Ask again, as clients of wsgateway do: it knows a frame by its id, and stores it once.

        Pushpin passes on what comes. Its client cannot know what the backend has handled.
        """
        if self._answered.is_set():
            return
        if self._reader.crowd.ours:
            self._reader.ask(self._sent)
        else:
            self.lost += 1
            self._answered.set()

    def _on_answer(self, data: bytes) -> None:
        if self._answered.is_set():
            self.twice += 1
            return
        self.delays.append((time.perf_counter() - self._begin) * 1000)
        self.wrong += self._sent not in data
        self._answered.set()


def _crowd(bench: Bench, name: str) -> Crowd:
    return Crowd(SocketReader, max(10, int(CLIENTS * bench.scale)), ours=name != "pushpin")


def _clients(crowd: Crowd) -> list[_Asking]:
    return [_Asking(each) for each in crowd.readers if isinstance(each, SocketReader)]


async def frames(bench: Bench, name: str) -> None:
    """Let one client ask the backend; then 100 at the same time."""
    system, crowd = bench.system(name, worker=True), _crowd(bench, name)
    system.start()
    try:
        await crowd.connect(system.port)
        await asyncio.sleep(1)
        clients = _clients(crowd)
        alone, count = clients[0], bench.scaled(500)
        await alone.run(lambda number: number < count)
        single = alone.delays[count // 10 :]
        for each in clients:
            each.delays.clear()
        end, spent, busy = time.perf_counter() + 6 * bench.scale, cpu(system), time.process_time()
        begin = time.perf_counter()
        await asyncio.gather(
            *(each.run(lambda _number: time.perf_counter() < end) for each in clients)
        )
        seconds = time.perf_counter() - begin
        delays = [delay for each in clients for delay in each.delays]
        bench.report(
            {
                "case": "frames",
                "system": name,
                "clients": len(clients),
                "1 client p50 ms": percentile(single, 0.5),
                "1 client p99 ms": percentile(single, 0.99),
                "answered/s": len(delays) / seconds,
                "p50 ms": percentile(delays, 0.5),
                "p99 ms": percentile(delays, 0.99),
                "CPU us": (cpu(system) - spent) / len(delays) * 1e6,
                "clients' CPU us": (time.process_time() - busy) / len(delays) * 1e6,
                "MB": memory(system),
                "wrong": sum(each.wrong for each in clients),
            }
        )
    finally:
        crowd.close()
        system.close()


async def kill_frames(bench: Bench, name: str) -> None:
    """Kill the gateway while each client waits for an answer; start it again."""
    system, crowd = bench.system(name, worker=True), _crowd(bench, name)
    seconds = max(3.0, 9 * bench.scale)
    system.start()
    try:
        await crowd.connect(system.port)
        await asyncio.sleep(1)
        crowd.returns = True
        clients = _clients(crowd)
        end = time.perf_counter() + seconds
        asking = [
            asyncio.create_task(each.run(lambda _number: time.perf_counter() < end))
            for each in clients
        ]
        await asyncio.sleep(seconds / 3)
        system.kill()
        system.revive()
        await asyncio.gather(*asking)
        answered = sum(len(each.delays) for each in clients)
        lost = sum(each.lost for each in clients)
        bench.report(
            {
                "case": "kill frames",
                "system": name,
                "clients": len(clients),
                "asked": answered + lost,
                "lost": lost,
                "twice": sum(each.twice for each in clients),
                "wrong": sum(each.wrong for each in clients),
            }
        )
    finally:
        crowd.close()
        system.close()
