"""Asks again and again which gateways are there, and says when one is missing.

A gateway that is killed says nothing: its users' sockets are gone without an event. One that is
frozen or cut off does not answer, so nobody knows about its users.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from wsgateway.broker.base import Broker
from wsgateway.broker.inquiry import ask_members
from wsgateway.exceptions import BrokerClosed, BrokerError, reason_of
from wsgateway.presence.users import GATEWAY

__all__ = ["INTERVAL", "RollCall"]

logger = logging.getLogger("wsgateway")

MAX_LOST = 10_000
"""Gateways that may be remembered in case they come back: one that was restarted never does."""
INTERVAL = 0.5
"""Seconds between an answer and the next question."""


class RollCall:
    """Knows which gateways answer. Run `run` as a task.

    Args:
        broker: Carries the questions.
        on_change: Called when one has gone, has fallen silent, or is back, so that what was known
            of users may not hold any more. Not when one is new: that says itself who comes to it.
    """

    def __init__(self, broker: Broker, on_change: Callable[[], None]) -> None:
        self._broker = broker
        self._on_change = on_change
        self._there: set[str] = set()  # that answered the last time
        self._lost: set[str] = set()  # that answered before, and did not the last time
        self._silent: set[str] = set()  # that must answer, and did not

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                found = await ask_members(self._broker, GATEWAY, {"ask": "ping"})
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("cannot ask which gateways are there: %s", reason_of(exc))
            else:
                self._heard(set(found.by_id), set(found.silent))
            await asyncio.sleep(INTERVAL)

    def _heard(self, there: set[str], silent: set[str]) -> None:
        gone, back = self._there - there, there & self._lost
        changed = bool(gone or back) or silent != self._silent
        self._lost = (self._lost | gone) - back
        self._there, self._silent = there, silent
        if len(self._lost) > MAX_LOST:
            self._lost.clear()
        if changed:
            self._on_change()
