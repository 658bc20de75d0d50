"""How fast and how large: what a client may send. Pure."""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.exceptions import MessageTooBig

__all__ = ["Limits", "RateLimit", "SizeLimit"]


class Limits(NamedTuple):
    """What one websocket is held to.

    Attributes:
        message: The largest message, in bytes.
        rate: Frames per second; 0: no limit.
        burst: Frames at once.
        window: Messages that a client may leave unacknowledged.
        ping_interval: Seconds between pings.
        ping_timeout: Seconds that the client has to send anything after a ping.
        watches: Users and topics whose presence a client may watch.
        subscriptions: Topics that a client may read, besides its inbox.
    """

    message: int
    rate: float
    burst: int
    window: int
    ping_interval: float
    ping_timeout: float
    watches: int = 0
    subscriptions: int = 0


class RateLimit:
    """A token bucket that may be overdrawn by its size.

    Args:
        rate: Tokens per second; 0 means no limit.
        burst: Tokens at most.
        now: The clock's value, seconds; the clock must not jump.
    """

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._then = now

    def take(self, now: float, count: int = 1) -> bool:
        """Take *count* tokens; return False if that overdraws."""
        if not self._rate:
            return True
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - count
        self._then = now
        return self._tokens >= 0

    def give_back(self) -> None:
        """Undo one `take`."""
        self._tokens += 1

    @property
    def wait(self) -> float:
        """Seconds from the last `take` until one token is there."""
        return max(0.0, (1 - self._tokens) / self._rate) if self._rate else 0.0

    @property
    def exhausted(self) -> bool:
        """Whether it is overdrawn by as much as it holds when full."""
        return self._tokens < -self._burst


class SizeLimit(NamedTuple):
    """How large a client's message may be.

    Attributes:
        limit: Bytes.
        setting: What says so.
    """

    limit: int
    setting: str

    def exceeded_by(self, size: int) -> MessageTooBig | None:
        """Return why a message of *size* bytes is too big; None if it is not."""
        return MessageTooBig(size, *self) if size > self.limit else None
