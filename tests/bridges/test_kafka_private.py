"""aiokafka still keeps to itself what `wsgateway.bridges.kafka.private` takes from it.

If one of these tests fails, look at how `AIOKafkaProducer.stop` and `AIOKafkaConsumer.stop` end
their tasks now, and change that module.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors

from tests.bridges.kafka_server import KafkaServer
from tests.bridges.kafka_service import bridge_to
from tests.support import until
from wsgateway.bridges.kafka.access import Access
from wsgateway.bridges.kafka.private import abandon_consumer, abandon_producer, forget_refusal
from wsgateway.bridges.kafka.setup import create_topics


def others() -> set[Any]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture
async def topic(kafka: KafkaServer, prefix: str) -> str:
    await create_topics(Access(bridge_to(kafka, prefix=prefix)), {prefix: 1000})
    return prefix


async def test_abandoned_producer_leaves_nothing_and_fails_what_waits(
    kafka: KafkaServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = others()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address(), enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(topic, b"1")
    kafka.pause()
    try:
        waiting = [await producer.send(topic, b"2") for _ in range(3)]
        async with asyncio.timeout(5):
            await abandon_producer(producer, "why")
        for each in waiting:
            with pytest.raises(errors.KafkaConnectionError, match="why"):
                await each
    finally:
        kafka.resume()
    await until(lambda: others() <= before)
    del producer, waiting, each
    gc.collect()
    assert "never retrieved" not in caplog.text  # as asyncio logged at each bridge's end


async def test_abandoned_consumer_leaves_nothing(kafka: KafkaServer, topic: str) -> None:
    before = others()
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.address(), group_id=topic)
    await consumer.start()
    kafka.pause()
    try:
        async with asyncio.timeout(5):
            await abandon_consumer(consumer)
    finally:
        kafka.resume()
    await until(lambda: others() <= before)


async def test_consumer_that_never_started_is_abandoned(kafka: KafkaServer, topic: str) -> None:
    before = others()
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.address(), group_id=topic)
    kafka.pause()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await consumer.start()
        await abandon_consumer(consumer)
    finally:
        kafka.resume()
    await until(lambda: others() <= before)


async def test_refusal_of_a_partition_is_forgotten_and_no_other_error(
    kafka: KafkaServer, topic: str
) -> None:
    """Each of a topic's partitions cost half a minute once it might be read again."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka.address()) as consumer:
        await until(consumer.assignment)
        one = min(consumer.assignment())
        consumer.pause(*consumer.assignment())
        consumer._fetcher._set_error(one, errors.TopicAuthorizationFailedError(topic))
        forget_refusal(consumer, one)
        assert await consumer.getmany(one) == {}
        consumer._fetcher._set_error(one, errors.OffsetOutOfRangeError({one: 1}))
        forget_refusal(consumer, one)
        with pytest.raises(errors.OffsetOutOfRangeError):
            await consumer.getmany(one)
