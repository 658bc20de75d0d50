"""Fast-ingest batches of a real server: what is stored is the beginning of what was sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import server_version, until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.fast_batch import FLOW, SINCE, FastBatch
from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.exceptions import BrokerUnavailable, QueueFull

pytestmark = pytest.mark.skipif(server_version() < SINCE, reason="nats-server is older than 2.14")


async def make_stream(broker: NatsBroker, prefix: str, **options: Any) -> str:
    """Make a stream of one subject, and return that."""
    name = f"{prefix}_BATCH"
    config = {"name": name, "subjects": [f"{prefix}.batch"], "storage": "memory", **options}
    await broker.jetstream.api(f"STREAM.CREATE.{name}", config)
    return f"{prefix}.batch"


async def stored(broker: NatsBroker, prefix: str) -> int:
    info = await broker.streams.info(f"{prefix}_BATCH")
    assert info is not None
    return int(info["state"]["messages"])


async def fill(batch: FastBatch, changed: asyncio.Event, count: int) -> None:
    """Append *count* messages, or as many as it takes."""
    async with asyncio.timeout(20):
        for number in range(count):
            while not (batch.takes_more or batch.sent == 0):
                if batch.is_ending:
                    return
                changed.clear()
                await changed.wait()
            batch.append(b"%d" % number, {"Nats-Msg-Id": str(number)})


async def test_stores_what_it_is_given(broker: NatsBroker, prefix: str) -> None:
    subject = await make_stream(broker, prefix, allow_batched=True)
    changed = asyncio.Event()
    batch = FastBatch(broker.link, subject, changed.set)
    await fill(batch, changed, 10 * FLOW + 3)
    batch.end()
    await until(lambda: batch.has_ended, 10, "the final answer")
    assert (batch.stored, batch.error) == (10 * FLOW + 3, None)
    assert await stored(broker, prefix) == 10 * FLOW + 3


async def test_waits_for_acknowledgements(broker: NatsBroker, prefix: str) -> None:
    subject = await make_stream(broker, prefix, allow_batched=True)
    batch = FastBatch(broker.link, subject, lambda: None)
    batch.append(b"first", {})
    assert not batch.takes_more
    await until(lambda: batch.is_open, 10, "the first answer")
    while batch.takes_more:  # without ever letting an answer in
        batch.append(b"more", {})
    assert batch.sent - batch.stored == 2 * FLOW
    await until(lambda: batch.takes_more, 10, "an acknowledgement")


async def test_nothing_is_stored_behind_a_refused_message(broker: NatsBroker, prefix: str) -> None:
    subject = await make_stream(
        broker,
        prefix,
        allow_batched=True,
        discard="new",
        discard_new_per_subject=True,
        max_msgs_per_subject=10,
    )
    changed = asyncio.Event()
    batch = FastBatch(broker.link, subject, changed.set)
    await fill(batch, changed, 30)
    await until(lambda: batch.has_ended, 10, "the final answer")
    assert batch.stored == 10
    assert isinstance(batch.error, QueueFull)


async def test_nothing_is_stored_behind_a_gap(broker: NatsBroker, prefix: str) -> None:
    subject = await make_stream(broker, prefix, allow_batched=True)
    changed = asyncio.Event()
    batch = FastBatch(broker.link, subject, changed.set)
    await fill(batch, changed, 5)
    batch.sent += 1  # as if one had been lost
    await fill(batch, changed, 5)
    await until(lambda: batch.has_ended, 10, "the final answer")
    assert batch.stored == 5
    assert await stored(broker, prefix) == 5


async def test_a_stream_without_batches_refuses(broker: NatsBroker, prefix: str) -> None:
    subject = await make_stream(broker, prefix)
    batch = FastBatch(broker.link, subject, lambda: None)
    batch.append(b"first", {})
    await until(lambda: batch.has_ended, 10, "an answer")
    assert not batch.is_open
    assert isinstance(batch.error, ApiError)
    assert (batch.stored, await stored(broker, prefix)) == (0, 0)


async def test_no_stream_at_all(broker: NatsBroker, prefix: str) -> None:
    batch = FastBatch(broker.link, f"{prefix}.nowhere", lambda: None)
    batch.append(b"first", {})
    await until(lambda: batch.has_ended, 10, "an answer")
    assert isinstance(batch.error, BrokerUnavailable)


@pytest.mark.parametrize("size", [0, 100_000])
async def test_close_ends_the_interest(broker: NatsBroker, prefix: str, size: int) -> None:
    subject = await make_stream(broker, prefix, allow_batched=True)
    before = len(broker.link._subscriptions)
    heard: list[int] = []
    batch = FastBatch(broker.link, subject, lambda: heard.append(1))
    batch.append(bytes(size), {})
    batch.close()
    await broker.link.confirm()
    assert len(broker.link._subscriptions) == before
    assert heard == []
