"""The channel layer with ``PUBSUB_BROKER = "memory"``: as on NATS, within one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator

import wsgateway
from tests.integration.layers import drain, receive
from tests.support import until
from tests.troubleshooting import Symptom
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.memory.channels import MemoryChannelStore
from wsgateway.layer import NatsChannelLayer, durable
from wsgateway.layer.config import OptionRefused
from wsgateway.protocol import group_names
from wsgateway.routing import websocket_urlpatterns
from wsgateway.testing import assert_not_sent, assert_sent, sent
from wsgateway.testing.isolation import empty_store


@pytest.fixture(autouse=True)
def _empty() -> None:
    empty_store()


def make(**options: Any) -> Any:
    return NatsChannelLayer(**options)


async def test_the_settings_decide_where_a_layer_is(settings: Any) -> None:
    """With the memory broker it looked for a NATS server, and failed after five seconds."""

    class Own(NatsChannelLayer):
        pass

    def is_in_memory(layer: Any) -> bool:
        assert layer.connections.target
        return bool(layer.connections.are_in_memory)

    assert is_in_memory(get_channel_layer())
    assert is_in_memory(Own())
    assert not is_in_memory(NatsChannelLayer("nats://127.0.0.1:1"))
    settings.PUBSUB_BROKER, settings.NATS_BROKER_URL = "nats", "nats://127.0.0.1:1"
    assert not is_in_memory(get_channel_layer())
    settings.PUBSUB_BROKER = "memory"
    assert is_in_memory(get_channel_layer())
    wrong: Any = "100"
    with pytest.raises(OptionRefused, match="capacity"):
        NatsChannelLayer(capacity=wrong)


@pytest.mark.troubleshooting(
    "servers are named, so this layer connects to NATS, although PUBSUB_BROKER is 'memory'"
)
def test_servers_beside_the_memory_broker_are_warned_about(
    symptom: Symptom, caplog: pytest.LogCaptureFixture
) -> None:
    assert NatsChannelLayer("nats://127.0.0.1:1").connections.target
    symptom.must_show_in(caplog.text)
    assert "leave servers out" in caplog.text
    caplog.clear()
    make()
    assert not caplog.records


async def test_channels(settings: Any) -> None:
    layer, other = make(capacity=3, channel_capacity={"small*": 1}), make()
    mine, small = await layer.new_channel(), await layer.new_channel("small")
    for number in range(3):
        await layer.send(mine, {"type": "x", "n": number})
        await other.send("normal", {"type": "x", "n": number})
    await other.send(small, {"type": "x", "n": 7})
    for channel in (mine, "normal", small):
        with pytest.raises(ChannelFull, match=channel):
            await layer.send(channel, {"type": "x"})
    for channel in (mine, "normal"):
        assert await drain(layer, channel, 3) == [0, 1, 2]
    assert await drain(layer, small, 1) == [7]
    with pytest.raises(AssertionError, match="Wrong client prefix"):
        await other.receive(mine)
    with pytest.raises(TypeError, match="Channel name"):
        await layer.send("¯\\_(ツ)_/¯", {"type": "x"})
    with pytest.raises(TypeError, match="serialize"):
        await layer.send("normal", {"type": "x", "n": {1}})
    with pytest.raises(AssertionError, match="not a dict"):
        await layer.group_send("room", "x")
    elsewhere = make(prefix="other")
    await elsewhere.send("normal", {"type": "x", "n": 1})
    assert await drain(elsewhere, "normal", 1) == [1]


async def test_a_cancelled_receive_loses_nothing_and_a_message_is_a_copy() -> None:
    layer = make()
    waiting = asyncio.create_task(layer.receive("work"))
    await asyncio.sleep(0)
    message = {"type": "x", "n": [1]}
    await layer.send("work", message)
    waiting.cancel()
    message["n"] = []
    assert (await receive(layer, "work"))["n"] == [1]


async def test_messages_expire() -> None:
    layer = make(expiry=0.5)
    await layer.send("work", {"type": "x", "n": 1})
    await asyncio.sleep(0.6)
    await layer.send("work", {"type": "x", "n": 2})
    assert await drain(layer, "work", 1) == [2]


async def test_groups(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wsgateway.layer")
    layer, other = make(capacity=1), make(capacity=1)
    full, free = await layer.new_channel(), await other.new_channel()
    for name in (full, free, "normal"):
        await layer.group_add("room", name)
    await layer.send(full, {"type": "x", "n": 0})
    await other.group_send("room", {"type": "x", "n": 1})
    assert await drain(other, free, 1) == [1]
    assert await drain(layer, "normal", 1) == [1]
    assert await drain(layer, full, 1) == [0]
    assert "1 of 1 channels over capacity in group room" in caplog.text
    await layer.group_discard("room", full)
    await layer.group_discard("room", "never-added")
    await layer.group_send("room", {"type": "x", "n": 2})
    assert await drain(layer, "normal", 1) == [2]
    await layer.flush()
    await layer.group_send("room", {"type": "x", "n": 3})
    assert not layer.local.groups.by_name
    assert not layer.local.mailboxes


async def test_durable_groups_reach_inboxes_and_inboxes_reach_them() -> None:
    layer = make(capacity=1)
    group = wsgateway.inbox_group("orders", "ann@example.com")
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    await layer.group_send(group, {"type": "ws.message", "text": "hi"})
    await layer.group_send(group, {"type": "order.paid", "id": 7})
    await wsgateway.asend("orders", "ann@example.com", bytes=b"\xff")
    assert_sent("orders", "ann@example.com", text="hi", count=1)
    event = {"type": "order.paid", "id": 7}
    assert assert_sent("orders", "ann@example.com", event=event).event == event
    with pytest.raises(AssertionError, match=r"it got: 'hi', \{'type': .*, 'id': 7\}, b"):
        assert_sent("orders", "ann@example.com", event={"type": "x"})
    assert [await receive(layer, channel) for _ in range(3)] == [
        {"type": "ws.message", "text": "hi"},
        event,
        {"type": "ws.message", "bytes": b"\xff"},
    ]
    await layer.group_discard(group, channel)
    await layer.group_send(group, {"type": "x"})
    assert len(sent("orders")) == 4
    with pytest.raises(MessageTooLarge):
        await layer.group_send(group, {"type": "ws.message", "text": "x" * 2_000_000})


async def test_a_socket_gets_what_is_sent_to_its_users_group(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    layer: Any = get_channel_layer()
    await layer.group_send("orders.ann", {"type": "ws.message", "text": "before"})
    client = WebsocketCommunicator(
        URLRouter(websocket_urlpatterns), "/ws/orders/", headers=[(b"cookie", b"user=ann")]
    )
    assert await client.connect() == (True, None)
    await layer.group_send("orders.ann", {"type": "ws.message", "text": "after"})
    assert [await client.receive_from(), await client.receive_from()] == ["before", "after"]
    await client.disconnect()


async def test_only_groups_of_services_are_durable(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: set[str] = set()
    monkeypatch.setattr(durable, "meant_services", meant)
    monkeypatch.setattr(group_names, "meant_services", meant)
    layer = make()
    await layer.group_send("chat.lobby", {"type": "x"})
    assert not caplog.records
    for _ in range(2):
        await layer.group_send(wsgateway.inbox_group("oders", "ann"), {"type": "x"})
    await until(lambda: caplog.records, 20, "a warning")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "did you mean 'orders'?" in caplog.text
    assert_not_sent()
    settings.WSGATEWAY_DURABLE_GROUPS = ["chat.*"]
    channel = await layer.new_channel()
    await layer.group_add("chat.lobby", channel)
    await layer.group_send("chat.lobby", {"type": "x", "n": 1})
    assert await drain(layer, channel, 1) == [1]
    assert len(sent()) == 1


async def test_synchronous_code_in_threads_wakes_readers() -> None:
    layer = make(capacity=1000)
    reading = asyncio.create_task(drain(layer, "work", 400))
    await asyncio.sleep(0)

    def send(number: int) -> None:
        for _ in range(100):
            layer.send_sync("work", {"type": "x", "n": number})
        layer.group_send_sync("orders.ann", {"type": "x", "n": number})

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    got = await asyncio.wait_for(reading, 20)
    assert sorted(got) == sorted(list(range(4)) * 100)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(sent("orders", "ann")) == 4
    with pytest.raises(RuntimeError, match="event loop"):
        layer.send_sync("work", {"type": "x"})


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(count: int, run: Callable[[int], object]) -> list[BaseException]:
    """Return what *run* raises in *count* threads; it gets each one's number."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


