"""What a bridge knows about its Kafka cluster: whether it is there, and which topics it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.bridges.kafka.access import said, user_of
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, reason_of
from wsgateway.protocol.backoff import Backoff

if TYPE_CHECKING:
    from wsgateway.bridges.kafka.access import Access

__all__ = ["Cluster", "named"]

logger = logging.getLogger("wsgateway.bridges")

LOOK_EACH = 5.0
"""Seconds between two looks at the topics."""
PAUSES = Backoff(0.1, 2.0, 5.0, jitter=0.5)
TOPIC_AUTHORIZATION_FAILED = 29


class Cluster:
    """Looks at a cluster again and again, over a connection of its own.

    aiokafka's clients know neither why they cannot connect nor which topics are missing, and they
    make Kafka create topics by asking about them.

    Args:
        access: How to reach it.
        topics: Their names; others are not looked at.
    """

    def __init__(self, access: Access, topics: Iterable[str]) -> None:
        self._access = access
        self._names = sorted(set(topics))
        self.is_connected = False
        self._was_lost = False  # or could not be made; since then, there was no other
        self.id = ""  # the cluster's own; known once it was reached
        self.partitions: dict[str, int] = {}  # of each topic that exists and may be seen
        self._forbidden: set[str] = set()  # topics that the bridge's user may not see
        self._flaw: BusError = BusUnavailable("not connected to Kafka yet")
        self._looked = asyncio.Event()  # set after each look, and replaced
        self._wanted = asyncio.Event()  # somebody wants a look now

    async def run(self) -> None:
        """Look until cancelled."""
        attempt = 0
        while True:
            try:
                async with self._access.connection() as conn:
                    while True:
                        self._learn(await conn.send(MetadataRequest(self._names, False)))
                        attempt = 0
                        await self._pause(LOOK_EACH)
            except (BusError, errors.KafkaError, OSError, TimeoutError) as exc:
                self._lose(exc)
            await self._pause(PAUSES.delay(attempt))
            attempt += 1

    async def look(self) -> None:
        """Return after the next look, which begins now."""
        self._wanted.set()
        await self._looked.wait()

    async def wait_connected(self) -> None:
        """Return once it is connected.

        Raises:
            BusMisconfigured: It refuses the bridge.
        """
        while not self.is_connected:
            if isinstance(self._flaw, BusMisconfigured):
                raise self._new_flaw()
            await self._looked.wait()

    def check(self, topics: Iterable[str]) -> None:
        """Raise an error unless all these topics are there.

        Raises:
            BusUnavailable: Nobody knows, for the cluster cannot be reached.
            BusMisconfigured: One is missing, or the cluster refuses the bridge.
        """
        if not self.is_connected:
            raise self._new_flaw()
        missing = [topic for topic in topics if topic not in self.partitions]
        if missing:
            raise BusMisconfigured(self._missing(missing))

    def _missing(self, topics: list[str]) -> str:
        """Return what to do about topics that are not there, or cannot be seen."""
        bridge = self._access.bridge
        setup = f'run "manage.py setup_bridges {bridge.name}"'
        hidden = [topic for topic in topics if topic in self._forbidden]
        absent = [topic for topic in topics if topic not in self._forbidden]
        texts = []
        if absent:
            texts.append(f"Kafka has no {named(absent)}; {setup}")
        if hidden:  # Kafka does not say whether they exist
            one = len(hidden) == 1
            texts.append(
                f"{user_of(bridge)} cannot see {named(hidden)} in Kafka; grant it Describe on "
                f"{'it' if one else 'them'}, or {setup} if {'it does' if one else 'they do'} not "
                "exist"
            )
        return "; ".join(texts)

    def _new_flaw(self) -> BusError:
        """Return an error for one caller: one that many raise keeps the frames of all."""
        return type(self._flaw)(str(self._flaw))

    def _learn(self, metadata: Any) -> None:
        if self._was_lost:
            bridge = self._access.bridge
            text = "bridge %s: reconnected to %s"
            logger.info(text, bridge.name, bridge.where, extra={"bridge": bridge.name})
        self.is_connected, self._was_lost = True, False
        self.id = metadata.cluster_id or ""
        self._access.learn((broker[1], broker[2]) for broker in metadata.brokers)
        found = {topic[1]: (topic[0], len(topic[3])) for topic in metadata.topics}
        self.partitions = {name: count for name, (_, count) in found.items() if count}
        self._forbidden = {
            name for name, (code, _) in found.items() if code == TOPIC_AUTHORIZATION_FAILED
        }
        self._tell()

    def _lose(self, exc: Exception) -> None:
        where = self._access.bridge.where
        if not isinstance(exc, BusError):
            exc = BusUnavailable(f"lost the connection to {where}: {said(exc)}")
        if self.is_connected or str(exc) != str(self._flaw):
            level = logging.ERROR if isinstance(exc, BusMisconfigured) else logging.WARNING
            name, reason = self._access.bridge.name, reason_of(exc)
            logger.log(level, "bridge %s: %s", name, reason, extra={"bridge": name})
        self.is_connected, self._was_lost = False, True
        self._flaw = exc
        self._tell()

    def _tell(self) -> None:
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    async def _pause(self, longest: float) -> None:
        self._wanted.clear()
        try:
            async with asyncio.timeout(longest):
                await self._wanted.wait()
        except TimeoutError:
            return


def named(topics: Sequence[str]) -> str:
    """Return ``topic 'a'``, or ``topics 'a', 'b'``."""
    return f"topic{'s' if len(topics) > 1 else ''} {', '.join(map(repr, topics))}"
