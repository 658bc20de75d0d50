"""Many deadlines, few timers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial

__all__ = ["Deadlines"]

TICK = 0.1
"""Seconds that a callback may come late. Deadlines within one tick share a timer of the event loop:
a timer for each request costs more than reading its answer."""


class Deadlines:
    """Calls callbacks when time is up. Call everything in one event loop."""

    def __init__(self) -> None:
        self._ticks: dict[int, dict[int, Callable[[], None]]] = {}  # by when, then by number
        self._numbers = itertools.count()

    def add(self, seconds: float, callback: Callable[[], None]) -> Callable[[], object]:
        """Call *callback* in *seconds*, or up to a tick later. It must not raise.

        Returns:
            What withdraws it; call it as soon as the deadline is of no interest. Idempotent.
        """
        loop = asyncio.get_running_loop()
        tick = int((loop.time() + seconds) / TICK) + 1
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = {}
            loop.call_at(tick * TICK, self._call, tick)
        number = next(self._numbers)
        due[number] = callback
        return partial(due.pop, number, None)

    def _call(self, tick: int) -> None:
        for callback in self._ticks.pop(tick).values():
            callback()
