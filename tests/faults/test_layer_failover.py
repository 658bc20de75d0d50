"""Durable groups while connections, servers and leaders go: nothing lost, in order, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.layers import drain, layers, nats_of, receive
from tests.support import until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer import NatsChannelLayer


def cut(layer: NatsChannelLayer) -> None:
    """Break the layer's connection, as a network does."""
    node = layer.local.connection
    assert node is not None
    nats_of(node).connection.force_reconnect()


class Load:
    """Sends numbers to a durable group, 16 at a time; knows which were accepted.

    Args:
        layer: Who sends.
        group: Where.
    """

    def __init__(self, layer: NatsChannelLayer, group: str) -> None:
        self.accepted: list[list[int]] = [[] for _ in range(16)]
        self._layer = layer
        self._group = group
        self._stop = False
        self._tasks = [asyncio.create_task(self._send(index)) for index in range(16)]

    @property
    def count(self) -> int:
        return sum(map(len, self.accepted))

    async def _send(self, index: int) -> None:
        number = 0
        while not self._stop:
            await self._layer.group_send(self._group, {"type": "x", "n": [index, number]})
            self.accepted[index].append(number)
            number += 1
            await asyncio.sleep(0.01)

    async def more(self, count: int, timeout: float) -> None:
        wanted = self.count + count
        await until(lambda: self.count >= wanted or self._failed(), timeout, "accepted messages")

    def _failed(self) -> bool:
        for task in self._tasks:
            if task.done():
                task.result()
        return False

    async def finish(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def check(self, layer: NatsChannelLayer, channel: str) -> None:
        """Every accepted message came, each writer's in order, none twice."""
        got: list[list[int]] = [[] for _ in range(16)]
        for _ in range(self.count):
            index, number = (await receive(layer, channel, 30))["n"]
            got[index].append(number)
        assert got == self.accepted


async def test_members_reconnect_and_miss_nothing(own_server: EmbeddedServer, prefix: str) -> None:
    async with layers(own_server.url, prefix) as make:
        sender, receiver = make(), make()
        channels = [await receiver.new_channel() for _ in range(2)]
        for channel in channels:
            await receiver.group_add("service.user", channel)
        load = Load(sender, "service.user")
        for _ in range(4):
            await load.more(50, 30)
            cut(receiver)
        await load.finish()
        for channel in channels:
            await load.check(receiver, channel)


async def test_server_killed_and_started_again(own_server: EmbeddedServer, prefix: str) -> None:
    async with layers(own_server.url, prefix) as make:
        sender, receiver = make(), make()
        channel = await receiver.new_channel()
        await receiver.group_add("service.user", channel)
        await receiver.group_add("group", channel)
        for number in range(20):
            await sender.group_send("service.user", {"type": "x", "n": number})
            await sender.send("normal", {"type": "x", "n": number})
        await asyncio.to_thread(own_server.kill)
        await own_server.astart()
        for number in range(20, 40):  # waits for the connection by itself
            await sender.group_send("service.user", {"type": "x", "n": number})
            await sender.send("normal", {"type": "x", "n": number})
        assert await drain(receiver, channel, 40) == list(range(40))
        assert await drain(receiver, "normal", 40) == list(range(40))
        await sender.group_send("group", {"type": "x", "n": 1})  # the membership survived
        assert await drain(receiver, channel, 1) == [1]


async def test_without_a_server_the_error_says_what_to_do(
    prefix: str, free_port: int, settings: Any
) -> None:
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.3
    async with layers(f"nats://127.0.0.1:{free_port}", prefix) as make:
        layer = make()
        for group in ("group", "service.user"):
            with pytest.raises(BrokerUnavailable, match="cannot reach NATS"):
                await layer.group_send(group, {"type": "x"})


@pytest.mark.timeout(150)
async def test_leader_killed_under_load(nats_cluster: Cluster, prefix: str, settings: Any) -> None:
    settings.WSGATEWAY_REPLICAS = 3
    settings.WSGATEWAY_BROKER_TIMEOUT = 30.0
    async with layers(nats_cluster.urls, prefix) as make:
        sender, receiver = make(), make()
        channel = await receiver.new_channel()
        await receiver.group_add("service.user", channel)
        load = Load(sender, "service.user")
        await load.more(200, 30)
        node = receiver.local.connection
        assert node is not None
        info = await nats_of(node).streams.info(node.subjects.stream("recv"))
        assert info is not None
        assert info["config"]["num_replicas"] == 3
        leader = nats_cluster[info["cluster"]["leader"]]
        await asyncio.to_thread(leader.kill)
        await load.more(300, 60)  # two of three go on
        await leader.astart()
        await load.finish()
        await load.check(receiver, channel)
