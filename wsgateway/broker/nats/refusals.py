"""What NATS' permissions refuse. The server says so without a reference to what it refuses."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from wsgateway.exceptions import BrokerForbidden

__all__ = ["Refusal", "RefusalLog"]

logger = logging.getLogger("wsgateway.broker")

REMEMBERED = 1000
"""Kinds of refusals that are logged once a connection."""

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
    def kind(self) -> str:
        """The same for similar refusals: subjects differ by user."""
        verb = "publish" if self.published else "subscribe"
        subject = self.published or self.subscribed
        return f"{verb} {'.'.join(subject.split('.')[:4])}" if subject else self.text


class RefusalLog:
    """Logs the first refusal of each kind."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def clear(self) -> None:
        """Begin again: another connection, perhaps other permissions."""
        self._kinds.clear()

    def add(self, refusal: Refusal) -> None:
        """Log *refusal*, if it is the first of its kind."""
        if refusal.kind in self._kinds or len(self._kinds) >= REMEMBERED:
            logger.debug("NATS refuses: %s", refusal.text)
            return
        self._kinds.add(refusal.kind)
        logger.error("%s", BrokerForbidden(refusal.text))
