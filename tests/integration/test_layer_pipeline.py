"""Sends that follow each other closely: not waited for one by one, and still none lost."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.faults.test_layer_failover import cut
from tests.integration.layers import Make, drain, layers, receive
from tests.support import server_version, until
from wsgateway.broker.nats import fast_batch
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.normal import NormalChannels
from wsgateway.layer.pipeline import LARGE

pytestmark = pytest.mark.skipif(
    server_version() < fast_batch.SINCE, reason="nats-server is older than 2.14"
)


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make
    assert [task for task in asyncio.all_tasks() if "wsgateway" in task.get_name()] == []


async def burst(layer: NatsChannelLayer, count: int, first: int = 0) -> int:
    """Send numbers; return how often something was on its way when `send` returned."""
    on_its_way = 0
    for number in range(first, first + count):
        await layer.send("work", {"type": "x", "n": number})
        on_its_way += bool(layer._normal.pipelines)
    return on_its_way


async def count(layer: NatsChannelLayer) -> int:
    """Return how many messages the server keeps for the channel."""
    return await layer._run(layer._normal._count, "work")


async def settled(layer: NatsChannelLayer) -> None:
    await until(lambda: not layer._normal.pipelines, 20, "all is stored")


async def test_a_burst_is_on_its_way_at_once_and_stored_soon(make: Make) -> None:
    sender, reader = make(capacity=10_000), make(capacity=10_000)
    assert await burst(sender, 2000) > 1900
    await settled(sender)
    assert await count(sender) == 2000
    assert await drain(reader, "work", 2000) == list(range(2000))
    assert sender._node().link._on_lost.keys() <= reader._node().link._on_lost.keys()


async def test_send_does_not_return_while_the_message_is_only_in_this_process(make: Make) -> None:
    """A process that is killed leaves what the socket has taken, and no more."""
    sender = make(capacity=10_000)
    await sender.new_channel()
    node = sender._home.node
    assert node is not None
    transport: Any = node.link._client._socket  # type: ignore[union-attr]
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    waiting = on_its_way = 0
    for number in range(100):
        await sender.send("work", {"type": "x", "n": number, "text": "x" * 60_000})
        waiting += transport.get_write_buffer_size() > 0
        on_its_way += bool(sender._normal.pipelines)
    assert on_its_way > 10
    assert waiting == 0
    await settled(sender)
    assert await drain(make(capacity=10_000), "work", 100) == list(range(100))


async def test_a_slow_sender_waits_for_each(make: Make) -> None:
    layer = make()
    for number in range(20):
        assert await burst(layer, 1, number) == 0
        assert await count(layer) == number + 1
        await asyncio.sleep(0.006)


async def test_capacity_is_exact_for_one_sender(make: Make) -> None:
    layer = make()
    assert await burst(layer, 100) > 0
    with pytest.raises(ChannelFull):
        await burst(layer, 1)
    assert await count(layer) == 100
    assert await drain(layer, "work", 100) == list(range(100))


async def test_a_smaller_capacity_is_kept(make: Make) -> None:
    layer = make(capacity=1000, channel_capacity={"work": 50})
    with pytest.raises(ChannelFull):
        await burst(layer, 200)
    assert await count(layer) == 50


async def test_many_senders_at_once(make: Make) -> None:
    sender, reader = make(capacity=10_000), make(capacity=10_000)

    async def send(writer: int) -> None:
        for number in range(200):
            await sender.send("work", {"type": "x", "n": (writer, number)})

    await asyncio.gather(*map(send, range(10)))
    got = await drain(reader, "work", 2000)
    for writer in range(10):
        assert [n for w, n in got if w == writer] == list(range(200))


async def test_what_finds_no_room_after_all_is_stored_later(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when other processes fill the channel in the meantime."""
    layer = make()

    async def much(*_: Any) -> int:
        return 1000

    monkeypatch.setattr(NormalChannels, "_count_room", much)
    accepted = 0
    try:
        while True:
            await burst(layer, 1, accepted)
            accepted += 1
    except ChannelFull:
        pass
    assert 100 < accepted < 200
    assert await count(layer) == 100
    with pytest.raises(ChannelFull):
        await layer.send("work", {"type": "x", "n": -1})
    assert await drain(layer, "work", accepted) == list(range(accepted))
    await settled(layer)


async def test_lost_connections(make: Make) -> None:
    sender, reader = make(capacity=10_000), make(capacity=10_000)
    await sender.new_channel()  # so that `cut` finds a home
    for start in range(0, 3000, 300):
        assert await burst(sender, 300, start) > 0
        cut(sender)
    await settled(sender)
    assert await count(sender) == 3000
    assert await drain(reader, "work", 3000) == list(range(3000))


