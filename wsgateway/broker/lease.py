"""What only one process does at a time, while others stand by."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from wsgateway.conf import settings

__all__ = ["Lease"]

MARGIN = 0.1
"""Part of its time for which a lease is not relied on: clocks do not run equally fast."""


class Lease(ABC):
    """The right to do something, for ``WSGATEWAY_ROSTER_TTL`` seconds after each `renew`.

    Call everything in the loop that opened the broker.
    """

    def __init__(self) -> None:
        self._until = 0.0  # when it ends, by the monotonic clock

    @property
    def held(self) -> bool:
        """Whether this process has it. Ask right before each act: a process may be frozen."""
        return time.monotonic() < self._until

    async def renew(self) -> bool:
        """Take it, or keep it; return whether this process has it.

        Raises:
            BrokerError: Not known. It is held until it ends.
        """
        begin = time.monotonic()
        if await self._claim():
            # From before the request: the broker counts from when it has stored it
            self._until = begin + settings.ROSTER_TTL * (1 - MARGIN)
        else:
            self._until = 0.0
        return self.held

    def drop(self) -> None:
        """Rely on it no more; nobody else is told. Idempotent."""
        self._until = 0.0

    async def release(self) -> None:
        """Let another have it at once. Idempotent.

        Raises:
            BrokerError: It may have to end by itself.
        """
        self.drop()
        await self._give_up()

    @abstractmethod
    async def _claim(self) -> bool:
        """Make the entry ours, unless it is another's; return whether it is."""

    @abstractmethod
    async def _give_up(self) -> None:
        """Remove the entry if it is ours."""
