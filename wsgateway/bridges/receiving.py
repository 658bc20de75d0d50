"""Service to client: publishes what services produce into inboxes and topics.

A record's message must be stored before the next one with its key is published, and before the
record is acknowledged. So each address has a queue, and a task that publishes its records one after
the other; different addresses do not wait for each other. The bus hands out no more records than
there is room for, so nothing grows while NATS is away.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any

from wsgateway.bridges.names import Names
from wsgateway.bridges.outage import Outage, uncancelled
from wsgateway.bridges.reading import Unusable, address_of, publication_of
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerMisconfigured,
    BrokerUnavailable,
    BusUnavailable,
    QueueFull,
    ServiceUnknown,
    TopicsUnknown,
    reason_of,
)
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Bus, Record
    from wsgateway.bridges.config import Bridge
    from wsgateway.broker.base import Broker
    from wsgateway.counters import BridgeCounters
    from wsgateway.protocol.subjects import Address

__all__ = ["Receiving"]

logger = logging.getLogger("wsgateway.bridges")

ROOM = 512
"""Records in hand."""
ROOM_BYTES = 64 * 1024 * 1024
"""Their bytes, after which no more are taken; each of them may be as large as the bus allows."""
NOT_NOW = (BrokerUnavailable, BrokerMisconfigured, QueueFull)
"""What an operator, or time, mends."""
NEVER = (ServiceUnknown, TypeError, ValueError)
"""What no other try can change, see `Broker.publish`."""


class _Item:
    """A record in hand.

    Args:
        record: The record.
        address: Where it belongs; or why nowhere.
    """

    __slots__ = ("address", "is_lost", "record")

    def __init__(self, record: Record, address: Address | Unusable) -> None:
        self.record = record
        self.address = address
        self.is_lost = False  # whether its lane is: another bridge may have it already


class Receiving:
    """Carries records of one bridge, from `start` to `stop`.

    Args:
        bridge: The bridge.
        bus: Its bus.
        broker: Open, in the running loop.
        counted: Counts what it does.
    """

    def __init__(self, bridge: Bridge, bus: Bus, broker: Broker, counted: BridgeCounters) -> None:
        self._bridge = bridge
        self._bus = bus
        self._broker = broker
        self._counted = counted
        self._services = frozenset(bridge.services)
        self._queues: dict[Address | str, deque[_Item]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # one for each queue
        self._ended = asyncio.Event()
        name = bridge.name
        self._publishing = Outage(f"bridge {name} waits to publish what services produced", name)
        self._setting_aside = Outage(f"bridge {name} waits to set a record aside", name)

    def start(self) -> None:
        """Begin to take records."""
        self._bus.consume(self._on_record, self._on_lost, ROOM, ROOM_BYTES)

    @property
    def trouble(self) -> str:
        """Why a record is neither published nor set aside; "" if none waits."""
        return self._publishing.reason or self._setting_aside.reason

    async def stop(self, timeout: float) -> None:
        """Finish what is being published, and return the rest to the bus.

        Args:
            timeout: Seconds; what is not finished then is handed out again.
        """
        self._ended.set()
        if self._tasks:
            tasks = list(self._tasks)
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- what the bus says ---------------------------------------------------------------

    def _on_record(self, record: Record) -> None:
        if self._ended.is_set():
            return  # nobody acknowledges it, so it comes again
        place: Address | str
        try:
            place = address = address_of(record, self._services)
            item = _Item(record, address)
        except Unusable as exc:
            place = record.lane  # set aside one after the other
            item = _Item(record, exc)
        self._counted.receiving += 1
        queue = self._queues.get(place)
        if queue is not None:
            queue.append(item)
            return
        self._queues[place] = deque([item])
        start(self._work(place), "wsgateway-bridge-key", tasks=self._tasks)

    def _on_lost(self, lane: str) -> None:
        """Forget what has not begun. What has is finished, but not tried again.

        The bridge that has the lane now publishes the same records, under the same ids, and then
        those behind them: a late try of this one would come after these.
        """
        for queue in self._queues.values():
            begun, *others = queue
            begun.is_lost = begun.is_lost or begun.record.lane == lane
            kept = [item for item in others if item.record.lane != lane]
            self._counted.receiving -= len(others) - len(kept)
            queue.clear()
            queue.extend((begun, *kept))

    # -- one address ---------------------------------------------------------------------

    async def _work(self, place: Address | str) -> None:
        queue = self._queues[place]
        try:
            while queue and not self._ended.is_set():
                item = queue[0]
                if await self._deliver(item):
                    self._ack(item.record)
                self._publishing.over()
                self._setting_aside.over()
                queue.popleft()
                self._counted.receiving -= 1
        finally:
            self._publishing.over()
            self._setting_aside.over()
            self._counted.receiving -= len(queue)
            del self._queues[place]

    def _ack(self, record: Record) -> None:
        try:
            self._bus.ack(record)
        except Exception as exc:  # or the records behind it would be stranded
            self._log_bug(record, exc)

    def _log_bug(self, record: Record, error: Exception) -> None:
        logger.error(
            "bridge %s: %s failed because of a bug in wsgateway. Please report it.",
            self._bridge.name,
            record.place,
            exc_info=error,
            extra={"bridge": self._bridge.name},
        )

    async def _deliver(self, item: _Item) -> bool:
        """Return True once the record's message is stored, or set aside; False if it is given up.

        That is only when its lane is lost, or the bridge ends.
        """
        if isinstance(item.address, Unusable):
            return await self._set_aside(item, str(item.address))
        try:
            is_stored = await self._publish(item, item.address)
        except BrokerClosed:
            return False
        except NEVER as exc:
            return await self._set_aside(item, self._why_never(exc))
        except Exception as exc:
            self._log_bug(item.record, exc)
            return await self._set_aside(item, f"{type(exc).__name__}: {reason_of(exc)}")
        if is_stored:
            self._counted.received += 1
        return is_stored

    def _why_never(self, error: Exception) -> str:
        """Return why no other try helps, and what the service does instead."""
        if isinstance(error, ServiceUnknown) and error.is_other:
            names = Names(self._bridge.prefix)
            where = names.recv if isinstance(error, TopicsUnknown) else names.topic
            return f"{error.reason}; produce to {where!r} instead"
        return reason_of(error)

    async def _publish(self, item: _Item, address: Address) -> bool:
        found = publication_of(item.record)
        msg_id = found.msg_id or secrets.token_hex(12)  # one for all tries, which is stored once
        attempt = 0
        while True:
            try:
                with uncancelled(BrokerUnavailable):
                    await self._broker.publish(
                        address,
                        found.payload,
                        kind=found.kind,
                        msg_id=msg_id,
                        ttl=found.ttl,
                        headers=found.headers,
                        reserved=found.is_reply,
                    )
            except NOT_NOW as exc:
                self._counted.receive_failures += 1
                await self._publishing.wait(attempt, exc, self._ended)
                if item.is_lost or self._ended.is_set():
                    return False
                attempt += 1
            else:
                return True

    async def _set_aside(self, item: _Item, reason: str) -> bool:
        record, attempt = item.record, 0
        while True:
            try:
                with uncancelled(BusUnavailable):
                    unfit = await self._bus.set_aside(record, reason)
            except Exception as exc:  # a bug as well: the records behind it would be stranded
                self._counted.receive_failures += 1
                await self._setting_aside.wait(attempt, exc, self._ended)
                if item.is_lost or self._ended.is_set():
                    return False
                attempt += 1
            else:
                break
        self._counted.set_aside += 1
        self._counted.cut += bool(unfit)
        logger.error(
            "bridge %s set a record aside (%s): %s%s",
            self._bridge.name,
            record.place,
            reason,
            unfit and f"; {unfit}",
            extra={"bridge": self._bridge.name},
        )
        return True
