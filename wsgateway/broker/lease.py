"""What only one process does at a time, while others stand by."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from enum import Enum

from wsgateway.conf import settings

__all__ = ["Claim", "Lease"]

MARGIN = 0.1
"""Part of its time for which a lease is not relied on: clocks do not run equally fast."""


class Claim(Enum):
    """What became of an attempt to have a lease."""

    REFUSED = "refused"
    """Another has it."""
    TAKEN = "taken"
    """It is ours; in between, another may have had it."""
    KEPT = "kept"
    """It is ours, as it was before."""


class Lease(ABC):
    """The right to do something, for ``WSGATEWAY_ROSTER_TTL`` seconds after each `renew`.

    Call everything in the loop that opened the broker.
    """

    def __init__(self) -> None:
        self._until = 0.0  # when it ends, by the monotonic clock
        self._ours = False  # it was ours when that was last known
        self._news = asyncio.Event()  # replaced each time that more is known
        self.term = 0
        """Counts how often this process took it: after a gap, another may have had it."""

    @property
    def held(self) -> bool:
        """Whether this process has it. Ask right before each act: a process may be frozen."""
        return time.monotonic() < self._until

    @property
    def possible(self) -> bool:
        """Whether this process has it, or had it and does not know yet whether it still does."""
        return self._ours

    async def settled(self, term: int) -> bool:
        """Say whether this process has it, and has had it since *term*; wait until it is known."""
        while self._ours and self.term == term:
            if self.held:
                return True
            await self._news.wait()
        return False

    async def renew(self) -> bool:
        """Take it, or keep it; return whether this process has it.

        Raises:
            BrokerError: Not known. It is held until it ends.
        """
        begin = time.monotonic()
        claim = await self._claim()
        if claim is not Claim.KEPT:
            self.term += 1
        self._ours = claim is not Claim.REFUSED
        # From before the request: the broker counts from when it has stored it
        self._until = begin + settings.ROSTER_TTL * (1 - MARGIN) if self._ours else 0.0
        self._tell()
        return self.held

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def drop(self) -> None:
        """Rely on it no more until it is renewed; nobody else is told. Idempotent."""
        self._until = 0.0

    async def release(self) -> None:
        """Let another have it at once. Idempotent.

        Raises:
            BrokerError: It may have to end by itself.
        """
        self.drop()
        self._ours = False
        self._tell()
        await self._give_up()

    @abstractmethod
    async def _claim(self) -> Claim:
        """Make the entry ours, unless it is another's."""

    @abstractmethod
    async def _give_up(self) -> None:
        """Remove the entry if it is ours."""
