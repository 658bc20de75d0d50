"""Receivers cancelled thousands of times at random: no message is lost, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter

import pytest

from tests.integration.layers import layers, receive
from wsgateway.broker.embedded import EmbeddedServer


@pytest.fixture
def url(nats_server: EmbeddedServer) -> str:
    return nats_server.url


@pytest.mark.parametrize("way", ["process", "normal", "group", "service.user"])
async def test_thousands_of_random_cancellations(url: str, prefix: str, way: str) -> None:
    """Readers are cancelled at random moments: every message comes, and nothing stays behind."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    count = 2000
    async with layers(url, prefix, capacity=10 * count) as make:
        sender, receiver = make(), make()
        channel = "work" if way == "normal" else await receiver.new_channel()
        if way in ("group", "service.user"):
            await receiver.group_add(way, channel)
        got: Counter[int] = Counter()
        cancelled = 0

        async def read() -> None:
            nonlocal cancelled
            while sum(got.values()) < count:
                task = asyncio.create_task(receiver.receive(channel))
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                if chance.random() < 0.7:
                    task.cancel()
                    cancelled += 1
                else:
                    await asyncio.wait({task}, timeout=chance.random() / 50)
                    task.cancel()
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(result, dict):
                    got[result["n"]] += 1

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for number in range(count):
            message = {"type": "x", "n": number}
            if way in ("group", "service.user"):
                await sender.group_send(way, message)
            else:
                await sender.send(channel, message)
        async with asyncio.timeout(50):
            await asyncio.gather(*readers)
        assert got == Counter(range(count)), f"seed {seed}"
        assert cancelled > 100
        box = receiver.local.mailboxes.get(channel.encode())
        assert box is None or (box.reading == 0 and not box.waiting and not box.queue)
        await sender.send(channel, {"type": "the.end"})
        assert await receive(receiver, channel) == {"type": "the.end"}
    gc.collect()
    ours = [t for t in asyncio.all_tasks() if t.get_name().startswith("wsgateway")]
    assert not ours
