"""Publishing while a cluster elects leaders, with the timeouts that users have."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Any

from tests.faults.traffic import stored
from tests.support import until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")
PUBLISHERS = 8


async def leader_of(broker: NatsBroker, stream: str) -> str:
    while True:
        try:
            info = await broker.jetstream.api(f"STREAM.INFO.{stream}")
        except BrokerError:
            continue
        if info["cluster"].get("leader"):
            return str(info["cluster"]["leader"])
        await asyncio.sleep(0.1)


async def is_current(broker: NatsBroker, stream: str, server: str) -> bool:
    await leader_of(broker, stream)
    cluster = (await broker.jetstream.api(f"STREAM.INFO.{stream}"))["cluster"]
    current = [peer["name"] for peer in cluster.get("replicas", ()) if peer["current"]]
    return server in (cluster.get("leader"), *current)


class Publishers:
    """Publish without a pause; remember what was confirmed, what failed, and the longest wait."""

    def __init__(self, broker: NatsBroker) -> None:
        self.confirmed: list[bytes] = []
        self.failed: list[BaseException] = []
        self.longest = 0.0
        self._broker = broker
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(index)) for index in range(PUBLISHERS)]

    async def _run(self, index: int) -> None:
        number = 0
        while not self._stop:
            text = b"%d-%d" % (index, number)
            begin = time.monotonic()
            try:
                await self._broker.publish(ANN, text, msg_id=text.decode())
                self.confirmed.append(text)
            except BrokerError as exc:
                self.failed.append(exc)
            self.longest = max(self.longest, time.monotonic() - begin)
            number += 1
            await asyncio.sleep(0.01)

    async def more(self, timeout: float = 60.0) -> None:
        wanted = len(self.confirmed) + 10 * PUBLISHERS
        await until(lambda: self.failed or len(self.confirmed) >= wanted, timeout, "confirmations")

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


async def test_no_publish_fails_in_an_election_and_none_is_stored_twice(
    settings: Any, nats_cluster: Cluster, prefix: str
) -> None:
    """An election takes 4 to 9 s; publishing gave up after BROKER_TIMEOUT, 5 s."""
    settings.NATS_BROKER_URL = ",".join(nats_cluster.urls)
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_REPLICAS = 3
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready(40)
        stream = broker.subjects.stream("recv")
        publishers = Publishers(broker)
        for how in ("kill", "step down", "kill", "step down"):
            await publishers.more()
            leader = nats_cluster[await leader_of(broker, stream)]
            if how == "kill":
                await asyncio.to_thread(leader.kill)
                await publishers.more()
                await leader.astart()
            else:
                await broker.jetstream.api(f"STREAM.LEADER.STEPDOWN.{stream}")
        await publishers.more()
        await publishers.stop()
        print(f"{len(publishers.confirmed)} stored, longest wait {publishers.longest:.2f} s")
        assert publishers.failed == []
        found = await stored(broker, "recv", ANN)
        assert sorted(found) == sorted(publishers.confirmed)
    finally:
        await broker.close()


async def test_empty_server_of_the_same_name_replaces_a_broken_one(
    settings: Any, nats_cluster: Cluster, prefix: str
) -> None:
    """As docs/how-to/nats-cluster.md says; then the copy is needed, because another one dies."""
    settings.NATS_BROKER_URL = ",".join(nats_cluster.urls)
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_REPLICAS = 3
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready(40)
        stream = broker.subjects.stream("recv")
        texts = [str(number).encode() for number in range(20)]
        for text in texts:
            await broker.publish(ANN, text)
        leader = await leader_of(broker, stream)
        broken, other = (node for node in nats_cluster if node.name != leader)
        await asyncio.to_thread(broken.kill)
        shutil.rmtree(broken.store / "jetstream")
        await broken.astart()
        await asyncio.to_thread(nats_cluster.wait_whole, 40.0)  # it votes for JetStream's leader

        end = time.monotonic() + 40
        while not await is_current(broker, stream, broken.name):
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        await asyncio.to_thread(other.kill)
        await broker.publish(ANN, b"last")
        assert [*await stored(broker, "recv", ANN)] == [*texts, b"last"]
        await other.astart()
    finally:
        await broker.close()
