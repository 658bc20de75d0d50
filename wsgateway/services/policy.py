"""Decides what happens to a message after its handler has ended. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wsgateway.exceptions import BrokerUnavailable, BusUnavailable, QueueFull
from wsgateway.services.errors import Pause, Reject, Retry

__all__ = [
    "AFTER_A_PAUSE",
    "DeadLettered",
    "Done",
    "Rejected",
    "Retried",
    "RetryPolicy",
    "Verdict",
    "judge",
]

LONGEST_PAUSE = 86400.0
"""Seconds that a handler may ask to wait; NATS takes no more than an int of nanoseconds."""
AFTER_A_PAUSE = 0.5
"""Seconds until the message that paused a service comes again: it is resumed later than that."""
NOT_COUNTED = (BrokerUnavailable, BusUnavailable, QueueFull)
"""Raised because of the broker, or the bus behind a bridge, so no try is used."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how soon, a message is tried again.

    Attributes:
        attempts: Tries before it is set aside; None: ``WSGATEWAY_MAX_DELIVER``.
        initial: Seconds before the second attempt.
        factor: By how much each pause exceeds the one before.
        cap: Longest pause, seconds.
        jitter: Share of a pause that is random, 0-1.

    Raises:
        ValueError: One of them is out of its range.
    """

    attempts: int | None = None
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts!r}, but must be 1 or more, or None")
        for name in ("initial", "factor", "cap"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, but must be 0 or more, and finite")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter!r}, but must be between 0 and 1")

    def pause(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return seconds to wait after *attempt* (the first is 1) has failed."""
        try:
            longest = min(self.cap, self.initial * self.factor ** min(attempt - 1, 60))
        except OverflowError:
            longest = self.cap
        return longest * (1 - self.jitter * draw())


Policies = Mapping[type[BaseException], RetryPolicy]


class Done(NamedTuple):
    """The message was handled."""


class Retried(NamedTuple):
    """Deliver it once more.

    Attributes:
        after: Seconds until then.
        counted: Whether it has used a try.
    """

    after: float
    counted: bool = True


class DeadLettered(NamedTuple):
    """Store it as a dead letter."""

    error: BaseException


class Rejected(NamedTuple):
    """Tell the client; do not try again."""

    code: str
    reason: str


Verdict = Done | Retried | DeadLettered | Rejected


def judge(
    error: BaseException | None, attempt: int, policies: Policies, max_deliver: int
) -> Verdict:
    """Return what happens to a message.

    Args:
        error: What its handler raised; None if it returned.
        attempt: Which try this was; the first is 1.
        policies: By type of exception; the first that fits counts.
        max_deliver: For policies that do not say.
    """
    if error is None:
        return Done()
    if isinstance(error, Reject):
        return Rejected(error.code, error.reason)
    if isinstance(error, Pause):
        return Retried(AFTER_A_PAUSE, counted=False)
    fitting = (policy for kind, policy in policies.items() if isinstance(error, kind))
    policy = next(fitting, RetryPolicy())
    if isinstance(error, NOT_COUNTED):
        return Retried(policy.pause(attempt), counted=False)
    if attempt >= (policy.attempts or max_deliver):
        return DeadLettered(error)
    pause = policy.pause(attempt)
    asked = _seconds(error.after) if isinstance(error, Retry) else None
    if asked is None:
        return Retried(pause)
    at_least = isinstance(error, Retry) and error.at_least
    return Retried(max(asked, pause) if at_least else asked)


def _seconds(value: object) -> float | None:
    """Return *value* if it is a number of seconds, between 0 and a day; None if it is not."""
    if not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return max(0.0, min(value, LONGEST_PAUSE))
