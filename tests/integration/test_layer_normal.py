"""Normal channels: what a reader has fetched and not given out reaches the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.integration.layers import Make, drain, layers, nats_of, receive, stored
from tests.support import until
from wsgateway.broker.channels import ACK_WAIT
from wsgateway.broker.nats import channels
from wsgateway.exceptions import BrokerError
from wsgateway.layer import NatsChannelLayer


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


async def fetched(layer: NatsChannelLayer) -> None:
    """Wait until the layer has fetched what nobody has asked for yet."""
    readers = layer.normal.prefetches
    await until(lambda: any(reader.mailbox.queue for reader in readers.values()), 10, "fetched")


@pytest.mark.parametrize("end", ["close", "close_pools"])
async def test_what_a_closed_connection_had_fetched_goes_to_others(
    make: Make, nats_server: Any, prefix: str, end: str
) -> None:
    """It was given back only after the connection was closed: not at all, for 30 seconds."""
    assert ACK_WAIT > 20  # so that what arrives below was given back
    sender, other = make(), make()
    for number in range(20):
        await sender.send("work", {"type": "x", "n": number})

    async def read_some() -> list[int]:
        layer = NatsChannelLayer(nats_server.url, prefix=prefix)
        got = await drain(layer, "work", 4)
        await fetched(layer)
        await getattr(layer, end)()
        return got

    assert await asyncio.to_thread(asyncio.run, read_some()) == [0, 1, 2, 3]
    assert sorted(await drain(other, "work", 16)) == list(range(4, 20))


async def test_what_an_idle_reader_had_fetched_goes_to_others(make: Make) -> None:
    sender, one, two = make(), make(), make()
    for number in range(20):
        await sender.send("work", {"type": "x", "n": number})
    assert await drain(one, "work", 4) == [0, 1, 2, 3]
    await fetched(one)
    assert sorted(await drain(two, "work", 16)) == list(range(4, 20))


async def test_a_deleted_stream_is_made_again(make: Make) -> None:
    layer = make()
    await layer.send("work", {"type": "x", "n": 1})
    assert await drain(layer, "work", 1) == [1]
    waiting = asyncio.create_task(receive(layer, "work", 40))
    node = layer.connections.current()
    await nats_of(node).jetstream.api(f"STREAM.DELETE.{node.subjects.stream('chan')}")
    async with asyncio.timeout(30):
        while not waiting.done():
            with contextlib.suppress(Exception):
                await layer.send("work", {"type": "x", "n": 2})
            await asyncio.sleep(0.1)
    assert (await waiting)["n"] == 2


async def test_message_of_a_new_stream_is_not_taken_for_one_of_the_deleted(make: Make) -> None:
    """One that was given back vanished if the deleted stream had given its sequence to another."""
    layer = make()
    await send(layer, 1)
    connection = layer.connections.current()
    came: asyncio.Queue[str] = asyncio.Queue()
    consumer = connection.broker.channels.take(
        "work", 100, lambda: 10, lambda _, receipt: came.put_nowait(receipt)
    )
    async with asyncio.timeout(60):
        consumer.ack(await came.get())
        await connection.bus.confirm()
        stream = connection.subjects.stream("chan")
        await nats_of(connection).jetstream.api(f"STREAM.DELETE.{stream}")
        while came.empty():
            with contextlib.suppress(BrokerError):
                await send(layer, 1)
            await asyncio.sleep(0.1)
        first = await came.get()
        consumer.give_back(first)
        sequence = first.split(".")[5]
        while (await came.get()).split(".")[5] != sequence:
            pass
    await consumer.close()


async def test_message_whose_acknowledgement_is_lost_is_received_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "ACK_WAIT", 0.5)
    layer = make()
    broker: Any = layer.connections.current().broker
    publish = broker.connection.publish
    lost: list[str] = []

    def lossy(subject: str, payload: bytes, *args: Any, **kwargs: Any) -> None:
        if payload == b"+ACK" and not lost:
            lost.append(subject)
        else:
            publish(subject, payload, *args, **kwargs)

    monkeypatch.setattr(broker.connection, "publish", lossy)
    await send(layer, 1)
    assert await drain(layer, "work", 1) == [0]
    waiting = asyncio.create_task(receive(layer, "work", 40))
    async with asyncio.timeout(20):
        while await count(layer):
            await asyncio.sleep(0.05)
    assert lost
    assert not waiting.done()
    await send(layer, 1, 1)
    assert (await waiting)["n"] == 1


async def count(layer: NatsChannelLayer) -> int:
    """Return how many messages the server keeps for the channel."""
    return await stored(layer, "work")


async def send(layer: NatsChannelLayer, count: int, first: int = 0) -> None:
    """Send numbers, each right after the one before."""
    for number in range(first, first + count):
        await layer.send("work", {"type": "x", "n": number})


async def test_send_returns_once_the_message_is_stored(make: Make) -> None:
    """From the fourth of sends that followed each other closely it returned before."""
    layer = make()
    for number in range(30):
        await send(layer, 5, 5 * number % 50)
        assert await count(layer) == 5
        await drain(layer, "work", 5)


async def test_sends_at_once_are_in_flight_together(make: Make) -> None:
    """They share round trips: fifty take far less than fifty times as long as one."""
    layer = make(capacity=10_000)
    await send(layer, 1)
    node = layer.connections.current()
    in_flight = 0
    publish = node.bus.publish

    def watched(*args: Any, **kwargs: Any) -> None:
        nonlocal in_flight
        in_flight = max(in_flight, nats_of(node).connection.requests_waiting)
        publish(*args, **kwargs)

    node.bus.publish = watched  # type: ignore[method-assign]
    await asyncio.gather(*(send(layer, 1, number) for number in range(1, 51)))
    assert in_flight >= 50
    assert await drain(layer, "work", 51) == list(range(51))


async def test_capacity_is_exact_for_one_sender(make: Make) -> None:
    layer = make()
    await send(layer, 100)
    with pytest.raises(ChannelFull):
        await send(layer, 1)
    assert await count(layer) == 100
    assert await drain(layer, "work", 100) == list(range(100))


async def test_a_smaller_capacity_is_kept(make: Make) -> None:
    layer = make(capacity=1000, channel_capacity={"work": 50})
    with pytest.raises(ChannelFull):
        await send(layer, 200)
    assert await count(layer) == 50


async def test_many_writers_at_once_each_in_order(make: Make) -> None:
    sender, reader = make(capacity=10_000), make(capacity=10_000)

    async def write(writer: int) -> None:
        for number in range(100):
            await sender.send("work", {"type": "x", "n": (writer, number)})

    await asyncio.gather(*map(write, range(10)))
    got = await drain(reader, "work", 1000)
    for writer in range(10):
        assert [n for w, n in got if w == writer] == list(range(100))


async def test_group_send_after_send_is_behind_it(make: Make) -> None:
    layer = make(capacity=1000)
    await layer.group_add("group", "work")
    for start in range(0, 100, 20):
        await send(layer, 19, start)
        await layer.group_send("group", {"type": "x", "n": start + 19})
        assert await drain(layer, "work", 20) == list(range(start, start + 20))


async def test_flush_drops_what_was_sent(make: Make) -> None:
    layer = make(capacity=1000)
    await send(layer, 100)
    await layer.flush()
    assert await count(layer) == 0
    await send(layer, 1, 7)
    assert await receive(layer, "work") == {"type": "x", "n": 7}


async def test_send_sync_returns_once_the_messages_are_stored(make: Make) -> None:
    layer = make(capacity=1000)

    def write() -> None:
        for number in range(20):
            layer.send_sync("work", {"type": "x", "n": number})

    await asyncio.to_thread(write)
    assert await count(layer) == 20
    assert await drain(layer, "work", 20) == list(range(20))
