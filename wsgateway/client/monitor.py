"""Notices a gateway that does not answer. Pure; as the class ``Monitor`` of ``wsgateway.js``."""

from __future__ import annotations

import math
from enum import Enum

__all__ = ["Monitor", "Sign"]


class Sign(Enum):
    """What `Monitor.check` found."""

    ALIVE = "alive"
    ASK = "ask"
    """Send a ping."""
    DEAD = "dead"


class Monitor:
    """One client's view of its gateway, across all connections.

    *now* is the value of a monotonic clock.

    Args:
        timeout: Seconds of silence after a due ping before the connection counts as dead. Half of
            them pass before this end asks, too.
    """

    __slots__ = ("_asked_at", "_half", "_heard_at", "_silence", "due")

    def __init__(self, timeout: float) -> None:
        self._half = timeout / 2
        self._heard_at = 0.0  # when the last frame came
        self._asked_at: float | None = None  # when the unanswered ping was sent
        self._silence = math.inf  # seconds without a frame after which to ask
        self.due = math.inf
        """When to call `check`."""

    def start(self, interval: float, now: float) -> None:
        """Begin with a connection, whose gateway pings every *interval* seconds."""
        self._silence = interval + self._half
        self.due = now + self._silence

    def stop(self) -> None:
        """End with it."""
        self.due = math.inf

    def heard(self, now: float) -> None:
        """Note a frame."""
        self._heard_at, self._asked_at = now, None

    def check(self, now: float) -> Sign:
        """Return what to do; moves `due`."""
        if now < self.due:
            return Sign.ALIVE
        if self._asked_at is None and now < self._heard_at + self._silence:
            self.due = self._heard_at + self._silence
            return Sign.ALIVE
        # A late check means that this process slept and the answer may wait unread: ask again
        if self._asked_at is not None and now - self._asked_at <= 2 * self._half:
            return Sign.DEAD
        self._asked_at = now
        self.due = now + self._half
        return Sign.ASK
