"""What happens to a message after its handler ended. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wsgateway.services.errors import Reject, Retry

__all__ = ["Again", "Dead", "Done", "Refuse", "RetryPolicy", "Verdict", "judge"]


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how soon, a message is tried again.

    Attributes:
        attempts: Deliveries before it is set aside; None: ``WSGATEWAY_MAX_DELIVER``.
        initial: Seconds before the second attempt.
        factor: By how much each pause exceeds the one before.
        cap: Longest pause, seconds.
        jitter: Share of a pause that is random, 0-1.
    """

    attempts: int | None = None
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.5

    def pause(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return seconds to wait after *attempt* (the first is 1) has failed."""
        longest = min(self.cap, self.initial * self.factor ** min(attempt - 1, 60))
        return longest * (1 - self.jitter * draw())


Policies = Mapping[type[BaseException], RetryPolicy]


class Done(NamedTuple):
    """The message was handled."""


class Again(NamedTuple):
    """Deliver it again after so many seconds."""

    after: float


class Dead(NamedTuple):
    """Set it aside."""

    error: BaseException


class Refuse(NamedTuple):
    """Tell the client, and forget it."""

    code: str
    reason: str


Verdict = Done | Again | Dead | Refuse


def judge(
    error: BaseException | None, attempt: int, policies: Policies, max_deliver: int
) -> Verdict:
    """Return what happens to a message.

    Args:
        error: What its handler raised; None if it returned.
        attempt: How often it was delivered, this time included.
        policies: By type of exception; the first that fits counts.
        max_deliver: For policies that do not say.
    """
    if error is None:
        return Done()
    if isinstance(error, Reject):
        return Refuse(error.code, error.reason)
    fitting = (policy for kind, policy in policies.items() if isinstance(error, kind))
    policy = next(fitting, RetryPolicy())
    if attempt >= (policy.attempts or max_deliver):
        return Dead(error)
    if isinstance(error, Retry) and error.after is not None:
        return Again(error.after)
    return Again(policy.pause(attempt))
