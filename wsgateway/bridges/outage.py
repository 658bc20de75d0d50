"""What goes on for as long as something is away: growing pauses, and a few lines in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time

from wsgateway.exceptions import (
    BrokerMisconfigured,
    BusMisconfigured,
    WsGatewayError,
    reason_of,
)
from wsgateway.protocol.backoff import Backoff
from wsgateway.supervision import is_cancelled

__all__ = ["Outage", "uncancelled"]

logger = logging.getLogger("wsgateway.bridges")

PAUSES = Backoff(0.1, 2.0, 2.0, jitter=0.5)
LOG_EACH = 30.0
"""Seconds between two lines that say the same."""
MAX_LINES = 5
"""Lines in these seconds, whatever they say."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Outage:
    """What cannot be done for now, by several tasks at once.

    Args:
        text: What waits, for the log.
        bridge: The bridge's name, for the log.
    """

    def __init__(self, text: str, bridge: str) -> None:
        self._text = text
        self._log_fields = {"bridge": bridge}
        self._logged: dict[str, float] = {}  # a moment ago: each reason, and when
        self._waiting: dict[object, str] = {}  # the tasks that try again, and why; oldest first

    @property
    def reason(self) -> str:
        """Why a task tries again now; "" if none does. From any thread."""
        return next(iter(list(self._waiting.values())), "")

    def log(self, error: Exception) -> None:
        """Log *error*, unless the same was logged a moment ago.

        Reasons that differ only in numbers, such as seconds or a partition, are the same.
        """
        now, reason = time.monotonic(), reason_of(error)
        self._logged = {each: at for each, at in self._logged.items() if now < at + LOG_EACH}
        same = _NUMBER.sub("", reason)
        if same in self._logged or len(self._logged) >= MAX_LINES:
            return
        self._logged[same] = now
        if not isinstance(error, WsGatewayError):
            logger.error(
                "%s because of a bug in wsgateway. Please report it.",
                self._text,
                exc_info=error,
                extra=self._log_fields,
            )
            return
        is_wrong = isinstance(error, (BusMisconfigured, BrokerMisconfigured))
        level = logging.ERROR if is_wrong else logging.WARNING
        logger.log(level, "%s: %s", self._text, reason, extra=self._log_fields)

    async def wait(self, attempt: int, error: Exception, ended: asyncio.Event) -> None:
        """Log *error*, and pause before the next attempt. Call `over` after the last one.

        Args:
            attempt: How many have failed before, in a row.
            error: What the last one raised.
            ended: Once it is set, nobody waits.
        """
        self.log(error)
        is_known = isinstance(error, WsGatewayError)
        said = reason_of(error) if is_known else "a bug in wsgateway; the log has more"
        self._waiting[asyncio.current_task()] = said
        try:
            async with asyncio.timeout(PAUSES.delay(attempt)):
                await ended.wait()
        except TimeoutError:
            return

    def over(self) -> None:
        """Record that the running task does not try again. Idempotent."""
        if self._waiting:
            self._waiting.pop(asyncio.current_task(), None)


class uncancelled:
    """Raise *error* for a cancellation that is nobody's.

    A client library cancels what its callers await when it loses its connection. The task of such
    a caller goes on.
    """

    __slots__ = ("_error",)

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        if isinstance(value, asyncio.CancelledError) and not is_cancelled():
            raise self._error("the connection was lost") from value
