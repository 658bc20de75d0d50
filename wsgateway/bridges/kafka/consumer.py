"""Reads what services produce, as a member of the bridge's consumer group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, errors

from wsgateway.bridges.kafka.access import said, translate, user_of
from wsgateway.bridges.kafka.cluster import named
from wsgateway.bridges.kafka.lanes import Lane
from wsgateway.bridges.kafka.private import (
    Unreadable,
    abandon_consumer,
    check_fetching,
    forget_refusal,
)
from wsgateway.bridges.kafka.records import read_record, why_unreadable
from wsgateway.bridges.outage import Outage, uncancelled
from wsgateway.exceptions import BusError, BusUnavailable, reason_of
from wsgateway.protocol.backoff import Backoff
from wsgateway.supervision import is_cancelled, start

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Record, Target
    from wsgateway.bridges.kafka.access import Access
    from wsgateway.bridges.kafka.cluster import Cluster
    from wsgateway.bridges.names import Source

__all__ = ["Consumer", "Hands", "Receipt"]

logger = logging.getLogger("wsgateway.bridges")

START_TIMEOUT = 60.0
"""Seconds that a consumer has to get partitions; others of its group may have to finish first."""
SESSION_TIMEOUT = 10.0
"""Seconds after which another bridge gets the partitions of one that was killed."""
COMMIT_EACH = 0.2
"""Seconds between two commits: what comes again after a crash was acknowledged since."""
COMMIT_TIMEOUT = 5.0
REVOKE_WAIT = 3.0
"""Seconds that others of the group wait until this bridge has delivered what is in hand."""
SPAN = 20
"""One partition's records in hand reach over at most this many times the room in offsets."""
PARTITION_PAUSE = 30.0
"""Seconds after which a partition that could not be read is tried again."""
PAUSES = Backoff(0.2, 2.0, 5.0, jitter=0.5)


@dataclass(slots=True, frozen=True, eq=False)
class Receipt:
    """What the bus needs to know of a record that it handed out."""

    lane: Lane
    raw: Any = field(repr=False)  # aiokafka's ConsumerRecord


@dataclass(slots=True, frozen=True)
class Hands:
    """Who takes the records, and how many; see `Bus.consume`."""

    on_record: Callable[[Record], None]
    on_lost: Callable[[str], None]
    room: int
    room_bytes: int


