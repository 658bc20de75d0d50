"""What operators see of a bridge that waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command

from tests.bridges.fake_bus import FakeBus
from tests.bridges.sides import Reader, Side
from tests.integration.workers import no_services, offer
from tests.support import until
from wsgateway import counters
from wsgateway.bridges import outage
from wsgateway.bridges import runner as bridge_runner
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.runner import bridges_to_run, make_runner
from wsgateway.broker import memory, runtime
from wsgateway.exceptions import BusMisconfigured
from wsgateway.metrics.collector import COLLECTOR
from wsgateway.protocol.backoff import Backoff

__all__ = ["no_services"]  # a fixture

MISSING = "Kafka does not have the topic 'ws.recv'; run \"manage.py setup_bridges\""


@pytest.fixture
def bus(settings: Any, no_services: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBus]:
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_BRIDGES = {"warehouse": {"url": "kafka://a", "services": ["orders"]}}
    memory.reset_shared_store()
    counters.reset()
    made = FakeBus()
    monkeypatch.setattr(bridge_runner, "make_bus", lambda bridge: made)
    monkeypatch.setattr(outage, "PAUSES", Backoff(0.01, 1.0, 0.01, jitter=0))
    yield made
    runtime.stop_background()  # what the commands used knows this store


@asynccontextmanager
async def running() -> AsyncIterator[list[str]]:
    """Run the bridge; yield what it says."""
    said: list[str] = []

    def say(text: str, /, *, event: str, **fields: object) -> None:
        said.append(event)

    runner = make_runner(bridges_to_run([]), None, say)
    task = asyncio.create_task(runner.run())
    try:
        await until(lambda: task.done() or "ready" in said)
        yield said
    finally:
        runner.end()
        await task


async def shown(*arguments: str) -> str:
    out = StringIO()
    await sync_to_async(call_command)("gateway", "status", *arguments, stdout=out)
    return out.getvalue()


async def until_shown(text: str) -> None:
    """Wait for a text in the status; the worker is not known at once."""
    async with asyncio.timeout(20):
        while text not in await shown():
            await asyncio.sleep(0.02)


def blocked() -> float:
    [value] = [
        sample.value
        for family in COLLECTOR.collect()
        for sample in family.samples
        if sample.name == "wsgateway_bridge_blocked"
    ]
    return value


async def test_bridge_that_lacks_a_topic_waits_and_says_why(bus: FakeBus) -> None:
    """It was connected, said the status and the metric, and carried nothing."""
    bus.error = BusMisconfigured(MISSING)
    async with running() as said:
        await until(counters.bridges["warehouse"].trouble)
        await until_shown(f"waits: {MISSING}")
        document = json.loads(await shown("--json"))
        [worker] = document["workers"]
        assert worker["bridges"]["warehouse"]["connected"] is True
        assert worker["bridges"]["warehouse"]["trouble"] == MISSING
        alert = f"Bridge warehouse of worker {worker['id']} waits: {MISSING}"
        assert alert in [each["text"] for each in document["alerts"]]
        assert blocked() == 1

        bus.error = None
        await until(lambda: "connected" in said)
        await until_shown(" connected")
        assert blocked() == 0


async def test_message_that_waits_for_a_queue_is_a_reason(bus: FakeBus) -> None:
    async with running() as said:
        await until(lambda: "connected" in said)
        bus.error = BusMisconfigured("no queue is bound")
        await offer(runtime.own().broker, "1")
        await until(counters.bridges["warehouse"].trouble)
        await until_shown("waits: no queue is bound")
        bus.error = None
        await until(lambda: counters.bridges["warehouse"].sent)
        assert blocked() == 0


async def test_bridge_that_is_cut_off_says_why(bus: FakeBus) -> None:
    bus.is_connected, bus.trouble_now = False, "RabbitMQ refuses the login"
    async with running():
        await until_shown("cut off from Kafka at kafka://a:9092: RabbitMQ refuses the login")


@pytest.mark.timeout(120)
async def test_bus_knows_what_it_lacks(side: Side) -> None:
    bus = await side.bus(ready=False)
    assert bus.trouble
    reader = Reader(bus)
    await until(lambda: "setup_bridges" in bus.trouble, 20)
    await make_bus(side.bridge()).set_up()
    await until(lambda: bus.trouble == "", 20)
    await side.produce("orders.ann", b"x")
    await reader.until(1)
