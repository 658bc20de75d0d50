"""A reader of server-sent events while NATS goes away: each message once, in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import wsgateway
from tests.acceptance.proxy import proxy_to
from tests.event_streams import Reader
from tests.faults.traffic import broker_at
from tests.support import until
from wsgateway import declared
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.hub import get_hub
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.routing import sse_router

ANN, ROOM = Inbox("orders", "ann"), Topic("room", "42")


async def test_cut_network_and_restarted_server_lose_nothing(
    own_server: EmbeddedServer, settings: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})

    @wsgateway.topic("room")
    async def allow(identity: Identity, name: str) -> str:
        return "read"

    settings.PUBSUB_BROKER = "nats"
    settings.WSGATEWAY_PREFIX = prefix
    async with proxy_to(own_server.port) as proxy, broker_at([own_server.url], prefix) as other:
        settings.NATS_BROKER_URL = f"nats://127.0.0.1:{proxy.port}"
        hub = get_hub()
        await hub.open()
        await hub.broker.wait_ready(20)
        await hub.broker.set_up()
        number = 0

        async def publish(count: int) -> None:
            nonlocal number
            for _ in range(count):
                for address in (ANN, ROOM):
                    await store(address, str(number))
                number += 1

        async def store(address: Inbox | Topic, text: str) -> None:
            async with asyncio.timeout(30):
                while True:
                    try:
                        await other.publish(address, text.encode(), msg_id=f"{address} {text}")
                        return
                    except BrokerUnavailable:
                        await asyncio.sleep(0.05)

        async with Reader(sse_router, "/orders/", "topic=room.42", cookie="user=ann") as ann:
            await until(lambda: len(ann.named("welcome")) == 2)
            await publish(3)
            proxy.deaf = True
            await proxy.cut()
            await publish(3)
            proxy.deaf = False
            await publish(3)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)
            await publish(3)
            texts = [str(each) for each in range(number)]
            await until(lambda: len(ann.events) == 2 + 2 * number, 30)
            await ann.has(*texts)
            await ann.has(*texts, name="room.42")
            assert not ann.ended
        await hub.close()