async def test_a_stream_that_allows_no_batches(make: Make) -> None:
    layer = make()
    await burst(layer, 1)
    node = layer._node()
    name = node.subjects.stream("chan")
    info = await node.broker.streams.info(name)
    assert info is not None
    assert info["config"]["allow_batched"] is True
    await node.broker.jetstream.api(
        f"STREAM.UPDATE.{name}", {**info["config"], "allow_batched": False}
    )
    assert await burst(layer, 20, 1) == 0
    assert await drain(layer, "work", 21) == list(range(21))
    await make().send("work", {"type": "x", "n": 0})  # a new process allows them again
    info = await node.broker.streams.info(name)
    assert info is not None
    assert info["config"]["allow_batched"] is True


async def test_a_deleted_stream_is_made_again(make: Make) -> None:
    layer = make(capacity=1000)
    assert await burst(layer, 20) > 0
    node = layer._node()
    await node.broker.jetstream.api(f"STREAM.DELETE.{node.subjects.stream('chan')}")
    await burst(layer, 20, 100)
    await settled(layer)
    got = await drain(layer, "work", await count(layer))
    assert got[-20:] == list(range(100, 120))


async def test_order_with_group_send(make: Make) -> None:
    layer = make(capacity=1000)
    await layer.group_add("group", "work")
    await layer._home.confirm()
    for start in range(0, 200, 20):
        await burst(layer, 19, start)
        await layer.group_send("group", {"type": "x", "n": start + 19})
        assert await drain(layer, "work", 20) == list(range(start, start + 20))


async def test_a_large_message_in_between(make: Make) -> None:
    layer = make(capacity=1000)
    await burst(layer, 20)
    await layer.send("work", {"type": "x", "n": 20, "data": bytes(LARGE)})
    assert not layer._normal.pipelines
    await burst(layer, 20, 21)
    assert await drain(layer, "work", 41) == list(range(41))


@pytest.mark.parametrize("end", ["close", "close_pools", "asyncio.run"])
async def test_the_end_waits_for_what_is_on_its_way(
    make: Make, nats_server: Any, prefix: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def send() -> None:
        layer = NatsChannelLayer(nats_server.url, prefix=prefix, capacity=10_000)
        assert await burst(layer, 500) > 0
        if end != "asyncio.run":
            await getattr(layer, end)()
            assert not layer._normal.pipelines

    await asyncio.to_thread(asyncio.run, send())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    other = make(capacity=10_000)
    assert await count(other) == 500
    assert await drain(other, "work", 500) == list(range(500))


async def test_flush_drops_what_was_sent(make: Make) -> None:
    layer = make(capacity=1000)
    assert await burst(layer, 100) > 0
    await layer.flush()
    assert await count(layer) == 0
    await burst(layer, 1, 7)
    assert await receive(layer, "work") == {"type": "x", "n": 7}


async def test_a_synchronous_burst(make: Make, nats_server: Any, prefix: str) -> None:
    layer = make(capacity=1000)

    def send() -> None:
        for number in range(200):
            layer.send_sync("work", {"type": "x", "n": number})

    await asyncio.to_thread(send)
    assert await drain(layer, "work", 200) == list(range(200))


async def test_cancelled_senders_leave_a_beginning(make: Make) -> None:
    """Whatever a cancelled `send` did, what returned before is there, in order, once."""
    sender, reader = make(capacity=10_000), make(capacity=10_000)
    accepted: list[int] = []

    async def send(start: int) -> None:
        for number in range(start, start + 1000):
            await sender.send("work", {"type": "x", "n": number})
            accepted.append(number)

    for start in range(0, 100_000, 1000):
        task = asyncio.create_task(send(start))
        await asyncio.sleep(0.004 * (start % 7000) / 7000)
        task.cancel()
        await asyncio.wait([task])
    await settled(sender)
    got = await drain(reader, "work", await count(sender))
    assert got == sorted(set(got))
    assert set(accepted) <= set(got)
    assert len(got) <= len(accepted) + 100  # the ones whose `send` was cancelled


async def test_a_server_too_old_for_batches(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_batch, "SINCE", (99, 0, 0))
    layer = make()
    assert await burst(layer, 100) == 0
    info = await layer._node().broker.streams.info(layer._node().subjects.stream("chan"))
    assert info is not None
    assert not info["config"].get("allow_batched")
    with pytest.raises(ChannelFull):
        await burst(layer, 1)
    assert await drain(layer, "work", 100) == list(range(100))
