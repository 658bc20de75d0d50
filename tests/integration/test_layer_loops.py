"""One layer, several event loops: at the same time, and one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from tests.integration.layers import Make, drain, layers, receive
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.layer import NatsChannelLayer


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


def test_three_loops(nats_server: Any, prefix: str) -> None:
    """`new_channel` in one loop, `send` in another, `receive` in a third."""
    layer = NatsChannelLayer(nats_server.url, prefix=prefix)
    channel = asyncio.run(layer.new_channel())

    async def send() -> None:
        await layer.send(channel, {"type": "x", "n": 1})

    async def receive_after_sending() -> list[Any]:
        waiting = asyncio.create_task(drain(layer, channel, 1))
        await layer._home.settle()
        await layer._home.confirm()
        await asyncio.to_thread(asyncio.run, send())
        return await waiting

    try:
        assert asyncio.run(receive_after_sending()) == [1]
        assert async_to_sync(receive_after_sending)() == [1]
    finally:
        asyncio.run(layer.close())


@pytest.mark.parametrize("way", ["process", "group", "durable", "normal", "normal in group"])
@pytest.mark.parametrize("sync", [False, True])
def test_loops_one_after_the_other(nats_server: Any, prefix: str, way: str, sync: bool) -> None:
    """A channel is made, joins a group, gets messages and is read, each in a loop of its own."""
    layer = NatsChannelLayer(nats_server.url, prefix=prefix)
    group = "service.user" if way == "durable" else "group"

    async def send(number: int) -> None:
        if way in ("process", "normal"):
            await layer.send(channel, {"type": "x", "n": number})
        else:
            await layer.group_send(group, {"type": "x", "n": number})

    try:
        channel = "work" if way.startswith("normal") else asyncio.run(layer.new_channel())
        if way not in ("process", "normal"):
            asyncio.run(layer.group_add(group, channel))
        for number in range(5):
            if sync and way in ("process", "normal"):
                layer.send_sync(channel, {"type": "x", "n": number})
            elif sync:
                layer.group_send_sync(group, {"type": "x", "n": number})
            else:
                asyncio.run(send(number))
        assert [asyncio.run(drain(layer, channel, 1)) for _ in range(5)] == [[n] for n in range(5)]
    finally:
        asyncio.run(layer.close())


async def test_who_waits_finds_another_home_when_the_first_loop_ends(make: Make) -> None:
    """The process's first loop may have been a short one, in another thread."""
    layer, sender = make(), make()
    channel = await asyncio.to_thread(asyncio.run, layer.new_channel())
    entered, leave = threading.Event(), threading.Event()

    async def hold() -> None:
        await layer.group_add("group", channel)
        entered.set()
        await asyncio.to_thread(leave.wait, 20)

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    await asyncio.to_thread(entered.wait, 20)
    waiting = [asyncio.create_task(receive(layer, channel)) for _ in range(2)]
    await asyncio.sleep(0)
    assert layer._home.node is not sender._node()
    leave.set()
    await asyncio.to_thread(thread.join)
    async with asyncio.timeout(20):
        while layer._home.node is not sender._node():
            await asyncio.sleep(0.01)
    await layer._home.confirm()
    for number in range(2):
        await sender.group_send("group", {"type": "x", "n": number})
    assert sorted([(await task)["n"] for task in waiting]) == [0, 1]


@pytest.mark.parametrize("group", ["service.user", "group"])
def test_a_membership_survives_the_loop_that_made_it(
    nats_server: EmbeddedServer, prefix: str, group: str
) -> None:
    """A durable group's messages meanwhile are not lost either."""
    member = NatsChannelLayer(nats_server.url, prefix=prefix)
    sender = NatsChannelLayer(nats_server.url, prefix=prefix)

    async def join() -> str:
        channel = await member.new_channel()
        await member.group_add(group, channel)
        return channel

    async def send(numbers: range) -> None:
        for number in numbers:
            await sender.group_send(group, {"type": "x", "n": number})
        await sender.close()

    async def read(channel: str) -> list[int]:
        await member._home.settle()
        await member._home.confirm()
        await asyncio.to_thread(asyncio.run, send(range(10, 20)))
        return await drain(member, channel, 20 if "." in group else 10)

    channel = asyncio.run(join())
    asyncio.run(send(range(10)))  # nobody is connected
    wanted = list(range(20)) if "." in group else list(range(10, 20))
    assert asyncio.run(read(channel)) == wanted
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(member.close())
