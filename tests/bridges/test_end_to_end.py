"""Messages over a whole bridge: clients, JetStream or memory, the bridge, a real bus, services."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command

import wsgateway
from tests.bridges.sides import Side
from tests.integration.workers import answers, no_services, offer
from tests.support import until
from wsgateway import counters, declared
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.headers import REASON_HEADER
from wsgateway.bridges.runner import bridges_to_run, make_runner
from wsgateway.broker import memory, runtime
from wsgateway.broker.base import Broker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import status
from wsgateway.services.status import BridgeWork

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.timeout(120)

SERVICES = ["orders", "room"]


@pytest.fixture
def bridged(side: Side, settings: Any, no_services: None, monkeypatch: pytest.MonkeyPatch) -> Side:
    """The services' end of a bus to which a bridge leads."""
    monkeypatch.setattr(declared, "topics", {})
    wsgateway.topic("room", queue=True)(lambda identity, name: "write")
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_PREFIX = side.prefix
    settings.WSGATEWAY_BRIDGES = {"warehouse": side.options(services=SERVICES)}
    memory.reset_shared_store()
    counters.reset()
    return side


@asynccontextmanager
async def bridge() -> AsyncIterator[Broker]:
    """Run the bridge in this process, as ``runbridge`` does; yield its broker."""
    said: list[str] = []

    def say(text: str, /, *, event: str, **fields: object) -> None:
        said.append(text)

    runner = make_runner(bridges_to_run([]), None, say)
    task = asyncio.create_task(runner.run())
    try:
        await until(lambda: task.done() or "warehouse: connected" in " ".join(said))
        yield runtime.own().broker
    finally:
        runner.end()
        await asyncio.wait_for(task, 30)
    assert said[-1].startswith(("room: ended", "orders: ended"))


async def set_up(side: Side) -> None:
    await make_bus(side.bridge(services=SERVICES)).set_up()  # as `setup_bridges` does
    await side.serve("orders")
    await side.serve("room")


async def test_what_clients_send_reaches_the_service_and_its_answer_the_client(
    bridged: Side,
) -> None:
    await set_up(bridged)
    async with bridge() as broker:
        for number in range(3):
            for user in ("ann", "zoë"):
                await offer(broker, f"{user} {number}", user=user, Ws_Request=f"q{number}")
        seen = await bridged.sent("orders", 6)
        for user in ("ann", "zoë"):
            own = [each for each in seen if each.headers["Ws-User"] == user]
            assert [each.payload.decode() for each in own] == [f"{user} {n}" for n in range(3)]
        for each in seen:  # the service answers, and copies all headers as some programs do
            reply = {**each.headers, "Ws-Reply-To": each.headers["Ws-Request"]}
            await bridged.produce(each.headers["Ws-Sender"], b"re " + each.payload, reply)
        for user in ("ann", "zoë"):
            expected = [(f"re {user} {n}".encode(), f"q{n}") for n in range(3)]
            async with asyncio.timeout(20):
                while [(m.payload, m.reply_to) for m in await answers(broker, user)] != expected:
                    await asyncio.sleep(0.02)
        [worker] = await status.aworkers()
        assert worker.services["orders"].handled == 6
        bus = counters.bridges["warehouse"].bus
        assert bus.startswith(("Kafka at kafka://", "RabbitMQ at amqp://"))
        assert worker.bridges == {"warehouse": BridgeWork(True, 6, 0, 6, 0, 0, bus=bus)}
        shown = StringIO()
        await sync_to_async(call_command)("gateway", "status", stdout=shown)
        assert re.search(rf"warehouse +{worker.id} +6 +0 +6 +0 +0 +connected", shown.getvalue())
        counted = counters.bridges["warehouse"]
        assert (counted.sent, counted.received, counted.set_aside) == (6, 6, 0)
        assert counted.connected()


async def test_topics_both_ways(bridged: Side) -> None:
    await set_up(bridged)
    topic = Topic("room", "42")
    async with bridge() as broker:
        await broker.offer_topic(topic, Inbox("orders", "ann"), Frame.of("hello"), "1")
        [seen] = await bridged.sent("room", 1)
        assert seen.payload == b"hello"
        assert seen.headers["Ws-Topic"] == "room.42"
        assert seen.headers["Ws-Sender"] == "orders.ann"
        await bridged.produce("room.42", b"hello all", target="topic")

        async def stored() -> list[bytes]:
            found = await broker.log(topic).read_after(topic, 0, limit=10)
            return [each.payload for each in found.messages]

        async with asyncio.timeout(20):
            while await stored() != [b"hello all"]:
                await asyncio.sleep(0.02)


async def test_record_that_nobody_can_have_is_set_aside_and_the_others_go_on(
    bridged: Side,
) -> None:
    await set_up(bridged)
    async with bridge() as broker:
        await bridged.produce("ann", b"no service")
        await bridged.produce("bills.ann", b"another's service")
        await bridged.produce("room.42", b"no inbox has topics")
        await bridged.produce("orders.ann", b"\xff", {"Ws-Frame": "text"})
        await bridged.produce("orders.ann", b"good")
        seen = await bridged.dead(4)
        reasons = {each.payload: each.headers[REASON_HEADER] for each in seen}
        assert "is not <service>.<user>" in reasons[b"no service"]
        assert "which this bridge does not list" in reasons[b"another's service"]
        assert "has topics, not users" in reasons[b"no inbox has topics"]
        assert "not UTF-8" in reasons[b"\xff"]
        await until(lambda: counters.bridges["warehouse"].received == 1)
        assert [each.payload for each in await answers(broker)] == [b"good"]
        assert counters.bridges["warehouse"].set_aside == 4


async def test_record_that_comes_again_is_stored_once(
    bridged: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge dies after NATS has stored the message, and before the bus knows."""
    await set_up(bridged)
    bus_class = type(make_bus(bridged.bridge()))
    with monkeypatch.context() as patch:
        patch.setattr(bus_class, "ack", lambda bus, record: None)
        async with bridge():
            for number in range(5):
                await bridged.produce("orders.ann", f"{number}".encode(), id=f"id-{number}")
            await until(lambda: counters.bridges["warehouse"].received == 5)
    async with bridge() as broker:
        await bridged.produce("orders.ann", b"5", id="id-5")
        await until(lambda: counters.bridges["warehouse"].received == 11)
        assert [each.payload for each in await answers(broker)] == [b"%d" % n for n in range(6)]


def test_setup_bridges_creates_everything_and_says_so(bridged: Side) -> None:
    def run() -> list[dict[str, str]]:
        out = StringIO()
        call_command("setup_bridges", as_json=True, stdout=out)
        found: list[dict[str, str]] = json.loads(out.getvalue())
        return found

    first, second = run(), run()
    assert {line["bridge"] for line in first} == {"warehouse"}
    assert any(bridged.names.dead in line["result"] for line in first)
    assert all(line["result"].startswith("created ") for line in first)
    assert all(" exists: " in line["result"] for line in second)
    assert len(first) == len(second)


@pytest.mark.parametrize("command", ["runbridge", "setup_bridges"])
def test_bridge_that_is_not_there_is_named(bridged: Side, command: str) -> None:
    with pytest.raises(CommandError, match="no bridge 'x' in WSGATEWAY_BRIDGES; known: warehouse"):
        call_command(command, "x")
