"""Normal channels: what a reader has fetched and not given out reaches the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.layers import Make, drain, layers, receive
from tests.support import until
from wsgateway.layer import NatsChannelLayer, fetcher


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


async def fetched(layer: NatsChannelLayer) -> None:
    """Wait until the layer has fetched what nobody has asked for yet."""
    readers = layer._normal.fetchers
    await until(lambda: any(reader.mailbox.queue for reader in readers.values()), 10, "fetched")


@pytest.mark.parametrize("end", ["close", "close_pools"])
async def test_what_a_closed_connection_had_fetched_goes_to_others(
    make: Make, nats_server: Any, prefix: str, end: str
) -> None:
    """It was given back only after the connection was closed: not at all, for 30 seconds."""
    assert fetcher.ACK_WAIT > 20  # so that what arrives below was given back
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
    node = layer._node()
    await node.broker.jetstream.api(f"STREAM.DELETE.{node.subjects.stream('chan')}")
    async with asyncio.timeout(30):
        while not waiting.done():
            with contextlib.suppress(Exception):
                await layer.send("work", {"type": "x", "n": 2})
            await asyncio.sleep(0.1)
    assert (await waiting)["n"] == 2


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_request_that_the_server_forgets_is_made_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """As when the consumer's leader dies, or the stream is deleted, at the wrong moment."""
    layer = make()
    await layer.new_channel()
    node = layer._node()
    publish = node.publish
    requests = 0

    def lossy(subject: str, *args: Any, **kwargs: Any) -> None:
        nonlocal requests
        requests += "CONSUMER.MSG.NEXT" in subject
        if requests > lost or "CONSUMER.MSG.NEXT" not in subject:
            publish(subject, *args, **kwargs)

    monkeypatch.setattr(node, "publish", lossy)
    monkeypatch.setattr(fetcher, "PULL_EXPIRES", 0.5)
    monkeypatch.setattr(fetcher, "PULL_GRACE", 0.2)
    waiting = asyncio.create_task(drain(layer, "work", 10))
    for number in range(10):
        await layer.send("work", {"type": "x", "n": number})
    assert await waiting == list(range(10))
