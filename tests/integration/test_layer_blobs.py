"""Messages larger than one of NATS: they arrive whole, in their place, whatever happens."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from channels.exceptions import MessageTooLarge

from tests.integration.layers import Make, drain, layers, nats_of, nothing_comes, receive
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import blobs
from wsgateway.layer import NatsChannelLayer

WAYS = ["process", "normal", "group", "durable", "matched", "normal in group", "normal in durable"]


@pytest.fixture
async def make(nats_server: Any, prefix: str, settings: Any) -> AsyncIterator[Make]:
    settings.WSGATEWAY_DURABLE_GROUPS = ["room-*"]
    async with layers(nats_server.url, prefix) as make:
        yield make


def large(size: int = 1_500_000, number: int = 0) -> dict[str, Any]:
    """Return a message that no compression makes smaller."""
    return {"type": "large", "n": number, "content": random.Random(number).randbytes(size)}


def group_of(way: str) -> str:
    return {"durable": "service.user", "matched": "room-1", "normal in durable": "service.n"}.get(
        way, "group"
    )


async def channel_for(way: str, *receivers: NatsChannelLayer) -> str:
    """Return a channel of the receivers that gets what `send` sends this way."""
    normal = way.startswith("normal")
    channel = "normal" if normal else await receivers[0].new_channel()
    if way not in ("process", "normal"):
        for receiver in receivers:
            await receiver.group_add(group_of(way), channel)
    return channel


async def send(layer: NatsChannelLayer, way: str, channel: str, message: dict[str, Any]) -> None:
    if way in ("process", "normal"):
        await layer.send(channel, message)
    else:
        await layer.group_send(group_of(way), message)


@pytest.mark.parametrize("size", [1_040_000, 1_048_576, 5_000_000])
@pytest.mark.parametrize("way", WAYS)
async def test_it_arrives_whole(make: Make, way: str, size: int) -> None:
    sender, receiver = make(), make()
    channel = await channel_for(way, receiver)
    await send(sender, way, channel, large(size))
    assert await receive(receiver, channel) == large(size)
    await nothing_comes(receiver, channel, "end")


@pytest.mark.parametrize("way", WAYS)
async def test_it_keeps_its_place(make: Make, way: str) -> None:
    sender, receiver = make(), make()
    channel = await channel_for(way, receiver)
    for number in range(9):
        message = large(number=number) if number % 3 == 1 else {"type": "small", "n": number}
        await send(sender, way, channel, message)
    assert await drain(receiver, channel, 9) == list(range(9))


@pytest.mark.parametrize("way", ["normal in group", "normal in durable"])
async def test_once_however_many_processes_forward_it(make: Make, way: str) -> None:
    """NATS gives the parts of a split message to different processes if it may."""
    sender, *receivers = make(), make(), make(), make()
    channel = await channel_for(way, *receivers)
    for receiver in receivers:
        await receiver.group_add(group_of(way), "second")
    for number in range(3):
        await send(sender, way, channel, large(number=number))
    for name in (channel, "second"):
        got = [await receive(receivers[0], name) for _ in range(3)]
        assert sorted(got, key=lambda message: message["n"]) == [large(number=n) for n in range(3)]
    stored = nats_of(sender.connections.current()).streams
    await asyncio.sleep(0.2)  # for what a defect would store later
    info = await stored.info(sender.connections.current().subjects.stream("chan"))
    assert info is not None
    assert info["state"]["messages"] == 0


@pytest.mark.parametrize("way", ["normal", "durable"])
async def test_cancelled_receivers_lose_nothing(make: Make, way: str) -> None:
    sender, receiver = make(), make()
    channel = await channel_for(way, receiver)
    for number in range(6):
        message = large(number=number) if number % 2 else {"type": "small", "n": number}
        await send(sender, way, channel, message)
    rng = random.Random(1)
    got: list[int] = []
    cancelled = 0
    async with asyncio.timeout(60):
        while len(got) < 6:
            task = asyncio.create_task(receiver.receive(channel))
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005, 0.05]))
            task.cancel()
            try:
                got.append((await task)["n"])
            except asyncio.CancelledError:
                cancelled += 1
    assert got == list(range(6))
    assert cancelled > 0


async def test_members_in_one_process_share_what_is_fetched(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = make(), make()
    channels = [await receiver.new_channel() for _ in range(30)]
    for channel in channels:
        await receiver.group_add("service.user", channel)
    node = receiver.connections.current()
    fetched = 0
    jetstream = nats_of(node).jetstream
    direct = jetstream.direct

    async def count(stream: str, request: Any) -> Any:
        nonlocal fetched
        fetched += stream == node.subjects.stream("blob") and request["seq"] == 1
        return await direct(stream, request)

    monkeypatch.setattr(jetstream, "direct", count)
    await sender.group_send("service.user", large())
    got = await asyncio.gather(*(receive(receiver, channel) for channel in channels))
    assert all(message == large() for message in got)
    assert fetched == 1
    assert got[0] is not got[1]


@pytest.mark.parametrize("way", ["normal", "durable"])
async def test_parts_that_are_gone_are_said(
    make: Make, way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PATIENCE", 0.3)
    layer = make()
    channel = await channel_for(way, layer)
    await send(layer, way, channel, large())
    await send(layer, way, channel, {"type": "small", "n": 1})
    node = layer.connections.current()
    await nats_of(node).jetstream.api(f"STREAM.PURGE.{node.subjects.stream('blob')}")
    assert await drain(layer, channel, 1) == [1]
    assert "its parts are gone" in caplog.text


async def test_parts_whose_stream_is_gone_are_said(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of a durable group waited for ever, and got nothing that came later."""
    monkeypatch.setattr(blobs, "PATIENCE", 0.3)
    layer = make()
    channel = await channel_for("durable", layer)
    await send(layer, "durable", channel, large())
    await send(layer, "durable", channel, {"type": "small", "n": 1})
    node = layer.connections.current()
    await nats_of(node).jetstream.api(f"STREAM.DELETE.{node.subjects.stream('blob')}")
    assert await drain(layer, channel, 1) == [1]
    assert "its parts are gone" in caplog.text


