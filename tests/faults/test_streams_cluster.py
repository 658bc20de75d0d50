"""Streams with three copies: shares of a cluster's room, and the move to services' streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests import LIMITS
from tests.faults.traffic import broker_at, sending, stored
from tests.integration.test_migration import USERS, expected, fill, old_config, set_up
from tests.support import until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import ask
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.limits import LEAST, Room
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured


@pytest.fixture
def replicated(settings: Any, nats_cluster: Cluster, prefix: str) -> Any:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ",".join(nats_cluster.urls)
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_REPLICAS = 3
    settings.WSGATEWAY_SERVICES = ["orders", "s", "service1"]
    return settings


@pytest.mark.timeout(120)
@pytest.mark.parametrize("limit", ["chosen", "automatic"])
async def test_server_that_comes_back_is_waited_for(
    replicated: Any, nats_cluster: Cluster, limit: str
) -> None:
    """For a second it is a "peer offline" (10005), which was an error for an operator.

    Where the limits are ours to choose, it looked like a full disk: streams got 1 MB.
    """
    for name in LIMITS if limit == "automatic" else ():
        setattr(replicated, name, 0)
    node, port = nats_cluster.nodes[2], nats_cluster.nodes[0].port
    early = {"name": "EARLY", "num_replicas": 3}
    answer: dict[str, Any] = {}
    while "peer offline" not in str(answer):  # the moment that this test is about
        ask(port, "STREAM.DELETE.EARLY", timeout=5.0)
        await asyncio.to_thread(node.restart)
        answer = ask(port, "STREAM.CREATE.EARLY", early, timeout=5.0)[1]
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready(40)
        info = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.stream('recv')}")
        assert len(info["cluster"]["replicas"]) == 2
        assert info["config"]["max_bytes"] != LEAST
    finally:
        await broker.close()


async def test_more_replicas_than_the_cluster_has_servers(replicated: Any) -> None:
    """Waiting does not help here, so it is an error that says what to change."""
    replicated.WSGATEWAY_REPLICAS = 5
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        with pytest.raises(BrokerMisconfigured, match="WSGATEWAY_REPLICAS wants 5 servers"):
            await broker.wait_ready(40)
    finally:
        await broker.close()


@pytest.mark.timeout(120)
async def test_each_stream_gets_a_share(replicated: Any, nats_cluster: Cluster) -> None:
    for name in LIMITS:
        setattr(replicated, name, 0)
    lines = await set_up()
    assert all(line.endswith(": created") for line in lines), lines
    async with broker_at(nats_cluster.urls, replicated.WSGATEWAY_PREFIX) as broker:
        await broker.wait_ready()
        answer = await broker.jetstream.api("STREAM.LIST")
        found = {s["config"]["name"]: s["config"]["max_bytes"] for s in answer["streams"]}
        mine = [size for name, size in found.items() if name in " ".join(lines)]
        assert len(mine) == len(lines)
        assert min(mine) >= 2**20
        assert not any("PROBE" in name for name in found)


@pytest.mark.timeout(120)
async def test_streams_get_less_if_others_are_faster(
    replicated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the room and the streams, another installation may take most of it."""
    for name in LIMITS:
        setattr(replicated, name, 0)
    look = Room.free

    async def room_before(self: Room, storage: str, replicas: int) -> int:
        monkeypatch.undo()
        return 64 * await look(self, storage, replicas)

    monkeypatch.setattr(Room, "free", room_before)
    lines = await set_up()
    assert all(line.endswith(": created") for line in lines), lines


@pytest.mark.timeout(120)
async def test_messages_move_while_an_old_gateway_publishes(
    replicated: Any, nats_cluster: Cluster, prefix: str
) -> None:
    async with broker_at(nats_cluster.urls, prefix) as old:
        await old.wait_ready()
        config = {**old_config(prefix), "num_replicas": 3}
        await old.jetstream.patient.api(f"STREAM.CREATE.{prefix.upper()}_SEND", config)
        await fill(old, 50)
        async with sending(old, USERS, 50) as number:
            lines = await set_up()
            assert "deleted" in lines[0]
            reached = number()
            await until(lambda: number() > reached + 5, 30, "it goes on in the new streams")
        await old.services.refresh()
        for inbox in USERS:
            async with asyncio.timeout(20):  # a replica may lag behind; it answers, too
                while len(found := await stored(old, "send", inbox)) < number():
                    await asyncio.sleep(0.05)
            assert found == expected(inbox, number())
