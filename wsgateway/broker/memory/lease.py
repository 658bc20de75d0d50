"""A lease among the brokers of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wsgateway.broker.lease import Claim, Lease
from wsgateway.conf import settings

if TYPE_CHECKING:
    from wsgateway.broker.memory.store import MemoryStore

__all__ = ["MemoryLease"]


class MemoryLease(Lease):
    """See `Lease`.

    Args:
        store: Brokers with the same one share their leases.
        name: Of what it is.
        holder: Who wants it.
    """

    def __init__(self, store: MemoryStore, name: str, holder: str) -> None:
        super().__init__()
        self._store = store
        self._name = name
        self._holder = holder

    async def _claim(self) -> Claim:
        now = time.monotonic()
        holder, until = self._store.leases.get(self._name, ("", 0.0))
        if holder != self._holder and now < until:
            return Claim.REFUSED
        self._store.leases[self._name] = self._holder, now + settings.ROSTER_TTL
        return Claim.KEPT if holder == self._holder else Claim.TAKEN

    async def _give_up(self) -> None:
        if self._store.leases.get(self._name, ("", 0.0))[0] == self._holder:
            del self._store.leases[self._name]
