"""Calls of the channel layer cancelled at random, thousands of times, and then counted."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from tests.integration.layers import Make, layers, nothing_comes, receive
from tests.support import until
from wsgateway.layer import NatsChannelLayer

WAYS = ["process", "group", "durable", "normal"]
GROUPS = {"group": "group", "durable": "service.user"}


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make
    assert [task for task in asyncio.all_tasks() if "wsgateway" in task.get_name()] == []
    await until(lambda: len(asyncio.all_tasks()) == 1, 10, "no task left but this one")


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print(f"random.Random({seed})")  # pytest shows it when a test fails
    return random.Random(seed)


async def cut_short(rng: random.Random, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Cancel a call at a random moment; return its result, or `cut_short` if it had none."""
    task = asyncio.create_task(coroutine)
    if rng.random() < 0.5:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(rng.random() * 0.002)
    task.cancel()
    await asyncio.wait([task])
    return cut_short if task.cancelled() else task.result()


async def channel_for(layer: NatsChannelLayer, way: str) -> str:
    """Return a channel that gets what is sent in this *way*, from now on."""
    channel = "normal" if way == "normal" else await layer.new_channel()
    if way in GROUPS:
        await layer.group_add(GROUPS[way], channel)
    return channel


async def send(layer: NatsChannelLayer, way: str, channel: str, number: int) -> None:
    message = {"type": "x", "n": number}
    if way in GROUPS:
        await layer.group_send(GROUPS[way], message)
    else:
        await layer.send(channel, message)


def require_idle(layer: NatsChannelLayer) -> None:
    """Require that nobody is thought to wait."""
    boxes = [*layer.local.mailboxes.values()]
    boxes += [reader.mailbox for reader in layer.normal.prefetches.values()]  # type: ignore[misc]
    assert boxes
    for box in boxes:
        assert (box.reading, box.waiting) == (0, 0)


@pytest.mark.parametrize("way", ["process", "group", "durable"])
async def test_receivers_cancelled_in_two_threads_lose_nothing(
    make: Make, rng: random.Random, way: str
) -> None:
    """Three readers in the home's loop, and one in another thread's."""
    total = 1000
    sender = make(capacity=10_000)
    receiver = make(capacity=50 if way == "durable" else 10_000)
    channel = await channel_for(receiver, way)
    got: list[int] = []
    cut = 0

    async def read(rng: random.Random) -> None:
        nonlocal cut
        mine = []
        while len(got) < total:
            message = await cut_short(rng, receiver.receive(channel))
            if message is cut_short:
                cut += 1
            else:
                mine.append(message["n"])
                got.append(message["n"])
        assert mine == sorted(mine)

    async def write() -> None:
        for number in range(total):
            await send(sender, way, channel, number)
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.002)

    def elsewhere(rng: random.Random) -> None:
        asyncio.run(read(rng))

    readers = [read(random.Random(rng.random())) for _ in range(3)]
    thread = asyncio.to_thread(elsewhere, random.Random(rng.random()))
    async with asyncio.timeout(50):
        await asyncio.gather(write(), *readers, thread)
    assert sorted(got) == list(range(total))
    assert cut > 50
    require_idle(receiver)
    await nothing_comes(receiver, channel, "end")


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_senders_send_once_or_not_at_all(
    make: Make, rng: random.Random, way: str
) -> None:
    total = 1000
    sender, receiver = make(capacity=10_000), make(capacity=10_000)
    channel = await channel_for(receiver, way)
    sure = [
        number
        for number in range(total)
        if await cut_short(rng, send(sender, way, channel, number)) is None
    ]
    await send(sender, way, channel, total)
    got: list[int] = []
    while not got or got[-1] != total:
        got.append((await receive(receiver, channel))["n"])
    assert got == sorted(set(got)), "twice, or out of order"
    assert set(sure) <= set(got), "lost"
    require_idle(receiver)


async def test_first_calls_cancelled_while_connecting(
    make: Make, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing while the streams are still looked at is not an error that somebody must act on."""
    caplog.set_level("ERROR")
    for number in range(30):
        layer = make()
        group = ("group", "service.user")[number % 2]
        calls = [
            layer.new_channel(),
            layer.send("normal", {"type": "x"}),
            layer.receive("normal"),
            layer.group_add(group, f"x.{layer.client_prefix}!y"),
            layer.group_send(group, {"type": "x"}),
            layer.flush(),
        ]
        rng.shuffle(calls)
        for call in calls:
            await cut_short(rng, call)
        await layer.flush()  # the cancelled one may still be under way, and has come before it
        channel, group = await layer.new_channel(), f"{group}-{number}"
        await layer.group_add(group, channel)
        await layer.group_send(group, {"type": "x", "n": number})
        assert await receive(layer, channel) == {"type": "x", "n": number}
        await layer.close()
    for _ in range(10):
        layer = make()
        await layer.new_channel()
        await layer.close()
    assert caplog.records == []


async def test_cancelled_memberships_can_be_ended(make: Make, rng: random.Random) -> None:
    layer, other = make(), make()
    channels = [await layer.new_channel() for _ in range(5)]
    names = ["one", "two", "service.one", "service.two"]
    for _ in range(600):
        change = getattr(rng.choice([layer, other]), rng.choice(["group_add", "group_discard"]))
        await cut_short(rng, change(rng.choice(names), rng.choice(channels)))
    for name in names:
        for channel in channels:
            await layer.group_discard(name, channel)
    # Whatever of the other's may still be under way has come before this.
    await other.send(channels[0], {"type": "the.end"})
    await receive(layer, channels[0])
    for name in names:
        for channel in channels:
            await layer.group_discard(name, channel)
    assert (layer.local.groups.by_name, layer.local.groups.joined) == ({}, {})
    for name in names:
        await layer.group_add(name, channels[0])
        await layer.group_send(name, {"type": "x", "n": name})
        assert await receive(layer, channels[0]) == {"type": "x", "n": name}
