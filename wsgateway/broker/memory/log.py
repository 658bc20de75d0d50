"""A log of the memory broker."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from wsgateway.broker.bus import Closable
from wsgateway.broker.log import Log
from wsgateway.broker.memory.pull_consumer import taking
from wsgateway.broker.memory.store import LogStore
from wsgateway.broker.messages import Batch, Position, Stored
from wsgateway.protocol.subjects import Address

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker

__all__ = ["MemoryLog"]


class MemoryLog(Log):
    """See `Log`.

    Args:
        broker: Whose.
        store: What it holds.
        name: What it is called in messages.
    """

    def __init__(self, broker: MemoryBroker, store: LogStore, name: str) -> None:
        self._broker = broker
        self._store = store
        self.name = name

    async def read_after(
        self, address: Address, offset: int, *, limit: int, anchor: bool = False
    ) -> Batch:
        await self._broker.wait_ready()
        with taking:
            kept = [kept.stored for kept in self._store.kept(address)]
        found = [stored for stored in kept if stored.offset > offset]
        anchored = anchor and any(stored.offset == offset for stored in kept)
        return Batch(found[:limit], len(found) > limit, anchored)

    async def read_last(self, address: Address, limit: int, *, before: int | None = None) -> Batch:
        await self._broker.wait_ready()
        with taking:
            kept = [kept.stored for kept in self._store.kept(address)]
        found = [stored for stored in kept if before is None or stored.offset < before]
        return Batch(found[-limit:], len(found) > limit)

    async def offset_at(self, address: Address, time: dt.datetime) -> int | None:
        await self._broker.wait_ready()
        with taking:
            kept = [kept.stored for kept in self._store.kept(address)]
        later = (each.offset for each in kept if dt.datetime.fromisoformat(each.time) >= time)
        return next(later, None)

    def watch(
        self, address: Address, on_message: Callable[[Stored], None], queue: str = ""
    ) -> Closable:
        return self._broker.enter(self._store.watchers[address][queue], on_message)

    async def last_offsets(self, addresses: Iterable[Address]) -> dict[Address, int]:
        await self._broker.wait_ready()
        kept = {address: self._store.kept(address) for address in addresses}
        return {address: found[-1].stored.offset for address, found in kept.items() if found}

    async def position(self) -> Position:
        await self._broker.wait_ready()
        store = self._store
        kept = [kept.stored.offset for i in list(store.messages) for kept in store.kept(i)]
        last = store.received.last
        first = min(kept, default=last + 1)
        gaps = last + 1 - first - len(kept)
        return Position(store.epoch, first, last, gaps, store.max_messages)

    @property
    def epoch(self) -> str:
        return self._store.epoch

    async def count(self, address: Address) -> int:
        await self._broker.wait_ready()
        return len(self._store.kept(address))