async def test_an_expired_one_is_not_fetched(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    layer = make(expiry=0.8)
    await layer.send("normal", large())
    await asyncio.sleep(1.0)
    await layer.send("normal", {"type": "small", "n": 1})
    assert await drain(layer, "normal", 1) == [1]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [text for text in warnings if "servers are named" not in text] == []


async def test_a_deleted_stream_is_made_again(make: Make) -> None:
    layer = make()
    await layer.send("normal", large(number=1))
    assert await receive(layer, "normal") == large(number=1)
    node = layer.connections.current()
    await nats_of(node).jetstream.api(f"STREAM.DELETE.{node.subjects.stream('blob')}")
    with pytest.raises(Exception, match="nobody answers"):
        await layer.send("normal", large(number=2))
    await layer.send("normal", large(number=3))
    assert (await receive(layer, "normal"))["n"] == 3


async def test_encrypted(make: Make) -> None:
    sender, receiver = (
        make(symmetric_encryption_keys=["b"]),
        make(symmetric_encryption_keys=["a", "b"]),
    )
    for way in ("normal", "durable"):
        channel = await channel_for(way, receiver)
        await send(sender, way, channel, large())
        assert await receive(receiver, channel) == large()


async def test_the_servers_limit_may_be_small_and_it_may_restart(
    tmp_path: Path, prefix: str
) -> None:
    with EmbeddedServer(tmp_path, sync_interval="always", max_payload=65536) as server:
        async with layers(server.url, prefix) as make:
            sender, receiver = make(), make()
            channels = {way: await channel_for(way, receiver) for way in WAYS[1:]}
            kept = ["normal", "durable"]
            for way in kept:
                await send(sender, way, channels[way], large(300_000))
            server.kill()
            server.start()
            await sender.connections.current().bus.ready(20)
            for way in kept:
                assert await receive(receiver, channels[way]) == large(300_000)
            await receiver.connections.current().bus.ready(20)
            await send(sender, "normal in group", channels["normal in group"], large(65_400))
            assert await receive(receiver, channels["normal in group"]) == large(65_400)


async def test_a_large_frame_is_refused_with_the_cure(make: Make) -> None:
    """Sockets and other languages read it: nothing can stand in its place."""
    layer = make()
    with pytest.raises(MessageTooLarge, match="raise max_payload, or send an event"):
        await layer.group_send("service.user", {"type": "ws.message", "bytes": bytes(1_500_000)})


@pytest.mark.parametrize("way", WAYS)
async def test_the_layers_own_limit_counts(make: Make, way: str) -> None:
    layer = make(max_message_size=1000)
    with pytest.raises(MessageTooLarge, match="max_message_size"):
        await send(layer, way, "normal", large(1001))


async def test_bytes_from_elsewhere_on_a_normal_channel(
    make: Make, nats_server: Any, prefix: str
) -> None:
    """They ended the receiver there."""
    layer = make()
    await layer.send("normal", {"type": "x", "n": 1})
    client = await nats.connect(nats_server.url)
    try:
        for payload in (b"hello", b"", b"\xc1", b"\xff" * 40):
            await client.jetstream().publish(f"{prefix}.chan.normal", payload)
    finally:
        await client.close()
    await layer.send("normal", {"type": "x", "n": 2})
    got = [await receive(layer, "normal") for _ in range(6)]
    assert [message.get("text", message.get("bytes")) for message in got[1:5]] == [
        "hello",
        "",
        b"\xc1",
        b"\xff" * 40,
    ]
    assert got[5]["n"] == 2
