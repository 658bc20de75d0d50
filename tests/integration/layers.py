"""Channel layers of the tests' own: made as needed, closed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from wsgateway.broker.connection import Connection
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.layer import NatsChannelLayer

__all__ = ["drain", "layers", "nats_of", "nothing_comes", "receive", "stored"]

Make = Callable[..., NatsChannelLayer]


@asynccontextmanager
async def layers(url: Any, prefix: str, **defaults: Any) -> AsyncIterator[Make]:
    """Give a function that makes layers; each stands for one process."""
    made: list[NatsChannelLayer] = []

    def make(**options: Any) -> NatsChannelLayer:
        layer = NatsChannelLayer(url, **{"prefix": prefix, **defaults, **options})
        made.append(layer)
        return layer

    try:
        yield make
    finally:
        for layer in made:
            await layer.close()


def nats_of(connection: Connection) -> NatsBroker:
    """Return the broker of a layer that is not in memory."""
    assert isinstance(connection.broker, NatsBroker)
    return connection.broker


async def receive(layer: NatsChannelLayer, channel: str, timeout: float = 20.0) -> dict[str, Any]:
    """Return the next message; fail if none comes."""
    async with asyncio.timeout(timeout):
        return await layer.receive(channel)


async def drain(layer: NatsChannelLayer, channel: str, count: int) -> list[Any]:
    """Return what *count* messages have as ``n``."""
    return [(await receive(layer, channel))["n"] for _ in range(count)]


async def stored(layer: NatsChannelLayer, channel: str) -> int:
    """Return how many messages the broker keeps for a normal channel."""
    return await layer.connections.run(lambda connection: connection.broker.channels.count(channel))


async def nothing_comes(layer: NatsChannelLayer, channel: str, group: str) -> None:
    """Fail if *channel* holds a message; *group* has it as a member or is not used yet.

    A message of our own is sent behind whatever may be under way, so no time has to be guessed.
    """
    await layer.group_add(group, channel)
    await layer.group_send(group, {"type": "the.end"})
    message = await receive(layer, channel)
    assert message == {"type": "the.end"}, message
