"""Operations with 100,000 inboxes, more than NATS lists at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Inbox

COUNT = 100_500
"""Of subjects: NATS describes 100,000 in one answer."""
PAUSE_EACH = 2000

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def crowded(nats_settings: Any) -> AsyncIterator[NatsBroker]:
    """A broker with many inboxes; published without confirmations, which would take minutes."""
    nats_settings.WSGATEWAY_STORAGE = "memory"
    nats_settings.WSGATEWAY_SERVICES = ["orders"]
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    for number in range(COUNT):
        broker.connection.publish(broker.subjects.recv(Inbox("orders", name(number))), b"x")
        if number % PAUSE_EACH == 0:
            await broker.publish(Inbox("orders", "last"), b"x")
    await broker.publish(Inbox("orders", "last"), b"x")
    assert (await broker.inboxes.position()).last == COUNT + COUNT // PAUSE_EACH + 2
    yield broker
    await broker.jetstream.api(f"STREAM.PURGE.{broker.subjects.stream('recv')}")
    await broker.close()


def name(number: int) -> str:
    return f"user-{number:06}"


async def test_names_counts_and_pages(crowded: NatsBroker) -> None:
    names = crowded.operations.names
    assert await names("orders", limit=2) == ["last", name(0)]
    # Beyond what the server lists at once, in its order
    assert await names("orders", after=name(COUNT - 3)) == [name(COUNT - 2), name(COUNT - 1)]
    assert await names("orders", prefix="user-1003", limit=3) == [
        name(100_300 + number) for number in range(3)
    ]
    begin = time.monotonic()
    states = await crowded.operations.counts(
        Inbox("orders", name(n)) for n in range(0, COUNT, 1005)
    )
    assert {(state.messages, state.waiting) for state in states.values()} == {(1, 1)}
    assert len(states) == 100
    assert time.monotonic() - begin < 2.0  # a round trip's time, however many inboxes there are
    streams = await crowded.operations.streams()
    [inboxes] = [stream for stream in streams if stream.purpose == "inboxes"]
    assert inboxes.subjects == COUNT + 1
    batch = await crowded.inboxes.read_last(Inbox("orders", name(50_000)), 10)
    assert len(batch.messages) == 1
    assert not batch.more


async def test_listing_names_leaves_the_loop_to_others(crowded: NatsBroker) -> None:
    """It takes a second, but others who use the connection wait for a part of that at most."""
    longest, ended = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not ended.is_set():
            begin = time.thread_time()  # not what other processes take
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begin)

    watching = asyncio.ensure_future(watch())
    await crowded.operations.names("orders", prefix="user-")
    ended.set()
    await watching
    assert longest < 0.5
