"""What is stored for a member, and not read when it leaves or stops reading, frees memory."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.layers import Make, drain, layers
from tests.support import until
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.subscription import DurableItem


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


def held() -> int:
    """Return how many stored messages this process holds for members."""
    gc.collect()
    return sum(isinstance(thing, DurableItem) for thing in gc.get_objects())


async def fill(layer: NatsChannelLayer, channels: list[str], first: int = 0) -> None:
    """Have twenty messages wait in each channel."""
    for channel in channels:
        await layer.group_add("service.user", channel)
    for number in range(first, first + 20):
        await layer.group_send("service.user", {"type": "x", "n": number})
    boxes = [layer.local.mailboxes[channel.encode()] for channel in channels]
    await until(lambda: all(len(box.queue) == 20 for box in boxes), 20, "all wait")


async def test_group_discard_frees_what_was_not_read(make: Make) -> None:
    """900 of 900 messages stayed until the process ended."""
    layer = make()
    channels = [await layer.new_channel() for _ in range(5)]
    await fill(layer, channels)
    assert held() == 100
    await layer.send(channels[0], {"type": "x", "n": "mine"})
    for channel in channels:
        await layer.group_discard("service.user", channel)
    assert held() == 0
    assert await drain(layer, channels[0], 1) == ["mine"]  # what came by another way stays
    await layer.group_add("service.user", channels[0])
    await layer.group_send("service.user", {"type": "x", "n": "new"})
    assert await drain(layer, channels[0], 1) == ["new"]


async def test_a_channel_that_idles_out_frees_what_was_not_read(make: Make) -> None:
    layer = make(group_expiry=1)
    channel = await layer.new_channel()
    await fill(layer, [channel])
    await until(lambda: not layer.local.groups.by_name, 20, "it has left")
    assert held() == 0


@pytest.mark.parametrize("in_between", [0, 200])
async def test_a_reader_that_stops_reading_holds_no_memory_and_misses_nothing(
    make: Make, in_between: int
) -> None:
    """Stored messages do not expire, so they stayed in memory for the whole `group_expiry`."""
    layer, sender = make(expiry=0.8), make()
    channel = await layer.new_channel()
    await fill(layer, [channel])
    assert await drain(layer, channel, 5) == list(range(5))
    assert held() == 15
    await until(lambda: not held(), 30, "nothing is held")
    assert "service.user" in layer.local.groups.by_name
    for number in range(20, 20 + in_between):
        await sender.group_send("service.user", {"type": "x", "n": number})
    assert held() == 0
    assert await drain(layer, channel, 15 + in_between) == list(range(5, 20 + in_between))
    await sender.group_send("service.user", {"type": "x", "n": "live"})
    assert await drain(layer, channel, 1) == ["live"]


async def test_a_member_that_never_read_misses_nothing_from_its_beginning_on(make: Make) -> None:
    layer = make(expiry=0.1)
    await layer.group_send("service.user", {"type": "x", "n": "before"})
    channel = await layer.new_channel()
    await fill(layer, [channel])
    await until(lambda: not held(), 30, "nothing is held")
    assert await drain(layer, channel, 20) == list(range(20))
