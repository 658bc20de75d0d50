"""Which groups are durable: those that name an inbox of a service that exists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import wsgateway
from tests.integration.layers import Make, drain, layers, nats_of, receive
from tests.support import until
from tests.troubleshooting import Symptom
from wsgateway.broker.messages import Position
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.log import NatsLog
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer import NatsChannelLayer, durable
from wsgateway.protocol import group_names
from wsgateway.protocol.subjects import Inbox


@pytest.fixture
async def make(nats_settings: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_settings.NATS_BROKER_URL, prefix) as make:
        yield make


async def stored(layer: NatsChannelLayer, inbox: Inbox) -> int:
    """Return how many messages the inbox holds."""
    node = await layer.connections.ready()
    await node.broker.wait_ready()
    return await node.broker.inboxes.count(inbox)


@pytest.mark.parametrize("user", ["ann", "ann.smith", "ann@example.com", "jürgen", "a..b", "=40"])
async def test_every_users_group_is_durable(make: Make, user: str) -> None:
    """``orders.ann.smith`` was quietly not durable, ``orders.ann@example.com`` a TypeError."""
    layer = make()
    group = wsgateway.inbox_group("orders", user)
    await layer.group_send(group, {"type": "x", "n": 1})
    assert await stored(layer, Inbox("orders", user)) == 1
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    await asyncio.to_thread(layer.group_send_sync, group, {"type": "x", "n": 2})
    assert await drain(layer, channel, 1) == [2]
    await layer.group_discard(group, channel)
    assert not layer.local.groups.by_name


async def test_a_group_that_belongs_to_no_service_is_not_stored(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``chat.42`` is an application's own; it costs no round trip for each message."""
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add("chat.42", channel)
    await layer.group_send("chat.42", {"type": "x", "n": 0})
    asked: list[str] = []
    api = JetStream.api

    async def counted(self: JetStream, name: str, *args: Any, **options: Any) -> Any:
        if name == "STREAM.NAMES":
            asked.append(name)
        return await api(self, name, *args, **options)

    monkeypatch.setattr(JetStream, "api", counted)
    for number in range(1, 50):
        await layer.group_send("chat.42", {"type": "x", "n": number})
    assert asked == []
    assert await drain(layer, channel, 50) == list(range(50))
    assert await stored(layer, Inbox("chat", "42")) == 0


