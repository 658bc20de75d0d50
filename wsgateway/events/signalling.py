"""Sends signals: one user's in order, several users' at the same time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple, Protocol

from django.dispatch import Signal

from wsgateway import counters, database
from wsgateway.protocol.events import SocketEvent
from wsgateway.protocol.subjects import Inbox
from wsgateway.supervision import is_cancelled, supervise

__all__ = ["Signalling"]

logger = logging.getLogger("wsgateway.events")

LANES = 16
"""Users whose receivers run at once."""
MAX_WAITING = 10_000
"""Signals that may wait for receivers; those that come after are dropped, and that is logged."""
COMPLAIN_EACH = 60.0
"""Seconds in which the log says once that signals were dropped."""


class Right(Protocol):
    """The right to send signals; see `wsgateway.broker.lease.Lease`."""

    @property
    def possible(self) -> bool: ...
    @property
    def term(self) -> int: ...
    async def settled(self, term: int) -> bool: ...


class _Waiting(NamedTuple):
    """A signal that was not sent yet.

    Attributes:
        term: When it was decided, see `Lease.term`: after a gap, another may have sent it.
    """

    signal: Signal
    arguments: Mapping[str, Any]
    term: int


class Signalling:
    """Calls receivers, with usable database connections, as services call handlers.

    Args:
        right: Asked right before each signal. Without it nobody hears of the signal; while that is
            not known, as after the connection to the broker was lost, the signal waits.
    """

    too_slow = "receivers are too slow, hand long work to a task queue"
    """What the log says when too many signals wait."""

    def __init__(self, right: Right) -> None:
        self._right = right
        self._lanes: list[asyncio.Queue[_Waiting]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting = 0  # signals in all lanes, those that are being sent included
        self._idle = asyncio.Event()  # set while none waits
        self._idle.set()
        self._complains = -math.inf  # when the log may say again that some were dropped
        self.counts: Counter[str] = Counter()
        """Signals, by what became of them: sent, failed (in a receiver), dropped."""

    def start(self) -> None:
        """Begin to call receivers."""
        self._lanes = [asyncio.Queue() for _ in range(LANES)]
        self._tasks = [
            supervise(lambda lane=lane: self._run(lane), "wsgateway-signals")  # type: ignore[misc]
            for lane in self._lanes
        ]

    async def stop(self, timeout: float) -> None:
        """Finish what waits, for *timeout* seconds at most."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d signals were not sent before the end", self._waiting)
        for task in self._tasks:
            task.cancel()

    def send(self, signal: Signal, inbox: Inbox, **arguments: Any) -> None:
        """Send a signal soon, after this user's earlier ones."""
        if not self.wants(signal) or not self._right.possible:
            return
        if self._waiting >= MAX_WAITING:
            self._drop()
            return
        self._note_waiting(self._waiting + 1)
        self._idle.clear()
        lane = self._lanes[hash(inbox) % LANES]
        about = {"service": inbox.service, "user": inbox.user, **arguments}
        lane.put_nowait(_Waiting(signal, about, self._right.term))

    def wants(self, signal: Signal) -> bool:
        """Say whether anybody wants to hear of it."""
        return signal.has_listeners(SocketEvent)

    def _note_waiting(self, waiting: int) -> None:
        self._waiting = counters.events.waiting = waiting

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        counters.events.outcomes[outcome] += 1

    def _drop(self) -> None:
        self._count("dropped")
        if monotonic() >= self._complains:
            self._complains = monotonic() + COMPLAIN_EACH
            logger.error(
                "%s: %d wait, so others are dropped (%d so far)",
                self.too_slow,
                self._waiting,
                self.counts["dropped"],
            )

    async def _run(self, lane: asyncio.Queue[_Waiting]) -> None:
        while True:
            waiting = await lane.get()
            try:
                if await self._right.settled(waiting.term):
                    await self._call(waiting)
            finally:
                self._note_waiting(self._waiting - 1)
                if not self._waiting:
                    self._idle.set()

    async def _call(self, waiting: _Waiting) -> None:
        signal, arguments, term = waiting
        try:
            self._count("sent" if await self.deliver(signal, arguments, term) else "failed")
        except (Exception, asyncio.CancelledError, SystemExit) as exc:
            if isinstance(exc, asyncio.CancelledError) and is_cancelled():
                raise
            self._count("failed")
            log_fields = {name: arguments[name] for name in ("service", "user")}
            logger.exception("a receiver failed", extra=log_fields)

    async def deliver(self, signal: Signal, arguments: Mapping[str, Any], term: int) -> bool:
        """Call the receivers; return whether none raised. Django logs the errors."""
        async with database.UsableConnections():
            results = await signal.asend_robust(SocketEvent, **arguments)
        return not any(isinstance(result, Exception) for _, result in results)