@pytest.mark.usefixtures("_threads_switch_often")
def test_loops_that_end_in_several_threads() -> None:
    """Two threads forgot the same closed loop, and `group_send` raised `KeyError`."""
    layer = make()

    def run(_: int) -> None:
        for _ in range(100):
            asyncio.run(layer.group_send("group", {"type": "x"}))

    assert in_threads(8, run) == []


@pytest.mark.usefixtures("_threads_switch_often")
def test_what_several_threads_store_is_kept() -> None:
    """A list that one thread had replaced took another one's message, which was lost."""

    async def store(number: int) -> None:
        for _ in range(100):
            await wsgateway.asend("orders", "ann", text=str(number))

    assert in_threads(6, lambda number: asyncio.run(store(number))) == []
    assert len(sent("orders", "ann")) == 600


@pytest.mark.usefixtures("_threads_switch_often")
def test_flush_while_threads_send(caplog: pytest.LogCaptureFixture) -> None:
    """It failed on a channel that another thread had just made, and kept the rest."""
    layer, is_over = make(), threading.Event()

    async def flush() -> None:
        await layer.new_channel()
        try:
            for _ in range(8):
                await layer.flush()
        finally:
            is_over.set()

    async def send() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            await layer.send(f"x.{layer.client_prefix}!{number}", {"type": "x"})

    assert in_threads(3, lambda number: asyncio.run(send() if number else flush())) == []
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_background_connections_of_former_tests_are_freed() -> None:
    """Each test left a broker, with all that was stored in it, until the process ended."""

    def brokers() -> int:
        gc.collect()
        return sum(isinstance(each, MemoryBroker) for each in gc.get_objects())

    before = brokers()
    for _ in range(10):
        empty_store()
        await asyncio.to_thread(wsgateway.send, "orders", "ann", text="hi")
    await until(lambda: brokers() <= before + 1, 20, "only the last test's broker is left")


