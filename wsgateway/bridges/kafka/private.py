"""The only module that touches what aiokafka keeps to itself.

`stop` of a producer waits for all that it has buffered, and `stop` of a consumer for its
coordinator. While Kafka is away neither returns, and cancelling them leaves their tasks and
connections behind. A consumer that meets one batch which it cannot read drops what it has read of
other partitions. ``tests/bridges/test_kafka_private.py`` and ``test_kafka_unreadable.py`` notice an
aiokafka that differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from aiokafka import errors
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

__all__ = [
    "Unreadable",
    "abandon_consumer",
    "abandon_producer",
    "check_fetching",
    "forget_refusal",
]

SIZE, HEAD, MAGIC = 8, 12, 16
"""Where a batch has its size, where what it counts begins, and where its format's number is."""


async def abandon_producer(producer: Any, reason: str) -> None:
    """End a producer without waiting for Kafka; what it has not confirmed fails.

    Nothing is sent from here on: others may send the same records again, and then later ones.
    """
    error = errors.KafkaConnectionError(reason)
    producer._closed = True
    accumulator = producer._message_accumulator
    batches = [*chain.from_iterable(accumulator._batches.values()), *accumulator._pending_batches]
    accumulator.fail_all(error)
    for batch in batches:
        if not batch._drain_waiter.cancelled():
            batch._drain_waiter.exception()  # nobody else asks, and asyncio would log an error
    _abort(producer.client)
    await _end(producer._sender.sender_task)
    _abort(producer.client)  # what it connected to since
    await _close(producer.client)


async def abandon_consumer(consumer: Any) -> None:
    """End a consumer without telling Kafka, which notices after the session's time-out."""
    consumer._closed = True
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    if coordinator is not None:
        if not coordinator._closing.done():
            coordinator._closing.set_result(None)
        await _end(coordinator._coordination_task)
        await _end(coordinator._heartbeat_task)
        await _end(coordinator._commit_refresh_task)
    if fetcher is not None:
        await _end(fetcher._fetch_task)
        for task in list(fetcher._pending_tasks):
            await _end(task)
    await _close(consumer._client)


def check_fetching(consumer: Any) -> None:
    """Raise an error if a consumer's fetching has ended: `getmany` would wait for ever."""
    if consumer._fetcher._fetch_task.done():
        raise errors.KafkaError("aiokafka stopped fetching")


def forget_refusal(consumer: Any, partition: Any) -> None:
    """Drop what a server said about a partition that the bridge might not read.

    `getmany` raises it for one partition at a time, even after they were paused and may be read.
    """
    kept = consumer._fetcher._records
    error = getattr(kept.get(partition), "_error", None)
    if isinstance(error, errors.TopicAuthorizationFailedError):
        del kept[partition]


async def _end(task: asyncio.Task[Any] | None) -> None:
    if task is None:
        return
    # A task that catches its cancellation, to wait for others, is cancelled with these
    for _ in range(10):
        if task.done():
            break
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    if task.done() and not task.cancelled():
        task.exception()  # nobody else asks


def _abort(client: Any) -> None:
    """Drop the connections with all that waits in their buffers. `close` would still send it."""
    for conn in client._conns.values():
        if conn._writer is not None:
            conn._writer.transport.abort()


async def _close(client: Any) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await client.close()


@dataclass(slots=True, frozen=True)
class Unreadable:
    """Comes as the last record of a partition if the batch at this offset cannot be read."""

    offset: int
    error: Exception


class _Name(bytearray):
    """Bytes whose parts become text, whatever they are."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Name(found) if isinstance(at, slice) else found

    def decode(self, *_: str) -> str:
        return super().decode("utf-8", "backslashreplace")


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """A batch of records whose headers may have names that are not UTF-8. Slow."""

    _buffer: Any

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Name(self._buffer)


class _Batch:
    """A batch that aiokafka reads, and we if it cannot."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch = batch
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except (ValueError, errors.CorruptRecordException):
            if self._raw[MAGIC] < 2:
                raise
            # From its beginning: the fetcher leaves out those that it has seen
            yield from _LenientBatch(self._raw)

    def __next__(self) -> Any:
        return next(self._batch)


class _Batches:
    """What a server sent of a partition; an error appears only where it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._inner: Any = None
        self._flaw: Exception | None = None
        try:
            self._inner = MemoryRecords(data)
            if data and not self._inner.has_next():
                self._flaw = errors.CorruptRecordException("the batch is incomplete")
        except (ValueError, errors.CorruptRecordException) as exc:
            self._flaw = exc

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        return self._flaw is not None or self._inner.has_next()

    def next_batch(self) -> _Batch:
        if self._flaw is not None:
            raise self._flaw
        batch = self._inner.next_batch()
        size = int.from_bytes(self._data[self._at + SIZE : self._at + HEAD])
        begin, self._at = self._at, self._at + HEAD + size
        return _Batch(batch, self._data[begin : self._at])


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """A partition's records; an error is the last of them, and what was read before it counts."""

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except (AssertionError, ValueError, IndexError, errors.KafkaError) as exc:
            return Unreadable(self.next_fetch_offset, exc)


fetcher.MemoryRecords = _Batches
fetcher.PartitionRecords = _PartitionRecords
