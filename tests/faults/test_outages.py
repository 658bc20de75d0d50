"""Processes killed under load: what was accepted is stored once, in order, and arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.acceptance.proxy import proxy_to
from tests.faults.traffic import INBOX, SITE, TOPICS, Traffic, broker_at, stored, ws
from tests.support import Gateway, until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer

Gateways = Callable[..., Gateway]


async def test_broker_killed_under_load(
    gateway_factory: Gateways, own_server: EmbeddedServer, prefix: str
) -> None:
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url, **SITE)
    async with (
        broker_at([own_server.url], prefix) as broker,
        gateway.connect(*INBOX, query="?device=raw") as raw,
        Traffic(broker, ws(gateway), topics=TOPICS) as traffic,
    ):
        for _ in range(2):
            await traffic.more()
            await asyncio.to_thread(own_server.kill)
            await asyncio.sleep(0.3)
            await own_server.astart()
        await traffic.more()
        await traffic.finish()
        # The raw socket stayed open, and got the same.
        got = [await asyncio.wait_for(raw.recv(), 30) for _ in traffic.published]
        assert got == traffic.published
    assert "Traceback" not in gateway.output


async def test_broker_that_stops_answering(
    gateway_factory: Gateways, own_server: EmbeddedServer, prefix: str
) -> None:
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url, **SITE)
    async with (
        broker_at([own_server.url], prefix) as broker,
        Traffic(broker, ws(gateway), topics=TOPICS) as traffic,
    ):
        await traffic.more()
        own_server.pause()
        await asyncio.sleep(2.5)
        own_server.resume()
        await traffic.more()
        await traffic.finish()


async def test_gateway_killed_and_its_network_cut_under_load(
    gateway_factory: Gateways, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with (
        proxy_to(nats_server.port) as network,
        broker_at([nats_server.url], prefix) as broker,
    ):
        url = f"nats://127.0.0.1:{network.port}"
        gateway = await asyncio.to_thread(gateway_factory, NATS_BROKER_URL=url, **SITE)
        async with Traffic(broker, ws(gateway), topics=TOPICS) as traffic:
            await traffic.more()
            await asyncio.to_thread(gateway.kill)
            await asyncio.to_thread(gateway.start)
            await traffic.more()
            await network.cut()
            await traffic.more()
            await traffic.finish()


async def leader_of(broker: object, stream: str) -> str:
    info = await broker.jetstream.api(f"STREAM.INFO.{stream}")  # type: ignore[attr-defined]
    return str(info["cluster"].get("leader", ""))


async def test_cluster_leader_killed_twice_under_load(
    gateway_factory: Gateways, nats_cluster: Cluster, prefix: str
) -> None:
    cluster = {
        "NATS_BROKER_URL": ",".join(nats_cluster.urls),
        "WSGATEWAY_REPLICAS": "3",
        **SITE,
    }
    gateway, other = gateway_factory(**cluster), gateway_factory(**cluster)
    async with (
        broker_at(nats_cluster.urls, prefix) as broker,
        other.connect(*INBOX, query="?device=raw") as raw,
        Traffic(broker, ws(gateway), topics=TOPICS) as traffic,
    ):
        subjects = broker.subjects
        for stream in (subjects.stream("recv"), subjects.topic_stream("room")):
            await traffic.more()
            leader = nats_cluster[await leader_of(broker, stream)]
            await asyncio.to_thread(leader.kill)
            await traffic.more(timeout=60)  # two of three go on
            await leader.astart()
        await traffic.more(timeout=60)
        await traffic.finish()
        # On the other gateway the socket stayed open, and got the same.
        got = [await asyncio.wait_for(raw.recv(), 30) for _ in traffic.published]
        assert got == traffic.published


async def test_raw_frame_during_an_outage_is_refused_not_swallowed(
    gateway_factory: Gateways, own_server: EmbeddedServer, prefix: str
) -> None:
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url, WSGATEWAY_BROKER_TIMEOUT="1")
    async with gateway.connect(*INBOX) as socket:
        await socket.send("before")
        async with broker_at([own_server.url], prefix) as broker:
            await broker.wait_ready()
            while await stored(broker, "send") != [b"before"]:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(own_server.stop)
        await socket.send("meanwhile")
        await asyncio.wait_for(socket.wait_closed(), 30)
        assert socket.close_code == 1013
    await own_server.astart()
    async with broker_at([own_server.url], prefix) as broker:
        await broker.wait_ready()
        assert await stored(broker, "send") == [b"before"]


async def test_gateway_recovers_when_the_broker_comes_late(
    gateway_factory: Gateways, own_server: EmbeddedServer
) -> None:
    await asyncio.to_thread(own_server.stop)
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url, **SITE)
    for _ in range(2):
        async with gateway.connect(*INBOX) as socket:
            await asyncio.wait_for(socket.wait_closed(), 30)
            assert socket.close_code == 1013
    said = [line for line in gateway.output.splitlines() if line.endswith("(retrying)")]
    assert len(said) == 1
    assert "Traceback" not in gateway.output
    await own_server.astart()

    async def accepted() -> bool:
        async with gateway.connect(*INBOX) as socket:
            try:
                await asyncio.wait_for(socket.wait_closed(), 1)
            except TimeoutError:
                return True
            return False

    for _ in range(20):
        if await accepted():
            break
    else:
        pytest.fail("the gateway did not find the broker")


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_shutdown_with_open_sockets(gateway_factory: Gateways, server: str) -> None:
    gateway = gateway_factory(server)
    sockets = [await gateway.connect("faults", f"u{number}") for number in range(50)]
    gateway.stop(timeout=5.0)
    await until(lambda: all(socket.close_code for socket in sockets), what="closed")
    assert {socket.close_code for socket in sockets} == {1012}
