"""How often something happens per second, over the last minute, from counts that only grow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

__all__ = ["INTERVAL", "PERIOD", "Rates"]

PERIOD = 60.0
"""Seconds that a rate is the average of."""
INTERVAL = 5.0
"""Seconds between two samples."""


class Rates:
    """The counts of the last minute.

    Args:
        read: Returns the counts of now, by name. One that is new began at zero.
        clock: Returns seconds.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, int]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._samples: deque[tuple[float, dict[str, int]]] = deque()  # the oldest first
        self.sample()

    def sample(self) -> None:
        """Remember the counts of now."""
        now = self._clock()
        while len(self._samples) > 1 and self._samples[1][0] <= now - PERIOD:
            self._samples.popleft()  # the next one is a minute old, too
        self._samples.append((now, dict(self._read())))

    def per_second(self) -> dict[str, float]:
        """Return by how much each count has grown per second."""
        now = self._clock()
        then, before = self._samples[0]
        passed = max(now - then, 1.0)
        return {
            name: round((count - before.get(name, 0)) / passed, 3)
            for name, count in self._read().items()
        }

    async def run(self) -> None:
        """Take samples, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.sample()
