"""Refused websockets: the client learns the reason, the log also what to do about it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wsgateway import counters
from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused, reason_of
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.handshake import Scope, route
from wsgateway.protocol.codes import CloseCode

__all__ = ["MAX_PATH", "RefusalLog", "refuse"]

logger = logging.getLogger("wsgateway")

INTERVAL = 60.0
"""Seconds in which a reason is logged once for each kind of path."""
MAX_REASONS = 20
"""Reasons that are logged in that time; names that clients make up are part of them."""
MAX_PATHS = 5
"""Kinds of paths for which a reason is logged in that time."""
MAX_PATH = 200
"""Characters of a path that are logged."""


NOBODY: Mapping[str, object] = {}


@dataclass(slots=True)
class _Reason:
    """What was logged for a reason, and how often it came since."""

    what: str
    text: str
    kinds: set[str] = field(default_factory=set)
    more: int = 0


class RefusalLog:
    """Log each reason once a minute for each kind of path, and then how often it came again.

    So every mistake is explained at once, and a flood of refused clients costs few lines a minute.
    In development nothing is left out, except for clients that come again by themselves.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reasons: dict[tuple[str, CloseCode, str], _Reason] = {}
        """What it counts at the moment."""
        self._others = 0  # refusals whose reason found MAX_REASONS before it
        self._end = -math.inf  # when the minute is over
        self._timer: asyncio.TimerHandle | None = None  # ends the minute; not if its loop has ended

    def add(
        self,
        refusal: IdentityRefused,
        path: str,
        *,
        user: str = "",
        codes: str = "",
        what: str = Transport.what,
        log_fields: Mapping[str, object] = NOBODY,
    ) -> None:
        """Log *refusal* of a socket, now or at the end of the minute.

        Args:
            refusal: Why.
            path: Where.
            user: Whom the path names: paths that differ only in this are of one kind.
            codes: What the log names as the code, if not only the refusal's.
            what: What is refused.
            log_fields: Whose socket it is, as far as that is known.
        """
        if self._clock() >= self._end:
            self._summarize()
            self._begin()
        failed = refusal.code is CloseCode.INTERNAL_ERROR
        # The client reads "internal error", whichever resolver failed, and however
        key = what, refusal.code, refusal.cause if failed else refusal.reason
        reason = self.reasons.get(key)
        if reason is None:
            if len(self.reasons) >= MAX_REASONS:
                self._others += 1
                return
            reason = self.reasons[key] = _Reason(what, refusal.explanation)
        kind = (path.removesuffix(f"{user}/") if user else path)[:MAX_PATH]
        new = kind not in reason.kinds and len(reason.kinds) < MAX_PATHS
        if new:
            reason.kinds.add(kind)
        elif not settings.debug or refusal.code.reconnect:
            reason.more += 1
            return
        code = int(refusal.code)
        logger.log(
            logging.ERROR if failed else logging.WARNING,
            "refused %s at %r with %s: %s",
            what,
            path[:MAX_PATH],
            codes or code,
            refusal.explanation,
            exc_info=refusal.__cause__ if failed else None,
            extra={**log_fields, "code": code},
        )

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end = self._clock() + INTERVAL
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._on_timer)

    def _on_timer(self) -> None:
        self._summarize()
        if self.reasons:
            self._begin()

    def _summarize(self) -> None:
        """Log what came more than once; a reason that goes on gets no other line than this."""
        for (_, code, _), reason in self.reasons.items():
            if reason.more:
                logger.warning(
                    "refused more %ss with %d (%d in %g s): %s",
                    reason.what.partition(" ")[2],
                    code,
                    reason.more,
                    INTERVAL,
                    reason.text,
                    extra={"code": int(code)},
                )
        if self._others:
            logger.warning(
                "refused more clients for other reasons (%d in %g s)", self._others, INTERVAL
            )
        self._others = 0
        self.reasons = {
            key: _Reason(reason.what, reason.text, reason.kinds)
            for key, reason in self.reasons.items()
            if reason.more
        }


log = RefusalLog()


async def refuse(socket: Socket, refusal: IdentityRefused, scope: Scope) -> None:
    """Accept the handshake, close with code and reason, and log the refusal.

    A client cannot read why a handshake failed: a browser shows it no more than that it did.
    """
    counters.gateway.refused[str(int(refusal.code))] += 1
    path_log_fields = route(scope)
    log_fields = {**path_log_fields, **socket.transport.log_fields}
    if refusal.code is CloseCode.SHUTTING_DOWN:
        log_fields = {**log_fields, "code": int(refusal.code)}
        text = "refused %s: %s"
        logger.info(text, socket.transport.what, reason_of(refusal), extra=log_fields)
    else:
        user, codes = path_log_fields.get("user", ""), socket.codes(refusal.code)
        what = socket.transport.what
        log.add(refusal, scope["path"], user=user, codes=codes, what=what, log_fields=log_fields)
    await socket.close(refusal.code, refusal.reason)