async def test_message_is_received_after_the_connection_was_closed() -> None:
    """Telling a sender that there is room again failed, and the message was lost with it."""
    layer, other = make(capacity=1), make()
    channel = await layer.new_channel()
    await other.send(channel, {"type": "x", "n": 1})
    await until(lambda: channel.encode() in layer.local.complaints.told, what="it is full")
    await layer.connections.current().close()
    assert await drain(layer, channel, 1) == [1]


async def test_channels_stay_where_a_membership_begins(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """`new_channel` moved them before it had begun, and nobody could end it any more."""
    settings.WSGATEWAY_BROKER_TIMEOUT = 1.0
    layer = make()
    begun, goes_on = threading.Event(), threading.Event()
    ensure = MemoryChannelStore.ensure

    async def late(self: MemoryChannelStore, capacity: int) -> None:
        begun.set()
        await asyncio.to_thread(goes_on.wait, 20)
        await ensure(self, capacity)

    monkeypatch.setattr(MemoryChannelStore, "ensure", late)
    adding = asyncio.create_task(asyncio.to_thread(async_to_sync(layer.group_add), "g", "work"))
    await asyncio.to_thread(begun.wait, 20)
    await layer.new_channel()
    goes_on.set()
    await adding
    await make().group_discard("g", "work")
    assert not layer.local.groups.by_name
