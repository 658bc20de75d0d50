"""One layer, several event loops: at the same time, and one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from tests.integration.layers import Make, drain, layers, receive
from wsgateway.broker import runtime
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
        await layer.local.place()
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
    assert layer.local.connection is not sender.connections.current()
    leave.set()
    await asyncio.to_thread(thread.join)
    async with asyncio.timeout(20):
        while layer.local.connection is not sender.connections.current():
            await asyncio.sleep(0.01)
    for number in range(2):
        await sender.group_send("group", {"type": "x", "n": number})
    assert sorted([(await task)["n"] for task in waiting]) == [0, 1]


@pytest.mark.parametrize("group", ["service.user", "group"])
def test_a_membership_survives_the_loop_that_made_it(
    nats_server: EmbeddedServer, prefix: str, group: str
) -> None:
    """A durable group's messages in between are not lost either."""
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
        await member.local.place()
        await asyncio.to_thread(asyncio.run, send(range(10, 20)))
        return await drain(member, channel, 20 if "." in group else 10)

    channel = asyncio.run(join())
    asyncio.run(send(range(10)))  # nobody is connected
    wanted = list(range(20)) if "." in group else list(range(10, 20))
    assert asyncio.run(read(channel)) == wanted
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(member.close())


@pytest.mark.parametrize("way", ["process", "group", "durable", "normal in group"])
def test_what_began_in_plain_threads_goes_on_in_a_loop(
    nats_server: EmbeddedServer, prefix: str, way: str
) -> None:
    layer = NatsChannelLayer(nats_server.url, prefix=prefix)
    other = NatsChannelLayer(nats_server.url, prefix=prefix)
    group = "service.user" if way == "durable" else "group"
    numbers = iter(range(1000))

    def send(sender: NatsChannelLayer) -> None:
        message = {"type": "x", "n": next(numbers)}
        if way == "process":
            async_to_sync(sender.send)(channel, message)
        else:
            async_to_sync(sender.group_send)(group, message)

    async def serve() -> None:
        for _ in range(20):
            await asyncio.to_thread(send, layer)
            await asyncio.to_thread(send, other)
        got.extend(await drain(layer, channel, 40))

    channel = "work" if way == "normal in group" else async_to_sync(layer.new_channel)()
    if way != "process":
        async_to_sync(layer.group_add)(group, channel)
        async_to_sync(layer.local.confirm)()
    got: list[int] = []
    for _ in range(10):
        send(layer)
        got += asyncio.run(drain(layer, channel, 1))
        asyncio.run(serve())
    assert got == list(range(410))
    async_to_sync(layer.close)()
    async_to_sync(other.close)()
    runtime.stop_background()


@pytest.mark.parametrize("way", ["process", "group"])
def test_what_is_on_its_way_to_the_background_loop_arrives(
    nats_server: EmbeddedServer, prefix: str, way: str
) -> None:
    """It was lost when a server's loop took the channels over."""
    layer = NatsChannelLayer(nats_server.url, prefix=prefix)
    other = NatsChannelLayer(nats_server.url, prefix=prefix)
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("group", channel)
    async_to_sync(layer.local.confirm)()
    background = runtime.background(layer.connections.target)
    for number in range(3):
        background.loop.call_soon_threadsafe(time.sleep, 0.2)
        message = {"type": "x", "n": number}
        if way == "process":
            asyncio.run(other.send(channel, message))
        else:
            asyncio.run(other.group_send("group", message))
        assert asyncio.run(drain(layer, channel, 1)) == [number]
    async_to_sync(layer.close)()
    runtime.stop_background()


def test_a_durable_member_moves_between_loops_that_stand_still(
    nats_server: EmbeddedServer, prefix: str
) -> None:
    """What one loop had left for later detached the member from the next one's connection."""
    layer = NatsChannelLayer(nats_server.url, prefix=prefix, capacity=3)
    sender = NatsChannelLayer(nats_server.url, prefix=prefix)
    several = [asyncio.new_event_loop() for _ in range(3)]
    try:
        channel = several[0].run_until_complete(layer.new_channel())
        several[0].run_until_complete(layer.group_add("service.user", channel))
        for number in range(60):
            sender.group_send_sync("service.user", {"type": "x", "n": number})
        for number in range(60):
            loop = several[number * 7 // 3 % 3]
            assert loop.run_until_complete(drain(layer, channel, 1)) == [number]
            several[number % 3].run_until_complete(asyncio.sleep(0))
        several[0].run_until_complete(layer.close())
    finally:
        for loop in several:
            loop.close()
        runtime.stop_background()


def test_a_loop_that_stood_still_ends_what_it_had_begun(
    own_server: EmbeddedServer, prefix: str
) -> None:
    """Its `group_add` waited for ever, because another loop had taken the channel over."""
    layer = NatsChannelLayer(own_server.url, prefix=prefix)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        channel = first.run_until_complete(layer.new_channel())
        first.run_until_complete(layer.group_add("service.other", channel))
        own_server.pause()
        joining = first.create_task(layer.group_add("service.user", channel))
        first.run_until_complete(asyncio.sleep(0.1))
        own_server.resume()
        assert second.run_until_complete(layer.new_channel()) != channel
        first.run_until_complete(asyncio.wait_for(joining, 20))
        layer.group_send_sync("service.user", {"type": "x", "n": 1})
        assert second.run_until_complete(drain(layer, channel, 1)) == [1]
        second.run_until_complete(layer.close())
    finally:
        first.close()
        second.close()
        runtime.stop_background()
