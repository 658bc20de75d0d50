"""What the channel layer promises, on every broker that its connections may lead to."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull

import wsgateway
from tests.contract.conftest import Brokers
from tests.integration.layers import drain, nothing_comes, receive
from wsgateway.broker import runtime
from wsgateway.layer import NatsChannelLayer, blobs

Make = Callable[..., NatsChannelLayer]
GROUP = wsgateway.inbox_group("orders", "ann")
BIG = {"type": "x", "data": random.Random(7).randbytes(3_000_000)}
"""More than one message of a broker holds, even if it is compressed."""


@pytest.fixture
async def make(brokers: Brokers) -> AsyncIterator[Make]:
    """Makes layers; each stands for one process."""
    made: list[NatsChannelLayer] = []

    def make(**options: Any) -> NatsChannelLayer:
        layer = NatsChannelLayer(**options)
        made.append(layer)
        return layer

    yield make
    for layer in made:
        await layer.close()
    for connection in runtime.connections():
        await connection.call(connection.close)


def numbered(number: int) -> dict[str, Any]:
    return {"type": "x", "n": number}


class TestChannels:
    async def test_each_channel_gets_its_messages_in_order(self, make: Make) -> None:
        layer, other = make(), make()
        channels = [await layer.new_channel(), await layer.new_channel(), "normal"]
        for number in range(10):
            for channel in channels:
                await (layer if number % 2 else other).send(channel, numbered(number))
        for channel in channels:
            assert sorted(await drain(layer, channel, 10)) == list(range(10))

    async def test_normal_channels_message_goes_to_one_reader(self, make: Make) -> None:
        readers = [make(), make()]
        waiting = [asyncio.create_task(receive(each, "work")) for each in readers]
        for number in range(2):
            await readers[0].send("work", numbered(number))
        assert sorted(message["n"] for message in await asyncio.gather(*waiting)) == [0, 1]

    async def test_full_channel_refuses(self, make: Make) -> None:
        layer = make(capacity=3)
        mine = await layer.new_channel()
        for channel in (mine, "work"):
            for number in range(3):
                await layer.send(channel, numbered(number))
            with pytest.raises(ChannelFull):
                await layer.send(channel, numbered(3))
            assert await drain(layer, channel, 3) == [0, 1, 2]

    async def test_cancelled_receive_loses_nothing(self, make: Make) -> None:
        layer = make()
        for channel in (await layer.new_channel(), "work"):
            waiting = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
            await layer.send(channel, numbered(1))
            waiting.cancel()
            done, _ = await asyncio.wait([waiting])
            if not waiting.cancelled():
                assert done.pop().result() == numbered(1)
            else:
                assert await receive(layer, channel) == numbered(1)

    async def test_message_of_any_size(self, make: Make) -> None:
        layer, other = make(), make()
        mine = await layer.new_channel()
        await layer.group_add(GROUP, mine)
        await other.send(mine, BIG)
        assert await receive(layer, mine) == BIG
        await other.send("work", BIG)
        assert await receive(layer, "work") == BIG
        await other.group_send(GROUP, BIG)
        assert await receive(layer, mine) == BIG


class TestGroups:
    @pytest.mark.parametrize("group", ["room", GROUP])
    async def test_every_member_gets_each_message(self, make: Make, group: str) -> None:
        layers = [make(), make()]
        members = [(layer, await layer.new_channel()) for layer in layers for _ in range(2)]
        for layer, channel in members:
            await layer.group_add(group, channel)
            await layer.group_add(group, channel)
        for number in range(10):
            await layers[number % 2].group_send(group, numbered(number))
        for layer, channel in members:
            assert sorted(await drain(layer, channel, 10)) == list(range(10))
        layer, channel = members.pop()
        await layer.group_discard(group, channel)
        await layers[0].group_send(group, numbered(10))
        for each, name in members:
            assert await drain(each, name, 1) == [10]
        await nothing_comes(layer, channel, "end")

    @pytest.mark.parametrize("group", ["room", GROUP])
    async def test_normal_member_gets_a_message_once(self, make: Make, group: str) -> None:
        layers = [make(), make()]
        for layer in layers:
            await layer.group_add(group, "work")
        for number in range(10):
            await layers[0].group_send(group, numbered(number))
        await layers[1].send("work", numbered(10))
        assert sorted(await drain(layers[1], "work", 11)) == list(range(11))
        await layers[1].group_discard(group, "work")
        await layers[0].group_send(group, numbered(11))
        await layers[0].send("work", numbered(12))
        assert await drain(layers[1], "work", 1) == [12]

    async def test_another_process_channel_joins_and_leaves(self, make: Make) -> None:
        owner, other = make(), make()
        channel = await owner.new_channel()
        await other.group_add("room", channel)
        await other.group_send("room", numbered(1))
        assert await drain(owner, channel, 1) == [1]
        await other.group_discard("room", channel)
        await other.group_send("room", numbered(2))
        await nothing_comes(owner, channel, "end")

    async def test_durable_group_waits_for_a_slow_member(self, make: Make) -> None:
        layer = make(capacity=2)
        channel = await layer.new_channel()
        await layer.group_add(GROUP, channel)
        for number in range(20):
            await layer.group_send(GROUP, numbered(number))
        assert await drain(layer, channel, 20) == list(range(20))

    async def test_flush_reaches_every_process(self, make: Make) -> None:
        one, two = make(), make()
        channel = await two.new_channel()
        await two.group_add("room", channel)
        await one.send(channel, numbered(1))
        await one.send("work", numbered(2))
        await one.flush()
        await one.group_send("room", numbered(3))
        await one.send("work", numbered(4))
        assert await drain(two, "work", 1) == [4]
        await nothing_comes(two, channel, "end")

    async def test_flush_while_a_large_message_is_fetched(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reader went on waiting at a mailbox that the flush had dropped, for ever."""
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def find_nothing(*args: Any) -> None:
            begun.set()
            await go_on.wait()

        monkeypatch.setattr(blobs, "fetch", find_nothing)
        layer = make()
        channel = await layer.new_channel()
        await layer.group_add(GROUP, channel)
        await layer.group_send(GROUP, BIG)
        reading = asyncio.create_task(receive(layer, channel, 10))
        await asyncio.wait_for(begun.wait(), 20)
        await layer.flush()
        go_on.set()
        await layer.send(channel, numbered(1))
        assert await reading == numbered(1)

    async def test_prefixes_are_apart(self, make: Make) -> None:
        here, there = make(), make(prefix="elsewhere")
        channel = await there.new_channel()
        await there.group_add("room", channel)
        await here.group_send("room", numbered(1))
        await nothing_comes(there, channel, "end")


class TestLoops:
    async def test_threads_and_loops_share_a_layer(self, make: Make) -> None:
        """A channel made in one loop, read in another, and sent to from synchronous code."""
        layer = make()
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        got: list[Any] = []

        def send() -> None:
            layer.group_send_sync("room", numbered(1))
            layer.send_sync(channel, numbered(2))
            async_to_sync(layer.group_send)("room", numbered(3))
            asyncio.run(layer.send(channel, numbered(4)))

        def read() -> None:
            got.extend(asyncio.run(drain(layer, channel, 4)))

        threads = [threading.Thread(target=function) for function in (read, send)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
        assert sorted(got) == [1, 2, 3, 4]

    def test_channel_outlives_the_loop_that_made_it(self, brokers: Brokers) -> None:
        layer = NatsChannelLayer()

        async def begin() -> str:
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            return channel

        channel = asyncio.run(begin())
        asyncio.run(layer.group_send("room", numbered(1)))
        asyncio.run(layer.send(channel, numbered(2)))
        assert asyncio.run(drain(layer, channel, 2)) == [1, 2]
        asyncio.run(layer.close())
