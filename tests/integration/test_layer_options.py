"""Options of the channel layer that decide over time and bytes; the texts of refused names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from channels.layers import BaseChannelLayer
from nats.errors import NoRespondersError

from tests.faults.test_layer_failover import cut
from tests.integration.layers import Make, drain, layers, receive
from tests.support import hears
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.config import OptionRefused
from wsgateway.layer.serializers import (
    BaseMessageSerializer,
    JSONSerializer,
    SerializerDoesNotExist,
    registry,
)


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


async def has_members(client: Any, subject: str) -> bool:
    """Say whether the server knows anybody who wants *subject*."""
    try:
        await client.request(subject, b"", timeout=0.05)
    except NoRespondersError:
        return False
    except TimeoutError:
        pass
    return True


async def wait_until_nobody_wants(client: Any, subject: str) -> None:
    async with asyncio.timeout(20):
        while await has_members(client, subject):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("option", [{"group_expiry": 1}, {"expiry": 0.1}])
async def test_a_channel_that_nobody_reads_leaves_its_groups(
    make: Make, nats_server: Any, prefix: str, option: dict[str, Any]
) -> None:
    """After ``group_expiry``, or sooner if messages expired in it; one that is read stays."""
    layer, client = make(**option), await nats.connect(nats_server.url)
    abandoned, read = await layer.new_channel(), await layer.new_channel()
    for group, channel in (("abandoned", abandoned), ("service.abandoned", abandoned)):
        await layer.group_add(group, channel)
    await layer.group_add("read", read)
    waiting = asyncio.create_task(receive(layer, read, 40))
    await layer.send(abandoned, {"type": "x"})
    try:
        assert await has_members(client, f"{prefix}.recv.abandoned")
        await wait_until_nobody_wants(client, f"{prefix}.recv.abandoned")
        await wait_until_nobody_wants(client, f"{prefix}.live.service.abandoned")
    finally:
        await client.close()
    await layer.group_send("read", {"type": "x", "n": 1})
    assert (await waiting)["n"] == 1
    await layer.group_add("abandoned", abandoned)  # and may come back
    await layer.group_send("abandoned", {"type": "x", "n": 2})
    while "n" not in (message := await receive(layer, abandoned)):
        pass  # what came before, the probes too
    assert message["n"] == 2


class Reversed(BaseMessageSerializer):
    """A format of the user's own."""

    def as_bytes(self, message: Any) -> bytes:
        return json.dumps(message).encode()[::-1]

    def from_bytes(self, message: bytes) -> Any:
        return json.loads(message[::-1])


@pytest.fixture
def reversed_format() -> Iterator[str]:
    registry.register_serializer("reversed", Reversed)
    yield "reversed"
    del registry.classes["reversed"]


@pytest.mark.parametrize("keys", [None, ["secret"]])
async def test_a_format_of_ones_own_is_used_everywhere(
    make: Make, nats_server: Any, prefix: str, reversed_format: str, keys: Any
) -> None:
    layer = make(serializer_format=reversed_format, symmetric_encryption_keys=keys)
    client = await nats.connect(nats_server.url)
    try:
        seen = await client.subscribe(f"{prefix}.recv.>")
        await client.flush()
        channel = await layer.new_channel()
        for group in ("group", "service.user"):
            await layer.group_add(group, channel)
            await layer.group_send(group, {"type": "x", "n": group})
            assert await drain(layer, channel, 1) == [group]
            data = (await seen.next_msg(20)).data
            assert (b'"epyt"' in data) is (keys is None)
        for name in (channel, "work"):
            await layer.send(name, {"type": "x", "n": name})
            assert await drain(layer, name, 1) == [name]
    finally:
        await client.close()


async def test_what_json_cannot_carry_fails_at_the_sender(make: Make) -> None:
    layer = make(serializer_format="json")
    channel = await layer.new_channel()
    await layer.group_add("service.user", channel)
    for call in (
        layer.send(channel, {"type": "x", "n": b"bytes"}),
        layer.group_send("service.user", {"type": "x", "n": b"bytes"}),
    ):
        with pytest.raises(TypeError, match="not JSON serializable"):
            await call
    await layer.group_send("service.user", {"type": "x", "n": 1})
    assert await drain(layer, channel, 1) == [1]


async def test_consumers_hear_of_a_lost_connection(make: Make) -> None:
    layer = make(on_disconnect="connection.lost", on_reconnect="connection.back")
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels[:2]:
        await layer.group_add("group", channel)
    waiting = asyncio.create_task(receive(layer, channels[2]))  # in no group, but read
    await asyncio.sleep(0)
    for _ in range(2):
        cut(layer)
        assert await waiting == {"type": "connection.lost"}
        assert await receive(layer, channels[2]) == {"type": "connection.back"}
        await layer.group_send("group", {"type": "x"})  # and it does reach them again
        for channel in channels[:2]:
            got = [(await receive(layer, channel))["type"] for _ in range(3)]
            assert got == ["connection.lost", "connection.back", "x"]
        waiting = asyncio.create_task(receive(layer, channels[2]))
        await asyncio.sleep(0)
    waiting.cancel()
    quiet = make()
    channel = await quiet.new_channel()
    await quiet.group_add("group", channel)
    async with hears(quiet.connections.current().bus.on_open):
        cut(quiet)
    await quiet.group_send("group", {"type": "x"})
    assert await receive(quiet, channel) == {"type": "x"}


def test_an_unknown_format_is_refused_by_name(prefix: str) -> None:
    with pytest.raises(OptionRefused, match="'yaml', but must be 'json' or 'msgpack'"):
        NatsChannelLayer(prefix=prefix, serializer_format="yaml")
    with pytest.raises(SerializerDoesNotExist, match="yaml"):
        registry.get_serializer("yaml")
    assert isinstance(registry.get_serializer("json"), JSONSerializer)


async def test_refused_names_have_the_texts_of_channels(make: Make) -> None:
    """They are part of Channels' own tests."""
    layer, text = make(), BaseChannelLayer.invalid_name_error
    for call, kind in (
        (layer.send("¯\\_(ツ)_/¯", {"type": "x"}), "Channel"),
        (layer.receive("a" * 101), "Channel"),
        (layer.group_add("¯\\_(ツ)_/¯", "channel"), "Group"),
        (layer.group_send("a" * 101, {"type": "x"}), "Group"),
    ):
        with pytest.raises(TypeError) as caught:
            await call
        assert str(caught.value) == text.format(kind)
