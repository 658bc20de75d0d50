"""Refused websockets: the client learns the reason, the log also what to do about it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.sockets import Socket
from wsgateway.protocol.codes import CloseCode

__all__ = ["RefusalLog", "refuse"]

logger = logging.getLogger("wsgateway")

INTERVAL = 60.0
"""Seconds in which a reason is logged once."""
MAX_REASONS = 20
"""Reasons that are logged in that time; names that clients make up are part of them."""
MAX_PATH = 200
"""Characters of a path that are logged."""


@dataclass(slots=True)
class _Reason:
    """What was logged for a reason, and how often it came since."""

    text: str
    more: int = 0


class RefusalLog:
    """Log each reason once a minute, and then how often it came again.

    So whoever makes the first mistake reads at once what to do, and a flood of refused clients
    costs a line a minute for each reason.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reasons: dict[tuple[CloseCode, str], _Reason] = {}  # of the last minute
        self._others = 0  # refusals whose reason found MAX_REASONS before it
        self._end = -math.inf  # when the minute is over
        self._timer: asyncio.TimerHandle | None = None  # ends the minute; not if its loop has ended

    def add(self, refusal: IdentityRefused, path: str) -> None:
        """Log *refusal* of a socket at *path*, now or at the end of the minute."""
        if self._clock() >= self._end:
            self._summarize()
            self._begin()
        key = refusal.code, refusal.reason
        known = self._reasons.get(key)
        if known is not None:
            known.more += 1
        elif len(self._reasons) >= MAX_REASONS:
            self._others += 1
        else:
            self._reasons[key] = reason = _Reason(refusal.explanation)
            logger.warning(
                "refused a websocket at %r with %d: %s",
                path[:MAX_PATH],
                refusal.code,
                reason.text,
                extra={"code": int(refusal.code)},
            )

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end = self._clock() + INTERVAL
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._on_timer)

    def _on_timer(self) -> None:
        self._summarize()
        if self._reasons:
            self._begin()

    def _summarize(self) -> None:
        """Log what came more than once; a reason that goes on gets no other line than this."""
        for (code, _), reason in self._reasons.items():
            if reason.more:
                logger.warning(
                    "refused more websockets with %d (%d in %g s): %s",
                    code,
                    reason.more,
                    INTERVAL,
                    reason.text,
                    extra={"code": int(code)},
                )
        if self._others:
            logger.warning(
                "refused more websockets for other reasons (%d in %g s)", self._others, INTERVAL
            )
        self._others = 0
        self._reasons = {
            key: _Reason(reason.text) for key, reason in self._reasons.items() if reason.more
        }


_log = RefusalLog()


async def refuse(socket: Socket, refusal: IdentityRefused, path: str) -> None:
    """Accept the handshake, close with code and reason, and log the refusal.

    A client cannot read why a handshake failed: a browser shows it no more than that it did.
    """
    if refusal.code is CloseCode.SHUTTING_DOWN:
        logger.info("refused a websocket: %s", refusal)
    else:
        _log.add(refusal, path)
    await socket.close(refusal.code, refusal.reason)
