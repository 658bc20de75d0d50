"""The only module that touches what aiokafka keeps to itself.

`stop` of a producer waits for all that it has buffered, and `stop` of a consumer for its
coordinator. While Kafka is away neither returns, and cancelling them leaves their tasks and
connections behind. ``tests/bridges/test_kafka_private.py`` notices an aiokafka that differs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aiokafka import errors

__all__ = ["abandon_consumer", "abandon_producer"]


async def abandon_producer(producer: Any, reason: str) -> None:
    """End a producer without waiting for Kafka; what it has not confirmed fails."""
    error = errors.KafkaConnectionError(reason)
    producer._closed = True
    producer._message_accumulator.fail_all(error)
    await _end(producer._sender.sender_task)
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


async def _close(client: Any) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await client.close()
