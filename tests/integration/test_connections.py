"""How many connections a process has, counted at the server: one, and one for synchronous code."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import pytest
from asgiref.sync import async_to_sync
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator

from tests.integration.layers import receive
from tests.integration.test_recovery import Client
from tests.integration.workers import no_services
from tests.support import until
from wsgateway import Message, asend, declared, send
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.nats.log import NatsLog
from wsgateway.gateway.hub import Hub, get_hub
from wsgateway.layer import NatsChannelLayer
from wsgateway.protocol.subjects import Address, Inbox
from wsgateway.routing import websocket_urlpatterns
from wsgateway.services import registry
from wsgateway.services.runner import Runner

__all__ = ["no_services"]  # a fixture


@pytest.fixture
def server(settings: Any, own_server: EmbeddedServer, prefix: str) -> Iterator[EmbeddedServer]:
    """A server of the test's own, which the settings name."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_PREFIX = prefix
    yield own_server
    runtime.stop_background()


def clients(server: EmbeddedServer) -> int:
    """Return how many connections the server has."""
    found = psutil.Process(server.pid).net_connections("tcp")
    return sum(1 for connection in found if connection.status == psutil.CONN_ESTABLISHED)


async def use_layer(layer: NatsChannelLayer) -> None:
    """Send to a group, as consumers do."""
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"type": "x"})
    assert await receive(layer, channel) == {"type": "x"}
    await layer.group_discard("room", channel)


async def test_gateway_has_one_and_a_second_for_synchronous_code(server: EmbeddedServer) -> None:
    """The layer and the sockets had one each, and publishing a third."""
    before = clients(server)
    hub, layer = get_hub(), NatsChannelLayer()
    await hub.open()
    await hub.broker.wait_ready(20)
    await asend("orders", "ann", text="x")
    await use_layer(layer)
    assert clients(server) == before + 1
    await asyncio.to_thread(send, "orders", "ann", text="x")
    await asyncio.to_thread(async_to_sync(layer.group_send), "room", {"type": "x"})
    assert clients(server) == before + 2
    await layer.close()
    assert clients(server) == before + 2
    assert hub.broker.ready
    await hub.close()
    await until(lambda: clients(server) == before + 1, what="the loop's connection is closed")


async def test_gateway_with_durable_groups_sweeps_once(
    server: EmbeddedServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets and durable groups each asked how far the same inboxes reach."""
    settings.WSGATEWAY_STORAGE = "file"
    settings.WSGATEWAY_SWEEP_INTERVAL = 3600.0
    asked: list[list[Address]] = []
    last_offsets = NatsLog.last_offsets

    async def count(self: NatsLog, addresses: Iterable[Address]) -> dict[Address, int]:
        asked.append(list(addresses))
        return await last_offsets(self, asked[-1])

    hub, layer, ann = get_hub(), NatsChannelLayer(), Inbox("orders", "ann")
    await hub.open()
    await hub.broker.wait_ready(20)
    channel = await layer.new_channel()
    await layer.group_add("orders.ann", channel)
    client = await Client(hub, to=ann).start()
    await until(lambda: not client.window.wants_fetch, what="the backlog")
    monkeypatch.setattr(NatsLog, "last_offsets", count)
    await asyncio.to_thread(server.stop)
    await server.astart()
    await until(lambda: asked, 20, "a sweep")
    await layer.group_send("orders.ann", {"type": "ws.message", "text": "x"})
    assert (await receive(layer, channel))["text"] == "x"
    await client.has("x")
    assert asked == [[ann]]
    await layer.close()
    await hub.close()


@pytest.mark.usefixtures("no_services")
async def test_worker_has_one(server: EmbeddedServer) -> None:
    before, counts = clients(server), list[int]()
    layer = NatsChannelLayer()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(text="x")
        await asend("orders", "bob", text="x")
        await use_layer(layer)
        counts.append(clients(server))

    said: list[str] = []

    def say(text: str, /, **fields: object) -> None:
        said.append(text)

    runner = Runner(list(declared.registered.values()), None, None, say)
    running = asyncio.create_task(runner.run())
    await until(lambda: said, 20, "the worker is ready")
    await runtime.call(
        lambda broker: broker.dead_letters.requeue(
            Inbox("orders", "ann"), b"x", {"Ws-Frame": "text"}, "1"
        )
    )
    await until(lambda: counts, 20, "the message is handled")
    runner.end()
    await running
    assert counts == [before + 1]
    await until(lambda: clients(server) == before, what="the worker's connection is closed")


@pytest.mark.parametrize("debug", [True, False])
def test_asyncio_run_leaks_none(server: EmbeddedServer, debug: bool) -> None:
    before = clients(server)
    layer = NatsChannelLayer()

    async def work() -> None:
        await asend("orders", "ann", text="x")
        await use_layer(layer)

    for _ in range(20):
        asyncio.run(work(), debug=debug)
    assert clients(server) == before


def test_async_to_sync_leaks_none(server: EmbeddedServer) -> None:
    before = clients(server)
    layer = NatsChannelLayer()
    group_send, publish = async_to_sync(layer.group_send), async_to_sync(asend)
    for number in range(10_000):
        group_send("room", {"type": "x"})
        if number % 100 == 0:
            publish("orders", "ann", text="x")
    assert clients(server) == before + 1
    runtime.stop_background()
    assert clients(server) == before


def test_socket_in_the_loop_of_an_asynchronous_django_test(
    server: EmbeddedServer, settings: Any
) -> None:
    """It used the connection of the background's loop in its own, and got nothing."""
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    before = clients(server)

    async def talk() -> None:
        client = WebsocketCommunicator(
            URLRouter(websocket_urlpatterns), "/ws/orders/", headers=[(b"cookie", b"user=ann")]
        )
        assert await client.connect(timeout=20) == (True, None)
        await asend("orders", "ann", text="hi")
        assert await client.receive_from(timeout=20) == "hi"
        await client.disconnect()

    for _ in range(3):
        async_to_sync(talk)()
    assert clients(server) == before + 1
    runtime.stop_background()
    assert clients(server) == before


def test_hubs_of_closed_loops_are_freed() -> None:
    """Each test with a socket left its loop, its hub and its broker in memory."""

    def hubs() -> int:
        gc.collect()
        return sum(isinstance(each, Hub) for each in gc.get_objects())

    async def use() -> None:
        await get_hub().open()

    asyncio.run(use())
    before = hubs()
    for _ in range(5):
        asyncio.run(use())
    assert hubs() <= before


def test_loop_that_has_had_many_connections_can_be_closed() -> None:
    """Each one after `close_pools` added a layer to `loop.close`; a thousand were too many."""

    async def use() -> None:
        for _ in range(1500):
            await runtime.own().close()

    asyncio.run(use())


async def test_connection_closes_although_one_of_its_users_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The broker stayed open, and the next users did not hear of the end."""
    connection = Connection(asyncio.get_running_loop(), MemoryBroker())
    ended: list[str] = []

    async def fail() -> None:
        raise OSError("no room")

    async def flush() -> None:
        ended.append("flushed")

    connection.on_close(fail, lambda: ended.append("closed"))
    connection.on_close(flush, lambda: ended.append("closed"))
    await connection.open()
    await connection.close()
    assert connection.broker.closed
    assert ended == ["flushed", "closed", "closed"]
    assert "no room" in caplog.text