async def test_what_does_not_exist_is_looked_for_in_the_background(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender waited for the broker every few seconds, and failed if JetStream was away."""
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add("chat.42", channel)
    await layer.group_send("chat.42", {"type": "x", "n": 0})
    node = await layer.connections.ready()
    nats_of(node).services.invalidate()
    asked: list[str] = []
    api = JetStream.api

    async def away(self: JetStream, name: str, *args: Any, **options: Any) -> Any:
        if name != "STREAM.NAMES":
            return await api(self, name, *args, **options)
        asked.append(name)
        return await asyncio.Event().wait()

    monkeypatch.setattr(JetStream, "api", away)
    for number in range(1, 5):
        await layer.group_send("chat.42", {"type": "x", "n": number})
    assert await drain(layer, channel, 5) == list(range(5))
    await until(lambda: len(asked) >= 2, 10, "somebody looks, at the queues and at the topics")
    assert len(asked) == 2
    for task in list(layer.directory.looking):
        task.cancel()


async def test_a_group_becomes_durable_once_its_service_exists(
    make: Make, settings: Any, prefix: str
) -> None:
    """Another process makes the service; members and senders here follow."""
    member, sender = make(), make()
    channel = await member.new_channel()
    await member.group_add("later.ann", channel)
    await member.group_add("later.ann", "work")
    await sender.group_send("later.ann", {"type": "x", "n": 1})
    assert await drain(member, channel, 1) == [1]
    assert await drain(member, "work", 1) == [1]
    settings.WSGATEWAY_SERVICES = ["later"]
    broker = broker_from_settings(wsgateway_settings)
    try:
        await broker.set_up()
    finally:
        await broker.close()
    group = member.local.groups.by_name["later.ann"]
    await until(lambda: group.inbox == Inbox("later", "ann"), 20, "the member follows")
    await group.subscriptions[channel.encode()].started()
    await until(
        lambda: sender.connections.current().broker.known_service("later") is True,
        20,
        "the sender follows",
    )
    await sender.group_send("later.ann", {"type": "x", "n": 2})
    assert await stored(sender, Inbox("later", "ann")) == 1
    assert await drain(member, channel, 1) == [2]
    assert await drain(member, "work", 1) == [2]


async def test_the_open_mode_makes_every_two_part_name_durable(make: Make, settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["*"]
    layer = make()
    await layer.group_send("chat.42", {"type": "x", "n": 1})
    assert await stored(layer, Inbox("chat", "42")) == 1


async def test_a_pattern_makes_any_group_durable(make: Make, settings: Any) -> None:
    settings.WSGATEWAY_DURABLE_GROUPS = ["chat.*"]
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add("chat.42", channel)
    await layer.group_send("chat.42", {"type": "x", "n": 1})
    assert await drain(layer, channel, 1) == [1]
    assert layer.local.groups.by_name["chat.42"].inbox is not None
    assert await stored(layer, Inbox("chat", "42")) == 0  # it is not a client's inbox


@pytest.mark.parametrize("call", ["group_send", "group_add", "group_send_sync"])
async def test_a_name_that_looks_meant_for_an_inbox_is_warned_about_once(
    make: Make, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    caplog.set_level(logging.WARNING, "wsgateway.layer")
    layer = make()
    channel = await layer.new_channel()
    for group in ("orders.ann.smith", "orders.ann.smith", "room.1.2", "orders..ann", "plain"):
        if call == "group_add":
            await layer.group_add(group, channel)
        elif call == "group_send":
            await layer.group_send(group, {"type": "x"})
        else:
            await asyncio.to_thread(layer.group_send_sync, group, {"type": "x"})

    def warned() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return sorted(text.split("'")[1] for text in texts if "does not name an inbox" in text)

    await until(lambda: len(warned()) >= 2, 10, "both are warned about")
    await until(lambda: not layer.directory.looking, 10, "all names are looked at")
    assert warned() == ["orders..ann", "orders.ann.smith"]


@pytest.mark.parametrize("call", ["group_send", "group_add", "group_send_sync"])
@pytest.mark.troubleshooting("group … names an inbox, but its messages are not stored")
async def test_an_inbox_of_a_service_that_does_not_exist_is_warned_about_once(
    symptom: Symptom,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """``inbox_group("oders", …)`` was an ephemeral group, in silence."""
    caplog.set_level(logging.WARNING, "wsgateway.layer")
    monkeypatch.setattr(group_names, "meant_services", set())
    monkeypatch.setattr(durable, "meant_services", group_names.meant_services)
    layer = make()
    channel = await layer.new_channel()
    names = [wsgateway.inbox_group("oders", user) for user in ("ann", "bob", "ann@example.com")]
    names += [wsgateway.inbox_group("orders", "ann"), "chat.lobby", "wrong..ann.40example"]
    for group in names:
        if call == "group_add":
            await layer.group_add(group, channel)
        elif call == "group_send":
            await layer.group_send(group, {"type": "x"})
        else:
            await asyncio.to_thread(layer.group_send_sync, group, {"type": "x"})

    def warned() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    await until(lambda: len(warned()) >= 2, 10, "both are warned about")
    await until(lambda: not layer.directory.looking, 10, "all names are looked at")
    assert warned() == [
        "group 'oders.ann' names an inbox, but its messages are not stored: service 'oders' does "
        "not exist; did you mean 'orders'? Otherwise declare it with @service or "
        'WSGATEWAY_SERVICES, then restart, or run "manage.py setup_streams"',
        "group 'wrong..ann.40example' names an inbox, but its messages are not stored: service "
        "'wrong' does not exist; declare it with @service or WSGATEWAY_SERVICES, then restart, or "
        'run "manage.py setup_streams"',
    ]
    symptom.must_show_in(caplog.text)


@pytest.mark.parametrize("call", ["group_send", "group_send_sync"])
async def test_a_service_that_only_another_process_declares_has_durable_groups(
    make: Make, settings: Any, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Whether a message is stored does not depend on who publishes it."""
    caplog.set_level(logging.WARNING, "wsgateway.layer")
    settings.WSGATEWAY_SERVICES = ["elsewhere"]
    broker = broker_from_settings(wsgateway_settings)
    try:
        await broker.set_up()
    finally:
        await broker.close()
    settings.WSGATEWAY_SERVICES = []
    sender, member = make(), make()
    group = wsgateway.inbox_group("elsewhere", "ann")
    if call == "group_send":
        await sender.group_send(group, {"type": "x", "n": 1})
    else:
        await asyncio.to_thread(sender.group_send_sync, group, {"type": "x", "n": 1})
    assert await stored(sender, Inbox("elsewhere", "ann")) == 1
    channel = await member.new_channel()
    await member.group_add(group, channel)
    assert member.local.groups.by_name[group].inbox == Inbox("elsewhere", "ann")
    await until(lambda: not sender.directory.looking, 10, "the name is looked at")
    assert "not stored" not in caplog.text


async def test_an_invalid_name_says_how_to_make_a_valid_one(make: Make) -> None:
    layer = make()
    for call in (
        layer.group_send("orders.ann@example.com", {"type": "x"}),
        layer.group_add("orders.ann@example.com", "work"),
    ):
        with pytest.raises(TypeError, match=r"Group name must be .*wsgateway\.inbox_group"):
            await call


async def test_a_socket_and_a_consumer_share_the_group(make: Make) -> None:
    """What ``wsgateway.asend`` stores for a user reaches the group's members."""
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add(wsgateway.inbox_group("orders", "ann@example.com"), channel)
    await wsgateway.asend("orders", "ann@example.com", text="hi")
    assert await receive(layer, channel) == {"type": "ws.message", "text": "hi"}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_is_a_frame(kind: Any) -> None:
    """Only bytes were; the others became events, which no socket gets."""
    message = {"type": "ws.message", "bytes": kind(b"\xff")}
    assert durable.payload_of(message, lambda event: b"packed") == (b"\xff", "binary")


async def test_a_member_that_could_not_begin_begins_later(
    make: Make, settings: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was away when its group became durable: it never heard anything again."""
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add("later.ann", channel)
    group = layer.local.groups.by_name["later.ann"]
    position = NatsLog.position
    failed: list[bool] = []

    async def unavailable(log: NatsLog) -> Position:
        if failed:
            return await position(log)
        failed.append(True)
        raise BrokerUnavailable("away")

    monkeypatch.setattr(NatsLog, "position", unavailable)
    settings.WSGATEWAY_SERVICES = ["later"]
    broker = broker_from_settings(wsgateway_settings)
    try:
        await broker.set_up()
    finally:
        await broker.close()
    await until(lambda: failed, 20, "the first attempt")
    node = await layer.connections.ready()
    await until(lambda: group.subscriptions[channel.encode()].epoch, 20, "the next one")
    await until(lambda: node.broker.known_service("later") is True, 20, "the sender follows")
    await layer.group_send("later.ann", {"type": "x", "n": 1})
    assert await drain(layer, channel, 1) == [1]
