"""What goes on for as long as something is away: growing pauses, and a few lines in the log."""

from __future__ import annotations

import asyncio
import logging
import time

from wsgateway.exceptions import BrokerMisconfigured, BusMisconfigured, reason_of
from wsgateway.protocol.backoff import Backoff

__all__ = ["Outage"]

logger = logging.getLogger("wsgateway.bridges")

PAUSES = Backoff(0.1, 2.0, 2.0, jitter=0.5)
LOG_EACH = 30.0
"""Seconds between two lines about the same outage."""


class Outage:
    """What cannot be done for now, by several tasks at once.

    Args:
        text: What waits, for the log.
        bridge: The bridge's name, for the log.
    """

    def __init__(self, text: str, bridge: str) -> None:
        self._text = text
        self._log_fields = {"bridge": bridge}
        self._logged_at: float | None = None  # on the monotonic clock
        self._logged = ""

    def log(self, error: Exception) -> None:
        """Log *error*, unless that was logged a moment ago."""
        now, reason = time.monotonic(), reason_of(error)
        if self._logged_at is not None and now < self._logged_at + LOG_EACH:
            return
        self._logged_at = now
        is_wrong = isinstance(error, (BusMisconfigured, BrokerMisconfigured))
        level = logging.ERROR if is_wrong else logging.WARNING
        logger.log(level, "%s: %s", self._text, reason, extra=self._log_fields)

    async def wait(self, attempt: int, error: Exception, ended: asyncio.Event) -> None:
        """Log *error*, and pause before the next attempt.

        Args:
            attempt: How many have failed before, in a row.
            error: What the last one raised.
            ended: Once it is set, nobody waits.
        """
        self.log(error)
        try:
            async with asyncio.timeout(PAUSES.delay(attempt)):
                await ended.wait()
        except TimeoutError:
            return
