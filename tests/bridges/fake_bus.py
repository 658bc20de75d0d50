"""A bus in memory, for what does not depend on a real one: order, room, what is given up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping

from wsgateway.bridges.bus import Bus, Record, Target
from wsgateway.exceptions import BusUnavailable

__all__ = ["FakeBus"]


class FakeBus(Bus):
    """Hands out what a test gives it; notes what it is told."""

    def __init__(self) -> None:
        self.produced: list[tuple[str, str, bytes, Mapping[str, str]]] = []
        self.acked: list[str] = []
        self.aside: list[tuple[str, str]] = []
        self.error: BaseException | None = None  # raised by `produce` and `set_aside`
        self.tries = 0
        self.tried: list[Mapping[str, str]] = []  # the headers of each call of `produce`
        self.room = self.room_bytes = 0  # see `Bus.consume`
        self.is_deaf = False  # `produce` waits until the bus is closed
        self._closed = asyncio.Event()
        self.is_connected = True
        self.trouble_now = ""
        self.unfit = ""  # what `set_aside` says that did not fit
        self.ack_error: Exception | None = None  # raised by `ack`
        self.on_record: Callable[[Record], None]
        self.on_lost: Callable[[str], None]
        self._offsets = itertools.count()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self._closed.set()

    @property
    def connected(self) -> bool:
        return self.is_connected

    @property
    def trouble(self) -> str:
        return self.trouble_now

    async def ready(self) -> None:
        if self.error is not None:
            raise self.error

    async def set_up(self) -> list[str]:
        return []

    def _try(self) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error

    async def produce(
        self, service: str, user: str, payload: bytes, headers: Mapping[str, str]
    ) -> None:
        self.tried.append(headers)
        self._try()
        if self.is_deaf:
            await self._closed.wait()
            raise BusUnavailable("closed")
        self.produced.append((service, user, payload, headers))

    def consume(
        self,
        on_record: Callable[[Record], None],
        on_lost: Callable[[str], None],
        room: int,
        room_bytes: int,
    ) -> None:
        self.on_record, self.on_lost = on_record, on_lost
        self.room, self.room_bytes = room, room_bytes

    def hand_out(
        self,
        payload: str,
        key: str = "orders.ann",
        *,
        lane: str = "0",
        headers: Mapping[str, str] | None = None,
        target: Target = "inbox",
        flaw: str = "",
        has_id: bool = True,
    ) -> None:
        """Let a service produce a record that reaches the bridge."""
        id = f"ws.recv.{lane}.{next(self._offsets)}" if has_id else None
        raw = payload.encode()
        found = Record(key, target, None, raw, headers or {}, id, lane, payload, payload, flaw)
        self.on_record(found)

    def ack(self, record: Record) -> None:
        if self.ack_error is not None:
            raise self.ack_error
        self.acked.append(record.payload.decode())

    async def set_aside(self, record: Record, reason: str) -> str:
        self._try()
        self.aside.append((record.payload.decode(), reason))
        return self.unfit
