"""The roster of one process, which may run several event loops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wsgateway.broker.roster import Details, Roster
from wsgateway.conf import settings

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker

__all__ = ["MemoryRoster"]


class MemoryRoster(Roster):
    """See `Roster`.

    Args:
        broker: Whose; brokers with the same store share the entries.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__()
        self._broker = broker

    async def _store(self, kind: str, id: str, details: Details) -> None:
        self._touch(kind, id, details)

    def _touch(self, kind: str, id: str, details: Details) -> None:
        until = time.monotonic() + settings.ROSTER_TTL
        self._broker.store.roster[kind, id] = (details, until)

    def _remove(self, kind: str, id: str) -> None:
        self._broker.store.roster.pop((kind, id), None)

    async def _load(self, kind: str) -> dict[str, Details]:
        self._broker.require_open()
        now = time.monotonic()
        return {
            id: details
            for (each, id), (details, until) in list(self._broker.store.roster.items())
            if each == kind and until > now
        }
