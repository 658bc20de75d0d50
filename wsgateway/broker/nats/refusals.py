"""What NATS' permissions refuse. The server says so without a reference to what it refuses."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from wsgateway.exceptions import BrokerForbidden, reason_of

__all__ = ["Refusal", "RefusalLog", "Vetoes"]

logger = logging.getLogger("wsgateway.broker")

INTERVAL = 600.0
"""Seconds in which a kind of refusal is logged once, however often the connection is lost."""
REMEMBERED = 100
"""Kinds of refusals that are logged in that time."""

_VIOLATION = re.compile(
    r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE
)


class Refusal(NamedTuple):
    """An error after which the connection stays open.

    Attributes:
        text: What the server said.
        published: The subject that could not be published to; "" otherwise.
        subscribed: The subject that could not be subscribed to; "" otherwise.
    """

    text: str
    published: str = ""
    subscribed: str = ""

    @classmethod
    def parse(cls, text: str) -> Refusal:
        """Return what *text*, the server's, means."""
        found = _VIOLATION.match(text)
        if found is None:
            return cls(text)
        if found[1].lower() == "publish":
            return cls(text, published=found[2])
        return cls(text, subscribed=found[2])

    @property
    def subject(self) -> str:
        """The subject that it is about; "" if it is about none."""
        return self.published or self.subscribed

    @property
    def kind(self) -> str:
        """The same for similar refusals: subjects differ by user, and by connection."""
        if not self.subject:
            return self.text
        tokens = self.subject.split(".")
        if tokens[0] != "$JS":
            tokens = tokens[:-1][: 1 if tokens[0] == "_INBOX" else 3]
        return f"{'publish' if self.published else 'subscribe'} {'.'.join(tokens[:5])}"


class Vetoes:
    """Subscriptions that the server has refused, until somebody confirms theirs."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # subject -> what the server said
        self._optional: Counter[str] = Counter()  # subjects of which nobody needs to hear

    def allow(self, subject: str) -> None:
        """Note a subscription that may be refused."""
        self._optional[subject] += 1

    def forget(self, subject: str) -> None:
        """Note its end."""
        self._optional[subject] -= 1
        if self._optional[subject] <= 0:
            del self._optional[subject]

    def note(self, refusal: Refusal) -> None:
        """Remember what the server said, unless it may refuse that."""
        if not refusal.published and refusal.subscribed not in self._optional:
            self._texts[refusal.subscribed] = refusal.text

    def take(self) -> None:
        """Forget one that was remembered, and raise it.

        Raises:
            BrokerForbidden: There was one.
        """
        if self._texts:
            raise BrokerForbidden(self._texts.popitem()[1])

    def clear(self) -> None:
        """Forget all that were remembered: another connection, perhaps other permissions."""
        self._texts.clear()


class RefusalLog:
    """Logs the first refusal of each kind, and again after `INTERVAL`.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until: dict[str, float] = {}  # by kind

    def add(self, refusal: Refusal) -> None:
        """Log *refusal*, unless one of its kind was logged a short time ago."""
        now = self._clock()
        if len(self._quiet_until) >= REMEMBERED:
            self._quiet_until = {k: end for k, end in self._quiet_until.items() if end > now}
        is_new = now >= self._quiet_until.get(refusal.kind, -math.inf)
        if not is_new or len(self._quiet_until) >= REMEMBERED:
            logger.debug("NATS refuses again: %s", refusal.text)
            return
        self._quiet_until[refusal.kind] = now + INTERVAL
        if not refusal.subject:  # a limit, for example
            logger.error("%s", reason_of(BrokerForbidden(refusal.text)))
            return
        logger.warning(
            'NATS permissions do not allow %s "%s". '
            "Grant what docs/how-to/nats-permissions.md lists for the role",
            "publishing to" if refusal.published else "subscribing to",
            refusal.subject,
            extra={"subject": refusal.subject},
        )