class Share:
    """What inboxes, or topics, may have in hand: half of the room.

    If the stream of inboxes is full, its records take their half, and topics go on.
    """

    def __init__(self, hands: Hands) -> None:
        self._room, self._room_bytes = hands.room // 2, hands.room_bytes // 2
        self.count = 0  # records in hand
        self.bytes = 0  # theirs

    @property
    def left(self) -> int:
        """How many records it may still take."""
        return 0 if self.bytes >= self._room_bytes else max(0, self._room - self.count)

    @property
    def most(self) -> int:
        """How many of these it takes at once."""
        return max(1, self.left // 4)

    def add(self, count: int, size: int) -> None:
        """Take, or release, *count* records of *size* bytes together."""
        self.count += count
        self.bytes += size


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands out the records of some topics, and commits what is acknowledged.

    Args:
        access: How to reach the cluster.
        cluster: What is known about it.
        sources: What each topic holds; those that do not exist are left out until they do.
        hands: Who takes the records.
    """

    def __init__(
        self, access: Access, cluster: Cluster, sources: Mapping[str, Source], hands: Hands
    ) -> None:
        self._access = access
        self._cluster = cluster
        self._sources = sources
        self._hands = hands
        name = access.bridge.name
        self._outage = Outage(f"bridge {name} waits to read what services produced", name)
        self._consumer: Any = None
        self._lanes: dict[Any, Lane] = {}  # by TopicPartition; those with records in hand or done
        self._paused: dict[Any, float] = {}  # partitions that cannot be read; when to try again
        self._shares: dict[Target, Share] = {"inbox": Share(hands), "topic": Share(hands)}
        self._dirty: set[Lane] = set()  # with acknowledgements that are not committed
        self._acked = asyncio.Event()  # set by each acknowledgement
        self._error = ""  # why it could not consume; "" once it does

    @property
    def trouble(self) -> str:
        """Why some records are not read; "" if all are."""
        stuck = [f"{tp.topic}, partition {tp.partition}" for tp in list(self._paused)]
        return self._error or (stuck and f"cannot read {'; '.join(stuck)}") or ""

    # -- the consumer's life ---------------------------------------------------------------

    async def run(self) -> None:
        """Consume until cancelled; begin again after errors."""
        attempt = 0
        while True:
            try:
                topics = await self._topics()
                await self._consume(topics)
                attempt = 0
            except (
                BusError,
                errors.KafkaError,
                errors.IllegalOperation,
                OSError,
                ValueError,  # a server's answer that cannot be read
            ) as exc:
                error: Exception = exc
                if not isinstance(exc, BusError):
                    bridge, right = self._access.bridge, f"Read on {named(sorted(self._sources))}"
                    error = translate(exc, "cannot read from Kafka", bridge, right)
                self._error = reason_of(error)
                self._outage.log(error)
                await asyncio.sleep(PAUSES.delay(attempt))
                attempt += 1

    async def close(self, timeout: float) -> None:
        """Commit what is acknowledged, and leave the group; after `run` was cancelled."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._stop(consumer, timeout)

    async def _topics(self) -> set[str]:
        """Return the topics that exist, once there is one."""
        while True:
            await self._cluster.wait_connected()
            topics = self._existing()
            if topics:
                return topics
            await self._cluster.look()

    def _existing(self) -> set[str]:
        return {topic for topic in self._sources if topic in self._cluster.partitions}

    async def _consume(self, topics: set[str]) -> None:
        """Consume until a topic appears or vanishes."""
        bridge = self._access.bridge
        consumer = AIOKafkaConsumer(
            **self._access.client_options(),
            group_id=bridge.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # so that we hear of records that are gone
            isolation_level="read_committed",
            fetch_max_bytes=self._hands.room_bytes,
            session_timeout_ms=int(SESSION_TIMEOUT * 1000),
            heartbeat_interval_ms=int(SESSION_TIMEOUT * 1000 / 4),
            rebalance_timeout_ms=30_000,
            # We may have no room for as long as NATS is away, and keep our partitions
            max_poll_interval_ms=2**31 - 1,
        )
        self._consumer = consumer
        committing = start(self._commit_often(consumer), "wsgateway-kafka-commit")
        try:
            consumer.subscribe(list(topics), listener=self)
            async with asyncio.timeout(START_TIMEOUT):
                await consumer.start()
            await self._poll(consumer, topics)
        finally:
            committing.cancel()
            if not is_cancelled():  # or `close` stops it
                self._consumer = None
                await asyncio.shield(self._stop(consumer, COMMIT_TIMEOUT))

    async def _stop(self, consumer: Any, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._commit(consumer)
                with uncancelled(BusUnavailable):  # aiokafka awaits tasks that it has cancelled
                    await consumer.stop()
        except (errors.KafkaError, errors.IllegalOperation, OSError, TimeoutError, BusUnavailable):
            await abandon_consumer(consumer)
        finally:
            self._lose()

    # -- records ---------------------------------------------------------------------------

    async def _poll(self, consumer: Any, topics: set[str]) -> None:
        while self._existing() in (topics, set()):
            check_fetching(consumer)
            self._resume(consumer)
            assigned = consumer.assignment() - self._paused.keys()
            ready = [tp for tp in assigned if self._may_take(tp)]
            if not ready and (assigned or self._paused):
                await self._wait_for_ack(1.0)
                continue
            # A partition that gets room while the others have nothing waits for this long
            longest = 1000 if len(ready) == len(assigned) else 20
            shares = {self._share(tp) for tp in ready} or self._shares.values()
            most = min(share.most for share in shares)
            try:
                found = await consumer.getmany(*ready, timeout_ms=longest, max_records=most)
            except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError) as exc:
                async with asyncio.timeout(START_TIMEOUT):
                    await self._begin_again(consumer, exc)
                continue
            except errors.TopicAuthorizationFailedError as exc:
                self._pause_topic(consumer, exc)
                continue
            self._error = ""
            for partition, records in found.items():
                if isinstance(records[-1], Unreadable):
                    self._pause_batch(consumer, partition, records.pop())
                if records:
                    self._hand_out(partition, records)

    def _pause_topic(self, consumer: Any, exc: Exception) -> None:
        """Leave a topic alone that the bridge may not read; the others go on."""
        bridge = self._access.bridge
        topic = exc.args[0]
        partitions = [tp for tp in consumer.assignment() if tp.topic == topic]
        if not partitions:  # several topics, or one of a moment ago
            raise exc
        for partition in partitions:
            self._pause(consumer, partition)
        logger.error(
            "bridge %s: %s may not read topic %r in Kafka. Grant it Read. The bridge tries again "
            "every %g s, and continues with the other topics",
            bridge.name,
            user_of(bridge),
            topic,
            PARTITION_PAUSE,
            extra={"bridge": bridge.name},
        )

    def _pause(self, consumer: Any, partition: Any) -> None:
        consumer.pause(partition)
        self._paused[partition] = time.monotonic() + PARTITION_PAUSE

    def _pause_batch(self, consumer: Any, partition: Any, found: Unreadable) -> None:
        """Leave a partition alone whose next batch cannot be read; the others go on."""
        self._pause(consumer, partition)
        name = self._access.bridge.name
        logger.error(
            "bridge %s cannot read topic %s, partition %d, at offset %d: %s. It tries again every "
            "%g s, and continues with the other partitions. If you cannot repair the record, stop "
            "the bridge and move its group %r past it with kafka-consumer-groups --reset-offsets",
            name,
            partition.topic,
            partition.partition,
            found.offset,
            why_unreadable(found.error),
            PARTITION_PAUSE,
            self._access.bridge.group,
            extra={"bridge": name},
        )

    def _resume(self, consumer: Any) -> None:
        now = time.monotonic()
        for partition in [tp for tp, due in self._paused.items() if due <= now]:
            del self._paused[partition]
            if partition in consumer.assignment():
                forget_refusal(consumer, partition)
                consumer.resume(partition)

    def _share(self, partition: Any) -> Share:
        return self._shares[self._sources[partition.topic].target]

    def _may_take(self, partition: Any) -> bool:
        """Say whether a partition's records in hand may become more.

        They are never more than what is left for others, so one that has to wait delays no other.
        """
        share, lane = self._share(partition), self._lanes.get(partition)
        if lane is None or share.left == 0:
            return share.left > 0
        return len(lane) <= share.left - share.most and lane.span < SPAN * self._hands.room

    def _hand_out(self, partition: Any, records: list[Any]) -> None:
        lane = self._lanes.get(partition)
        if lane is None or (lane.next is not None and records[0].offset < lane.next):
            if lane is not None:
                self._lose_lane(partition, lane)  # the topic was recreated, and counts from 0
            lane = self._lanes[partition] = Lane(f"{partition.topic}/{partition.partition}")
        source, share = self._sources[partition.topic], self._share(partition)
        for raw in records:
            size = len(raw.value or b"")
            lane.hand_out(raw.offset, size)
            share.add(1, size)
            self._hands.on_record(
                read_record(raw, source, self._cluster.id, lane.name, Receipt(lane, raw))
            )

    async def _begin_again(self, consumer: Any, exc: Exception) -> None:
        """Go on with a partition's oldest record, and say what is gone."""
        if isinstance(exc, errors.NoOffsetForPartitionError):  # the group has never read it
            await consumer.seek_to_beginning(*exc.args)
            return
        for partition, offset in exc.args[0].items():
            oldest = (await consumer.beginning_offsets([partition]))[partition]
            logger.error(
                "bridge %s continues at offset %d of topic %s, partition %d: offset %d no longer "
                "exists. Kafka deleted records before they were read, or the topic was recreated. "
                "If records expire too soon, raise the topic's retention.ms or retention.bytes",
                self._access.bridge.name,
                oldest,
                partition.topic,
                partition.partition,
                offset,
                extra={"bridge": self._access.bridge.name},
            )
            await consumer.seek_to_beginning(partition)

    # -- acknowledgements ------------------------------------------------------------------

    def ack(self, receipt: Receipt) -> None:
        """Acknowledge a record."""
        lane = receipt.lane
        size = None if lane.is_lost else lane.ack(receipt.raw.offset)
        if size is None:
            return
        self._share(receipt.raw).add(-1, -size)
        self._dirty.add(lane)
        self._acked.set()

    async def _wait_for_ack(self, timeout: float) -> None:
        self._acked.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._acked.wait()

    async def _commit_often(self, consumer: Any) -> None:
        while True:
            await asyncio.sleep(COMMIT_EACH)
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT):
                    await self._commit(consumer)
            except errors.CommitFailedError:
                name = self._access.bridge.name
                logger.info(
                    "bridge %s: its partitions moved to another member of its group",
                    name,
                    extra={"bridge": name},
                )
            except (errors.KafkaError, TimeoutError) as exc:
                name, reason = self._access.bridge.name, said(exc)
                text = "bridge %s could not commit what it has read, and tries again: %s"
                logger.warning(text, name, reason, extra={"bridge": name})

    async def _commit(self, consumer: Any) -> None:
        """Commit the position of each partition that has moved."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        partitions = {tp: lane for tp, lane in self._lanes.items() if lane in dirty}
        positions = {tp: lane.position for tp, lane in partitions.items()}
        moved = {tp: at for tp, at in positions.items() if at != partitions[tp].committed}
        try:
            if moved:
                await consumer.commit(moved)
        except BaseException:
            self._dirty |= {lane for lane in dirty if not lane.is_lost}
            raise
        for tp, at in moved.items():
            partitions[tp].committed = at

    # -- rebalances ------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Finish what is in hand, commit it, and forget the rest. aiokafka calls it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_WAIT):
                while any(share.count for share in self._shares.values()):
                    await self._wait_for_ack(REVOKE_WAIT)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT):
                await self._commit(self._consumer)
        except (errors.KafkaError, TimeoutError) as exc:
            name, reason = self._access.bridge.name, said(exc)
            text = "bridge %s could not commit before a rebalance, so records may come twice: %s"
            logger.warning(text, name, reason, extra={"bridge": name})
        self._lose()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Log which partitions this bridge has now. aiokafka calls it."""
        name = self._access.bridge.name
        text = "bridge %s reads %d of its group's partitions"
        logger.info(text, name, len(assigned), extra={"bridge": name})

    def _lose(self) -> None:
        """Forget everything in hand: others have it, or it comes again."""
        lanes, self._lanes = self._lanes, {}
        self._paused.clear()  # aiokafka forgets with the assignment what is paused
        self._dirty.clear()
        for partition, lane in lanes.items():
            self._lose_lane(partition, lane)
        self._acked.set()

    def _lose_lane(self, partition: Any, lane: Lane) -> None:
        lane.is_lost = True
        self._share(partition).add(-len(lane), -lane.sizes())
        self._hands.on_lost(lane.name)
