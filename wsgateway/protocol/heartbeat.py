"""Notices that the other end of a websocket is gone. Pure."""

from __future__ import annotations

from enum import Enum

__all__ = ["Beat", "Heartbeat"]


class Beat(Enum):
    """What `Heartbeat.check` wants done."""

    NOTHING = 0
    PING = 1
    DEAD = 2


class Heartbeat:
    """Notices a peer that is gone: pings it, and wants any frame in return.

    The shell calls `heard` for each frame, and `check` at `deadline`.

    Args:
        interval: Seconds between pings.
        timeout: Seconds that the peer has to send anything after a ping.
        now: The clock's value; the clock must not jump.
    """

    __slots__ = ("_asked", "_heard", "_interval", "_timeout", "deadline")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._heard = False  # a frame came since the last ping
        self._asked = False  # a ping waits for its answer
        self.deadline = now + interval
        """When to call `check`."""

    def heard(self) -> None:
        """Note a sign of life; cheap, for each frame."""
        self._heard = True

    def check(self, now: float) -> Beat:
        """Return what to do now; moves `deadline`."""
        if now < self.deadline:
            return Beat.NOTHING
        late = now - self.deadline > self._timeout
        if self._asked and not self._heard and not late:
            return Beat.DEAD
        if self._asked and self._heard:
            self._asked = False
            self.deadline += max(self._interval - self._timeout, 0.0)
            if now < self.deadline:
                return Beat.NOTHING
        # A late check means that this process slept: the answer may wait unread, so ask again.
        self._asked, self._heard = True, False
        self.deadline = now + self._timeout
        return Beat.PING
