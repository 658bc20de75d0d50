"""What a bridge does with clients' messages: outages, refusals, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.bridges.fake_bus import FakeBus
from tests.integration.workers import no_services, offer
from tests.support import until
from wsgateway.bridges import outage
from wsgateway.bridges.config import Bridge, Server
from wsgateway.bridges.sending import Sending
from wsgateway.broker import memory
from wsgateway.broker.memory import MemoryBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.counters import BridgeCounters
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.protocol.backoff import Backoff
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture

BRIDGE = Bridge("b", "ws", "kafka", (Server("localhost", 9092),), ("orders",))


@pytest.fixture
async def broker(
    settings: Any, no_services: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MemoryBroker]:
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_ACK_WAIT = 0.5
    settings.WSGATEWAY_BRIDGES = {"b": {"url": "kafka://localhost", "services": ["orders"]}}
    monkeypatch.setattr(outage, "PAUSES", Backoff(0.01, 1.0, 0.01, jitter=0))
    memory.reset_shared_store()
    broker = MemoryBroker.from_settings(wsgateway_settings)
    await broker.open()
    yield broker
    await broker.close()


class Rig:
    def __init__(self, broker: MemoryBroker, **options: Any) -> None:
        self.bus, self.counted = FakeBus(), BridgeCounters()
        self.sending = Sending(replace(BRIDGE, **options), self.bus, self.counted)
        self.worker = Worker(self.sending.service("orders", has_topics=False), broker)

    async def stop(self, timeout: float = 10.0) -> None:
        await self.sending.end()
        await self.worker.stop(timeout)


@asynccontextmanager
async def running(broker: MemoryBroker, **options: Any) -> AsyncIterator[Rig]:
    rig = Rig(broker, **options)
    rig.worker.start()
    await rig.worker.ready()
    try:
        yield rig
    finally:
        await rig.stop()


@pytest.mark.parametrize(
    "error", [BusUnavailable("away"), BusMisconfigured("no topic"), asyncio.CancelledError()]
)
async def test_outage_uses_up_no_try_and_keeps_the_order(
    broker: MemoryBroker, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a try, nor a suspicion that the message kills its worker: it waits in place."""
    async with running(broker) as rig:
        rig.bus.error = error
        for text in "123":
            await offer(broker, text)
        await until(lambda: rig.bus.tries > 20)
        assert rig.counted.sending == 1
        rig.bus.error = None
        await until(lambda: rig.counted.sent == 3)
        assert [payload for _, _, payload, _ in rig.bus.produced] == [b"1", b"2", b"3"]
        assert rig.worker.counts == {"done": 3}
    said = [each for each in caplog.messages if "waits to send" in each]
    assert len(said) == 1
    assert not [each for each in caplog.messages if "give the service a timeout" in each]


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_stop_in_an_outage_returns_the_messages_at_once(
    broker: MemoryBroker, is_deaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ's client waited for a connection for ten seconds, and so did SIGTERM.

    Each message that waited was logged with a traceback, as if it had failed.
    """
    async with running(broker) as rig:
        rig.bus.error = None if is_deaf else BusUnavailable("away")
        rig.bus.is_deaf, rig.bus.is_connected = is_deaf, False
        await offer(broker, "1")
        await offer(broker, "2")
        await until(lambda: rig.bus.tries > (0 if is_deaf else 2))
        async with asyncio.timeout(3):
            await rig.stop()
    assert not [each for each in caplog.records if each.exc_info]
    async with running(broker) as rig:
        await until(lambda: rig.counted.sent == 2)
        assert [payload for _, _, payload, _ in rig.bus.produced] == [b"1", b"2"]
    assert (await broker.dead_letters.read(None, 0, 10)).entries == []


async def test_stop_waits_for_a_connected_bus_but_not_longer_than_it_may(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A partition without a leader, or an alarm: the bus is there, and confirms nothing."""
    async with running(broker) as rig:
        rig.bus.is_deaf = True
        await offer(broker, "1")
        await offer(broker, "2")
        await until(lambda: rig.bus.tries > 0)
        stopping = asyncio.create_task(rig.stop(0.3))
        await asyncio.sleep(0.1)
        assert not stopping.done()  # the bus may confirm yet
        async with asyncio.timeout(3):
            await stopping
        assert rig.counted.sending == 0
    async with running(broker) as rig:
        await until(lambda: rig.counted.sent == 2)
        assert [payload for _, _, payload, _ in rig.bus.produced] == [b"1", b"2"]
    assert (await broker.dead_letters.read(None, 0, 10)).entries == []
    assert not [each for each in caplog.records if each.exc_info]


async def test_message_that_was_delivered_often_is_not_suspect(
    broker: MemoryBroker, settings: Any
) -> None:
    """A bridge that is killed again and again in an outage made its messages dead letters."""
    settings.WSGATEWAY_MAX_DELIVER = 2
    await offer(broker, "1")
    tried: list[Mapping[str, str]] = []
    for _ in range(4):
        killed = Rig(broker)
        killed.bus.tried = tried
        killed.bus.error = BusUnavailable("away")
        killed.worker.start()
        await until(lambda rig=killed: rig.bus.tries > 2)
        await killed.worker.stop(0.0, in_order=False)
    async with running(broker) as rig:
        await until(lambda: rig.counted.sent == 1)
        headers = rig.bus.produced[0][3]
        assert int(headers["Ws-Attempt"]) > 2
        # Each of them may be stored, and a service knows by its id that it is the same message
        assert {each["Ws-Id"] for each in tried} == {headers["Ws-Id"]}


async def test_no_more_users_are_served_at_once_than_the_bridge_may(broker: MemoryBroker) -> None:
    async with running(broker, concurrency=2) as rig:
        rig.bus.is_deaf = True
        for user in ("ann", "bob", "cid", "dan"):
            await offer(broker, "1", user=user)
        await until(lambda: len(rig.bus.tried) >= 2)
        await asyncio.sleep(0.1)  # there would be time for more
        assert len(rig.bus.tried) == 2
        await rig.stop(0.0)


async def test_refused_message_is_a_dead_letter_at_once(broker: MemoryBroker) -> None:
    async with running(broker) as rig:
        rig.bus.error = RecordRefused("message of 2 bytes exceeds 1 byte")
        await offer(broker, "1")
        await until(lambda: rig.counted.refused == 1)
        rig.bus.error = None
        await offer(broker, "2")
        await until(lambda: rig.counted.sent == 1)
        assert rig.bus.tries == 2
        [dead] = (await broker.dead_letters.read("orders", 0, 10)).entries
        assert dead.payload == b"1"
        assert "exceeds 1 byte" in str(dead.headers)


async def test_headers_name_the_message_and_its_sender(broker: MemoryBroker) -> None:
    async with running(broker) as rig:
        await offer(broker, "1", user="zoë", Ws_Request="q1", Ws_Frame="text")
        await until(lambda: rig.bus.produced)
        [(service, user, payload, headers)] = rig.bus.produced
        assert (service, user, payload) == ("orders", "zo=C3=AB", b"1")
        assert headers["Ws-Sender"] == "orders.zo=C3=AB"
        assert headers["Ws-User"] == "zoë"
        assert headers["Ws-Service"] == "orders"
        assert headers["Ws-Frame"] == "text"
        assert headers["Ws-Request"] == "q1"
        assert headers["Ws-Attempt"] == "1"
        assert headers["Ws-Id"]
        assert not [name for name in headers if name.lower().startswith("nats-")]
