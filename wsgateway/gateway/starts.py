"""Where delivery begins, for many sockets at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING

from wsgateway.broker.recovery import Start
from wsgateway.broker.shared import Shared
from wsgateway.broker.subscriptions import MOST
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.subjects import Address

if TYPE_CHECKING:
    from wsgateway.broker.log import Log

__all__ = ["Starts"]

Ask = Callable[[int], Awaitable[Start]]
"""Finds out where to begin, and reads so many of the messages behind that at most."""


class Starts:
    """Finds out where sockets begin. Those who ask the same at the same time share the answer.

    When a gateway dies, thousands of sockets come to another, and most of them ask where they
    are in the same few topics. Nobody gets an answer to a question from before their own: those
    who take live messages before they ask miss nothing between the two.

    Args:
        at_once: Questions to one log at the same time. All together they would take so long that
            each one's time-out passes.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._turns: dict[Log, asyncio.Semaphore] = {}
        self._questions: dict[Hashable, _Question] = {}

    async def find(self, log: Log, address: Address, claim: Hashable, room: int, ask: Ask) -> Start:
        """Return what *ask* finds out, with messages behind it, unless those cannot be read now.

        Args:
            log: What holds *address*.
            address: What is to be read.
            claim: Everything else that the answer depends on.
            room: How many messages the caller can take. They may be more, for somebody else.
            ask: Called after this call, or the one of somebody who asks the same.

        Raises:
            BrokerError: Not known now.
        """
        key = log, address, claim
        question = self._questions.get(key)
        if question is None:
            turn = self._turns.setdefault(log, asyncio.Semaphore(self._at_once))
            question = self._questions[key] = _Question(log, address, turn, ask)
        question.room = min(max(question.room, room), MOST)
        question.callers += 1
        try:
            return await question.answer()
        finally:
            question.callers -= 1
            if not question.callers:
                del self._questions[key]


class _Question:
    """What some want to know."""

    __slots__ = ("_address", "_ask", "_log", "_turn", "answer", "callers", "room")

    def __init__(self, log: Log, address: Address, turn: asyncio.Semaphore, ask: Ask) -> None:
        self._log = log
        self._address = address
        self._turn = turn
        self._ask = ask
        self.callers = 0
        self.room = 1
        self.answer = Shared(self._find)

    async def _find(self) -> Start:
        async with self._turn:
            start = await self._ask(self.room)
            if start.batch is None:
                with contextlib.suppress(BrokerError):  # who begins there tries again
                    batch = await self._log.read_after(self._address, start.offset, limit=self.room)
                    start = start._replace(batch=batch)
            return start
