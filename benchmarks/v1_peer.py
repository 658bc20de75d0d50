"""A plain Channels consumer on channels_redis, and what publishes to it: the peer of `v1`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

import django
from django.conf import settings

from benchmarks.load import payload

__all__ = ["application", "environment", "publisher"]

LAYERS = {
    "redis": "channels_redis.core.RedisChannelLayer",
    "redis-pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
}
CAPACITY = 1_000_000
"""Messages that may wait: with the default, 100, the layer drops most of a burst."""
LANES = 16
"""Publications under way at once."""


def environment(layer: str, url: str) -> dict[str, str]:
    """Return what tells `application` which layer to use, and where Redis is."""
    return {"BENCH_LAYER": layer, "BENCH_REDIS": url}


def _setup() -> None:
    backend = {
        "BACKEND": LAYERS[os.environ["BENCH_LAYER"]],
        "CONFIG": {"hosts": [os.environ["BENCH_REDIS"]], "capacity": CAPACITY},
    }
    settings.configure(
        SECRET_KEY="bench",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["channels"],
        CHANNEL_LAYERS={"default": backend},
    )
    django.setup()


def _application() -> Any:
    _setup()
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import ProtocolTypeRouter

    class Consumer(AsyncWebsocketConsumer):
        """The user is in the path; a group for each, as Channels' documentation does it."""

        async def connect(self) -> None:
            self.group = f"bench.{self.scope['path'].strip('/').rpartition('/')[2]}"
            await self.channel_layer.group_add(self.group, self.channel_name)
            await self.accept()

        async def disconnect(self, code: int) -> None:
            await self.channel_layer.group_discard(self.group, self.channel_name)

        async def bench_message(self, event: dict[str, Any]) -> None:
            await self.send(text_data=event["text"])

    return ProtocolTypeRouter({"websocket": Consumer.as_asgi()})


def publisher(users: int, count: int, rate: float) -> list[str]:
    """Return the command line of a publisher process."""
    return [sys.executable, "-m", "benchmarks.v1_peer", str(users), str(count), str(rate)]


async def _publish(users: int, count: int, rate: float) -> dict[str, float]:
    from channels.layers import get_channel_layer

    layer = get_channel_layer()
    assert layer is not None
    numbers = iter(range(count))
    begin = time.perf_counter()

    async def lane() -> None:
        for number in numbers:
            ahead = begin + number / rate - time.perf_counter() if rate else 0
            if ahead > 0:
                await asyncio.sleep(ahead)
            event = {"type": "bench.message", "text": payload(number // users).decode()}
            await layer.group_send(f"bench.u{number % users}", event)

    # More lanes than users could reorder one user's messages.
    async with asyncio.TaskGroup() as group:
        for _ in range(min(LANES, users)):
            group.create_task(lane())
    seconds = time.perf_counter() - begin
    # Not flush(): the core layer would delete what its readers have not read yet.
    await (layer.close_pools() if hasattr(layer, "close_pools") else layer.flush())
    return {"seconds": seconds, "rate": count / seconds}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("users", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("rate", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    _setup()
    print(json.dumps(asyncio.run(_publish(**vars(_parse())))))
elif "BENCH_LAYER" in os.environ:
    application = _application()
