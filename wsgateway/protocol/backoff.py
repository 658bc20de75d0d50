"""How long to wait before the next attempt. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff"]

_random = random.SystemRandom()
"""Jitter that no seed of the application, or of a forked process, makes the same for all."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with full jitter: clients of a gateway that died spread over the whole delay.

    Attributes:
        initial: First delay, seconds.
        factor: Each delay is so many times the one before.
        cap: Longest delay, seconds.
        jitter: Part of a delay that is random, 0 to 1.
        random: Returns a number from 0 to 1.
    """

    initial: float = 0.5
    factor: float = 2.0
    cap: float = 30.0
    jitter: float = 1.0
    random: Callable[[], float] = _random.random

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after *attempt* failures in a row; 0 is the first."""
        longest = min(self.cap, self.initial * self.factor ** min(attempt, 64))
        return longest * (1.0 - self.jitter * self.random())
