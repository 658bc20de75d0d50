"""What `wsgateway.broker.channels` promises, on every implementation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.nats import blobs as nats_blobs
from wsgateway.exceptions import BrokerClosed, BrokerUnavailable, MessageTooBig, QueueFull

CAPACITY = 100


class Taken:
    """A consumer, and what came to it."""

    def __init__(self, broker: Broker, channel: str, room: int) -> None:
        self.room = room
        self.messages: list[tuple[bytes, str]] = []
        self.consumer = broker.channels.take(channel, CAPACITY, lambda: self.room, self._on_message)

    def _on_message(self, data: bytes, receipt: str) -> None:
        self.room -= 1
        self.messages.append((data, receipt))

    @property
    def texts(self) -> list[str]:
        return [data.decode() for data, _ in self.messages]

    async def came(self, *texts: str) -> list[str]:
        """Wait until exactly *texts* have come; return their receipts."""
        await until(lambda: len(self.messages) >= len(texts), what=f"{texts} came")
        assert self.texts == list(texts)
        return [receipt for _, receipt in self.messages]


@asynccontextmanager
async def taking(broker: Broker, channel: str = "work", room: int = 10) -> AsyncIterator[Taken]:
    taken = Taken(broker, channel, room)
    try:
        yield taken
    finally:
        await taken.consumer.close()


async def put(broker: Broker, *texts: str, channel: str = "work", ttl: float = 60.0) -> None:
    await broker.channels.ensure(CAPACITY)
    for text in texts:
        await broker.channels.put(channel, text.encode(), ttl, CAPACITY)


async def becomes(broker: Broker, count: int, channel: str = "work") -> None:
    async with asyncio.timeout(20):
        while await broker.channels.count(channel) != count:
            await asyncio.sleep(0.02)


class TestTaking:
    async def test_messages_come_in_order_and_stay_until_they_are_acknowledged(
        self, broker: Broker
    ) -> None:
        await put(broker, "one", "two")
        async with taking(broker) as taken:
            receipts = await taken.came("one", "two")
            assert await broker.channels.count("work") == 2
            for receipt in receipts:
                taken.consumer.ack(receipt)
            await becomes(broker, 0)

    async def test_channels_are_apart(self, broker: Broker) -> None:
        await put(broker, "his", channel="other")
        await put(broker, "mine")
        async with taking(broker) as taken:
            await taken.came("mine")
        assert await broker.channels.count("other") == 1

    async def test_consumer_waits_for_what_is_not_stored_yet(
        self, broker: Broker, other: Broker
    ) -> None:
        async with taking(broker) as taken:
            for text in ("one", "two"):
                await put(other, text)
            await taken.came("one", "two")

    async def test_no_more_come_than_there_is_room_for(self, broker: Broker) -> None:
        await put(broker, *"01234")
        async with taking(broker, room=2) as taken:
            await taken.came("0", "1")
            taken.room = 2
            taken.consumer.look()
            await taken.came("0", "1", "2", "3")

    async def test_each_message_comes_to_one_of_several(
        self, broker: Broker, other: Broker
    ) -> None:
        async with taking(broker, room=100) as one, taking(other, room=100) as two:
            texts = [str(number) for number in range(40)]
            await put(broker, *texts)
            await until(lambda: len(one.messages) + len(two.messages) == 40, what="all come")
            assert sorted(one.texts + two.texts) == sorted(texts)

    async def test_what_is_given_back_comes_to_another(self, broker: Broker, other: Broker) -> None:
        await put(broker, "one", "two")
        async with taking(broker) as first:
            receipts = await first.came("one", "two")
            await first.consumer.close()
            async with taking(other) as second:
                for receipt in receipts:
                    first.consumer.give_back(receipt)
                await until(lambda: len(second.messages) == 2, what="both come")
                assert sorted(second.texts) == ["one", "two"]

    async def test_consumer_outlives_a_purge(self, broker: Broker) -> None:
        await put(broker, "one")
        async with taking(broker) as taken:
            await taken.came("one")
            await broker.channels.purge()
            assert await broker.channels.count("work") == 0
            await put(broker, "two")
            await taken.came("one", "two")

    async def test_closing_twice_is_fine(self, broker: Broker) -> None:
        async with taking(broker) as taken:
            await taken.consumer.close()


class TestStoring:
    async def test_channel_holds_its_capacity(self, broker: Broker) -> None:
        await broker.channels.ensure(CAPACITY)
        assert broker.channels.limit >= CAPACITY
        for capacity in (3, CAPACITY):
            channel = f"work{capacity}"
            for _ in range(capacity):
                await broker.channels.put(channel, b"x", 60.0, capacity)
            with pytest.raises(QueueFull):
                await broker.channels.put(channel, b"x", 60.0, capacity)
            assert await broker.channels.count(channel) == capacity

    async def test_capacity_is_never_lowered(self, broker: Broker, other: Broker) -> None:
        await broker.channels.ensure(2)
        await other.channels.ensure(5)
        await broker.channels.ensure(1)
        for _ in range(5):
            await other.channels.put("work", b"x", 60.0, 5)
        with pytest.raises(QueueFull):
            await other.channels.put("work", b"x", 60.0, 10)

    async def test_room_is_there_again_once_somebody_reads(self, broker: Broker) -> None:
        await broker.channels.ensure(CAPACITY)
        for _ in range(2):
            await broker.channels.put("work", b"x", 60.0, 2)
        async with taking(broker) as taken:
            for receipt in await taken.came("x", "x"):
                taken.consumer.ack(receipt)
            await becomes(broker, 0)
        await broker.channels.put("work", b"x", 60.0, 2)

    async def test_message_that_nobody_takes_expires(self, broker: Broker) -> None:
        await put(broker, "short", ttl=0.5)
        await put(broker, "long")
        await becomes(broker, 1)
        async with taking(broker) as taken:
            await taken.came("long")

    async def test_offers_are_stored_in_the_order_of_the_calls(self, broker: Broker) -> None:
        await broker.channels.ensure(CAPACITY)
        offers = [broker.channels.offer("work", b"%d" % n, 60.0) for n in range(5)]
        receipts = await asyncio.gather(*offers)
        assert not any(receipt.duplicate for receipt in receipts)
        async with taking(broker) as taken:
            await taken.came(*"01234")

    async def test_offer_with_the_same_id_is_stored_once_in_each_channel(
        self, broker: Broker, other: Broker
    ) -> None:
        await broker.channels.ensure(CAPACITY)
        for where in (broker, other):
            for channel in ("work", "second"):
                await where.channels.offer(channel, b"x", 60.0, "an-id")
        assert await broker.channels.count("work") == 1
        assert await broker.channels.count("second") == 1

    async def test_offer_to_a_full_channel_says_so(self, broker: Broker) -> None:
        await broker.channels.ensure(1)
        await broker.channels.offer("work", b"x", 60.0)
        with pytest.raises(QueueFull):
            await broker.channels.offer("work", b"x", 60.0)

    async def test_what_is_too_big_is_refused(self, broker: Broker) -> None:
        await broker.channels.ensure(CAPACITY)
        size = broker.channels.max_size
        await broker.channels.put("work", bytes(size), 60.0, CAPACITY)
        await broker.channels.offer("work", bytes(size), 60.0, "an-id")
        with pytest.raises(MessageTooBig):
            await broker.channels.put("work", bytes(size + 1000), 60.0, CAPACITY)
        with pytest.raises(MessageTooBig):
            await broker.channels.offer("work", bytes(size + 1000), 60.0)
        assert await broker.channels.count("work") == 2

    @pytest.mark.parametrize("name", ["ann.bob", "a-b_c", "x" * 90])
    async def test_any_name_is_a_channel(self, broker: Broker, name: str) -> None:
        await put(broker, "x", channel=name)
        async with taking(broker, name) as taken:
            await taken.came("x")


class TestBlobs:
    @pytest.mark.parametrize("size", [0, 1, 3_000_000])
    async def test_what_is_stored_is_found(self, broker: Broker, other: Broker, size: int) -> None:
        data = random.Random(size).randbytes(size)
        identity = b"%016d" % size
        count = await broker.blobs.store(identity, data)
        assert await other.blobs.fetch(identity, count) == data

    async def test_storing_again_changes_nothing(self, broker: Broker, other: Broker) -> None:
        identity, data = b"i" * 16, random.Random(1).randbytes(3_000_000)
        counts = {await each.blobs.store(identity, data, 60.0) for each in (broker, other)}
        assert await broker.blobs.fetch(identity, counts.pop()) == data
        assert not counts

    async def test_what_is_not_there_is_none(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nats_blobs, "PATIENCE", 0.2)
        assert await broker.blobs.fetch(b"never stored    ", 2) is None


ACTIONS: dict[str, Callable[[Broker], Any]] = {
    "ensure": lambda broker: broker.channels.ensure(1_000_000),
    "put": lambda broker: broker.channels.put("work", b"x", 60.0, 1),
    "count": lambda broker: broker.channels.count("work"),
    "store": lambda broker: broker.blobs.store(b"i" * 16, b"x"),
    "fetch": lambda broker: broker.blobs.fetch(b"i" * 16, 1),
}


@pytest.mark.parametrize("action", ACTIONS)
async def test_closed_broker_stores_nothing(broker: Broker, action: str) -> None:
    await broker.close()
    with pytest.raises(BrokerClosed):
        await ACTIONS[action](broker)


async def test_offer_on_a_closed_broker(broker: Broker) -> None:
    await broker.close()
    with pytest.raises((BrokerClosed, BrokerUnavailable)):
        await broker.channels.offer("work", b"x", 60.0)


async def test_receipts_of_a_closed_broker(broker: Broker) -> None:
    """The acknowledgement failed, and the reader did not get the message that it had taken."""
    await put(broker, "one", "two")
    async with taking(broker) as taken:
        one, two = await taken.came("one", "two")
        await broker.close()
        taken.consumer.ack(one)
        taken.consumer.give_back(two)
