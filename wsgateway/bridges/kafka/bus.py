"""The bus of a bridge to Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from wsgateway.bridges.bus import Bus
from wsgateway.bridges.kafka.access import Access
from wsgateway.bridges.kafka.cluster import Cluster
from wsgateway.bridges.kafka.consumer import Consumer, Hands, Receipt
from wsgateway.bridges.kafka.producer import OVERHEAD, Producer
from wsgateway.bridges.kafka.records import dead_letters, write_headers
from wsgateway.bridges.kafka.setup import create_topics
from wsgateway.bridges.names import Names
from wsgateway.conf import settings
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Record
    from wsgateway.bridges.config import Bridge

__all__ = ["KafkaBus"]

KEPT = "read the record where it was, before Kafka deletes it"


class KafkaBus(Bus):
    """Carries records over the topics of one Kafka cluster.

    What clients send goes to ``<prefix>.send.<service>``, with the user as key. What services
    produce is read from ``<prefix>.recv`` and ``<prefix>.topic``, and from those of them for one
    service, if they exist. What cannot be delivered goes to ``<prefix>.dead``.

    Args:
        bridge: The bridge.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._names = names = Names(bridge.prefix)
        self._sources = names.sources(bridge.services) if bridge.receives else {}
        self._needed: list[str] = []  # topics without which it does not work
        if bridge.sends:
            self._needed += map(names.send_topic, bridge.services)
        if bridge.receives:
            self._needed += [names.recv, names.topic, names.dead]
        self._access = Access(bridge)
        self._cluster = Cluster(self._access, [*self._needed, *self._sources])
        self._producer = Producer(self._access, self._cluster)
        self._consumer: Consumer | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._is_open = False
        self._is_closed = False

    @property
    def connected(self) -> bool:
        return self._cluster.is_connected

    @property
    def trouble(self) -> str:
        try:
            self._cluster.check(self._needed)
        except BusError as exc:
            return str(exc)
        return "" if self._consumer is None else self._consumer.trouble

    async def open(self) -> None:
        if self._is_open:
            return
        self._is_open = True
        self._tasks.append(supervise(self._cluster.run, "wsgateway-kafka-cluster"))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._producer.close()
        if self._consumer is not None:
            await self._consumer.close(settings.CLOSE_TIMEOUT / 2)

    async def ready(self) -> None:
        while True:
            await self._cluster.wait_connected()
            await self._cluster.look()
            try:
                self._cluster.check(self._needed)
            except BusUnavailable:
                continue
            return

    async def set_up(self) -> list[str]:
        limits = dict.fromkeys(self._needed, settings.MAX_MESSAGE_SIZE + OVERHEAD)
        if self._bridge.receives:
            limits[self._names.dead] += OVERHEAD  # or a record would not fit with its reason
        return await create_topics(self._access, limits)

    async def produce(
        self, service: str, user: str, payload: bytes, headers: Mapping[str, str]
    ) -> None:
        topic = self._names.send_topic(service)
        most = settings.MAX_MESSAGE_SIZE + OVERHEAD
        await self._producer.produce(topic, user.encode(), payload, write_headers(headers), most)

    def consume(
        self,
        on_record: Callable[[Record], None],
        on_lost: Callable[[str], None],
        room: int,
        room_bytes: int,
    ) -> None:
        hands = Hands(on_record, on_lost, room, room_bytes)
        self._consumer = Consumer(self._access, self._cluster, self._sources, hands)
        self._tasks.append(supervise(self._consumer.run, "wsgateway-kafka-consumer"))

    def ack(self, record: Record) -> None:
        if self._consumer is not None:
            self._consumer.ack(cast("Receipt", record.receipt))

    async def set_aside(self, record: Record, reason: str) -> str:
        raw, dead = cast("Receipt", record.receipt).raw, self._names.dead
        refused: RecordRefused | None = None
        for cut, value, headers in dead_letters(raw, record.place, reason):
            try:
                await self._producer.produce(dead, raw.key, value, headers)
            except RecordRefused as exc:
                refused = exc
            else:
                return cut and f"its {cut.replace(' ', ' and ')} did not fit into {dead}: {KEPT}"
        raise BusMisconfigured(str(refused)) from refused
