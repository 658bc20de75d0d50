"""What channels_redis does with capacities and options, on a real Redis, and what ours does."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.support import until
from wsgateway.broker.embedded import free_port
from wsgateway.layer import NatsChannelLayer

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="wsgateway-redis-") as folder:
        options = ["--port", str(port), "--save", "", "--dir", folder, "--bind", "127.0.0.1"]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


@pytest.fixture(params=["channels_redis", "wsgateway"])
async def make(request: Any, prefix: str) -> AsyncIterator[Make]:
    """Make layers of one kind: ``make(prefix, 60, capacity=3)``."""
    made: list[Any] = []
    if request.param == "wsgateway":
        url, layer_class = request.getfixturevalue("nats_server").url, NatsChannelLayer
    else:
        core = pytest.importorskip("channels_redis.core")
        url, layer_class = request.getfixturevalue("redis_url"), core.RedisChannelLayer
        server = __import__("redis").Redis.from_url(url)
        await until(lambda: answers(server), 20, "redis-server answers")
        server.close()

    def new(*args: Any, **options: Any) -> Any:
        layer = layer_class([url], *(args or (prefix,)), **options)
        made.append(layer)
        return layer

    yield new
    for layer in made:
        await layer.flush()
        await (layer.close() if request.param == "wsgateway" else layer.close_pools())


def answers(server: Any) -> bool:
    try:
        return bool(server.ping())
    except OSError:
        return False
    except Exception as exc:  # redis' own ConnectionError
        if type(exc).__name__ == "ConnectionError":
            return False
        raise


async def burst(layer: Any, channel: str, count: int = 10) -> list[int]:
    """Send *count* messages without a pause; return those that the layer took."""
    taken = []
    for number in range(count):
        try:
            await layer.send(channel, {"type": "x", "n": number})
        except ChannelFull:
            continue
        taken.append(number)
    return taken


async def received(layer: Any, channel: str, count: int) -> list[int]:
    return [(await layer.receive(channel))["n"] for _ in range(count)]


async def test_a_burst_to_ones_own_channel_is_refused_at_its_capacity(make: Make) -> None:
    """None was refused, and the seven that did not fit were dropped."""
    layer = make(capacity=3)
    channel = await layer.new_channel()
    assert await burst(layer, channel) == [0, 1, 2]
    assert await received(layer, channel, 3) == [0, 1, 2]
    assert await burst(layer, channel) == [0, 1, 2]


async def test_each_channel_has_the_first_capacity_that_fits(make: Make) -> None:
    layer = make(capacity=3, channel_capacity={"one*": 1, "o*": 2})
    names = {prefix: await layer.new_channel(prefix) for prefix in ("one", "other", "third")}
    assert await burst(layer, names["one"]) == [0]
    assert await burst(layer, names["third"]) == [0, 1, 2]
    assert await burst(layer, "one-normal") == [0]
    assert await burst(layer, "other-normal") == [0, 1]


async def test_a_group_skips_members_without_room(make: Make) -> None:
    layer = make(capacity=3)
    full = await layer.new_channel()
    await layer.group_add("group", full)
    assert await burst(layer, full) == [0, 1, 2]
    await layer.group_add("group", "normal")
    await layer.group_send("group", {"type": "x", "n": 7})
    assert await received(layer, "normal", 1) == [7]
    assert await received(layer, full, 3) == [0, 1, 2]


async def test_options_set_after_construction_count(make: Make, prefix: str) -> None:
    """Ours read them in the constructor; to set `prefix` was an AttributeError."""
    layer = make()
    used = await layer.new_channel("used")
    await layer.send(used, {"type": "x", "n": 0})
    layer.capacity = 3
    assert await burst(layer, await layer.new_channel()) == [0, 1, 2]
    assert await burst(layer, used) == [0, 1]
    layer.channel_capacity = layer.compile_capacities({"small*": 1})
    assert await burst(layer, await layer.new_channel("small")) == [0]
    layer.channel_capacity, layer.capacity = [], 12
    assert await burst(layer, used) == list(range(9))

    other = make()
    layer.prefix = other.prefix = f"{prefix}-other"
    await other.send("normal", {"type": "x", "n": 1})
    assert await received(layer, "normal", 1) == [1]
    assert await received(layer, used, 0) == []


async def test_the_expiry_may_be_set_later(make: Make) -> None:
    layer = make()
    layer.expiry = 1
    channel = await layer.new_channel()
    for name in (channel, "normal"):
        await layer.send(name, {"type": "x", "n": 1})
    await asyncio.sleep(2.5)  # channels_redis counts whole seconds
    for name in (channel, "normal"):
        await layer.send(name, {"type": "x", "n": 2})
        assert await received(layer, name, 1) == [2]


async def test_arguments_have_the_order_of_channels_redis(make: Make, prefix: str) -> None:
    """They were keyword-only."""
    layer = make(prefix, 30, 600, 3, {"small*": 1}, ["secret"], 12, "json")
    assert (layer.prefix, layer.expiry, layer.group_expiry, layer.capacity) == (prefix, 30, 600, 3)
    assert await burst(layer, await layer.new_channel("small")) == [0]
    with pytest.raises(TypeError, match="JSON"):
        await layer.send("normal", {"type": "x", "n": b"bytes"})
