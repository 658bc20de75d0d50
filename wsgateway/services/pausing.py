"""Pauses a service whose webhook is gone, and keeps its worker from what is in hand by then."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from wsgateway.exceptions import WsGatewayError

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import Job
    from wsgateway.services.errors import Pause

__all__ = ["Pausing", "Recalled"]

logger = logging.getLogger("wsgateway.services")

ON_THEIR_WAY = 0.5
"""Seconds for which messages may still arrive after their service was paused."""


class Recalled(WsGatewayError):
    """A message's service was paused before its handler began; it goes back to the queue."""


class Pausing:
    """The pauses of one service, as one worker sees them.

    Args:
        service: Its name.
        broker: Where it is paused.
    """

    def __init__(self, service: str, broker: Broker) -> None:
        self._service = service
        self._broker = broker
        self._recalled = -math.inf  # what was taken before this time goes back to the queue

    def recall(self) -> None:
        """Begin with no message that was delivered so far: the service is paused."""
        self._recalled = time.monotonic() + ON_THEIR_WAY

    def is_recalled(self, job: Job) -> bool:
        """Say whether a message goes back to the queue without being handled."""
        return job.taken < self._recalled

    def begin(self, job: Job, reason: Pause) -> Callable[[], Awaitable[None]]:
        """Begin with nothing more; return what pauses the service, to be called until it succeeds.

        It is not paused if somebody has resumed it since the handler that found *reason* began.
        """
        is_known = self.is_recalled(job)  # others were handled at the same time, and found it
        self.recall()  # at once: others wait for this handler's place

        async def pause() -> None:
            age = time.monotonic() - reason.since
            if not await self._broker.operations.pause(self._service, age):
                text = "service %s is not paused: it was resumed after the request began (%s)"
                logger.info(text, self._service, reason, extra=job.log_fields)
            elif not is_known:
                logger.error(
                    "service %s is paused, and its messages wait: %s. Once that is mended, run "
                    '"manage.py gateway resume %s"',
                    self._service,
                    reason,
                    self._service,
                    extra=job.log_fields,
                )

        return pause
