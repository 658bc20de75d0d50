"""The channel layer's specification, box by box (FIELD.md 1), with several processes' layers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull, MessageTooLarge

from tests.integration.layers import Make, drain, layers, nothing_comes, receive
from tests.support import until
from wsgateway.layer import NatsChannelLayer, fullness, mailbox
from wsgateway.layer.sharing import full_channels

ALL_TYPES = {
    "type": "all.types",
    "bytes": b"\x00\xff",
    "str": "ü\x00🙂",
    "int": -(2**63),
    "big": 2**63 - 1,
    "float": 1.5e300,
    "list": [1, [2, {"a": None}]],
    "dict": {"": {"deep": [True, False, None]}},
}


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


@pytest.fixture
def layer(make: Make) -> NatsChannelLayer:
    return make()


async def settled(layer: NatsChannelLayer) -> None:
    """Wait until the server has what the layer sent, and the layer what came before."""
    await layer.local.confirm()


# -- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["process", "normal", "group", "durable", "normal in group"])
async def test_every_type_arrives_as_it_was_sent(make: Make, way: str) -> None:
    sender, receiver = make(), make()
    channel = "normal" if way.startswith("normal") else await receiver.new_channel()
    group = "service.user" if way == "durable" else "group"
    if way not in ("process", "normal"):
        await receiver.group_add(group, channel)
    message = copy.deepcopy(ALL_TYPES)
    if way in ("process", "normal"):
        await sender.send(channel, message)
    else:
        await sender.group_send(group, message)
    assert message == ALL_TYPES
    assert await receive(receiver, channel) == ALL_TYPES


async def test_members_never_see_each_others_changes(make: Make) -> None:
    layer = make()
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "x", "list": [1]})
    first = await receive(layer, channels[0])
    first["list"].append(2)
    assert (await receive(layer, channels[1]))["list"] == [1]


@pytest.mark.parametrize("message", ["text", None, ["x"], {"type": "x", "__asgi_channel__": "y"}])
async def test_what_is_no_message_is_refused(layer: NatsChannelLayer, message: Any) -> None:
    with pytest.raises(AssertionError):
        await layer.send("channel", message)
    with pytest.raises(AssertionError):
        await layer.group_send("group", message)


@pytest.mark.parametrize("group", ["", "group", "service.user"])
async def test_a_megabyte_of_json_is_stored(make: Make, group: str) -> None:
    """FIELD.md 1.1: 130,000 floats are 520 KB of JSON, and more than NATS' limit as msgpack."""
    layer = make()
    message = {"type": "big", "x": [0.0] * 130_000, "text": "ä" * 1_000_000}
    channel = await layer.new_channel() if group else "normal"
    if group:
        await layer.group_add(group, channel)
        await layer.group_send(group, message)
    else:
        await layer.send(channel, message)
    assert await receive(layer, channel) == message


async def test_too_large_is_said_with_the_limit(make: Make) -> None:
    layer = make(max_message_size=1000)
    with pytest.raises(MessageTooLarge, match=re.escape("max_message_size (1000 bytes)")):
        await layer.send("channel", {"type": "x", "text": "y" * 1000})


# -- names -----------------------------------------------------------------------------------

ODD_NAMES = ["a..b", ".a", "a.", "chat\n", "٣", "a-b", "a_b", "a.b", "A", "a" * 99]


async def test_odd_names_are_distinct_groups(make: Make) -> None:
    layer = make()
    channels = {name: await layer.new_channel() for name in ODD_NAMES}
    for name, channel in channels.items():
        await layer.group_add(name, channel)
    for number, name in enumerate(ODD_NAMES):
        await layer.group_send(name, {"type": "x", "n": number})
    for number, (name, channel) in enumerate(channels.items()):
        assert await drain(layer, channel, 1) == [number], name
        await nothing_comes(layer, channel, f"end-{number}")


async def test_odd_names_are_distinct_channels(make: Make) -> None:
    layer = make()
    for number, name in enumerate(ODD_NAMES):
        await layer.send(name, {"type": "x", "n": number})
    for number, name in enumerate(ODD_NAMES):
        assert await drain(layer, name, 1) == [number], name


@pytest.mark.parametrize("name", ["", "a b", "a*", "a>", "ä", "a" * 100, "a!b!c", 1, None, b"a"])
async def test_invalid_names_raise_type_error(layer: NatsChannelLayer, name: Any) -> None:
    message = {"type": "x"}
    for call in (
        lambda: layer.send(name, message),
        lambda: layer.receive(name),
        lambda: layer.group_add("group", name),
        lambda: layer.group_add(name, "channel"),
        lambda: layer.group_discard(name, "channel"),
        lambda: layer.group_send(name, message),
    ):
        with pytest.raises(TypeError):
            await call()


# -- channels --------------------------------------------------------------------------------


async def test_normal_channel_keeps_messages_for_one_reader_each(make: Make) -> None:
    sender, *readers = make(), make(), make(), make()
    for number in range(60):
        await sender.send("work", {"type": "x", "n": number})
    got: list[list[int]] = [[] for _ in readers]
    complete = asyncio.Event()

    async def read(index: int) -> None:
        while True:
            got[index].append((await readers[index].receive("work"))["n"])
            if sum(map(len, got)) == 60:
                complete.set()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(read(index)) for index in range(len(readers))]
    async with asyncio.timeout(30):
        await complete.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert sorted([*got[0], *got[1], *got[2]]) == list(range(60))
    for numbers in got:
        assert numbers == sorted(numbers)


async def test_process_channel_is_refused_to_other_processes(make: Make) -> None:
    channel = await make().new_channel()
    with pytest.raises(AssertionError, match="Wrong client prefix"):
        await make().receive(channel)


async def test_new_channels_are_distinct_and_named_as_specified(layer: NatsChannelLayer) -> None:
    names = {await layer.new_channel("pre") for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(rf"pre\.{layer.client_prefix}![0-9a-f]{{32}}", name) for name in names)


async def test_one_writers_order_holds_across_send_and_group_send(make: Make) -> None:
    sender, receiver = make(), make(capacity=1000)
    channel = await receiver.new_channel()
    await receiver.group_add("one", channel)
    await receiver.group_add("two", channel)
    for number in range(0, 600, 3):
        await sender.send(channel, {"type": "x", "n": number})
        await sender.group_send("one", {"type": "x", "n": number + 1})
        await sender.group_send("two", {"type": "x", "n": number + 2})
    assert await drain(receiver, channel, 600) == list(range(600))


async def test_several_wait_on_one_channel_and_each_gets_one(make: Make) -> None:
    layer = make()
    channel = await layer.new_channel()
    waiting = [asyncio.create_task(receive(layer, channel)) for _ in range(10)]
    await asyncio.sleep(0)
    for number in range(10):
        await layer.send(channel, {"type": "x", "n": number})
    assert sorted([(await task)["n"] for task in waiting]) == list(range(10))


# -- capacity, expiry ------------------------------------------------------------------------


async def test_full_normal_channel_refuses_at_the_sender(make: Make) -> None:
    layer = make(capacity=3, channel_capacity={"small*": 1, re.compile("small-no"): 9})
    for name, capacity in (("channel", 3), ("small-not-first", 1)):
        for number in range(capacity):
            await layer.send(name, {"type": "x", "n": number})
        with pytest.raises(ChannelFull, match=name):
            await layer.send(name, {"type": "x", "n": capacity})
        assert await drain(layer, name, 1) == [0]


async def test_full_process_channel_refuses_and_others_do_not_suffer(make: Make) -> None:
    layer = make(capacity=3)
    full, free = await layer.new_channel(), await layer.new_channel()
    await receive_nothing(layer, full)
    for number in range(3):
        await layer.send(full, {"type": "x", "n": number})
    async with asyncio.timeout(20):
        while not layer.local.mailboxes[full.encode()].is_full():  # until all have come back
            await asyncio.sleep(0.01)
    with pytest.raises(ChannelFull, match=full):
        await layer.send(full, {"type": "x", "n": 99})
    await layer.send(free, {"type": "x", "n": 7})
    assert await drain(layer, free, 1) == [7]
    assert await drain(layer, full, 3) == [0, 1, 2]


@pytest.mark.parametrize("way", ["sync", "async_to_sync", "gather"])
async def test_a_burst_to_ones_own_channel_is_refused_however_it_is_sent(
    make: Make, way: str
) -> None:
    """What did not fit was dropped: none of the burst had come back when the last was sent."""
    layer = make(capacity=3)
    channel = await layer.new_channel()
    sends = {"sync": layer.send_sync, "async_to_sync": async_to_sync(layer.send)}

    def burst() -> list[BaseException | None]:
        results: list[BaseException | None] = []
        for number in range(10):
            try:
                results.append(sends[way](channel, {"type": "x", "n": number}))
            except ChannelFull as exc:
                results.append(exc)
        return results

    if way == "gather":
        messages = [{"type": "x", "n": number} for number in range(10)]
        results = await asyncio.gather(
            *(layer.send(channel, message) for message in messages), return_exceptions=True
        )
    else:
        results = await asyncio.to_thread(burst)
    assert [type(result) for result in results] == [type(None)] * 3 + [ChannelFull] * 7
    assert await drain(layer, channel, 3) == [0, 1, 2]


async def test_a_burst_to_ones_own_channel_is_taken_while_somebody_reads(make: Make) -> None:
    layer = make(capacity=3)
    channel = await layer.new_channel()
    reading = asyncio.create_task(drain(layer, channel, 1000))
    await asyncio.sleep(0)
    for number in range(1000):
        await layer.send(channel, {"type": "x", "n": number})
    assert await reading == list(range(1000))


async def test_what_is_lost_on_its_way_takes_no_room_for_long(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "COMING_VALID", 0.2)
    layer = make(capacity=1)
    channel = await layer.new_channel()
    node = layer.connections.current()
    with monkeypatch.context() as context:
        context.setattr(node.bus, "publish", lambda *args, **kwargs: None)
        await layer.send(channel, {"type": "x", "n": 0})
    with pytest.raises(ChannelFull):
        await layer.send(channel, {"type": "x", "n": 1})
    box = layer.local.mailboxes[channel.encode()]
    await until(box.has_room, 10, "it counts as lost")
    await layer.send(channel, {"type": "x", "n": 2})
    assert await drain(layer, channel, 1) == [2]


async def test_a_new_prefix_takes_readers_and_groups_along(make: Make, prefix: str) -> None:
    layer, before, after = make(), make(), make(prefix=f"{prefix}-new")
    layer.group_expiry = 3600
    channel = await layer.new_channel()
    groups = ("group", "service.user")
    for group in groups:
        await layer.group_add(group, channel)
    waiting = [
        asyncio.create_task(receive(layer, channel)),
        asyncio.create_task(receive(layer, "normal")),
    ]
    await asyncio.sleep(0.1)
    layer.prefix = f"{prefix}-new"
    other = await layer.new_channel()  # the layer has moved when this returns
    for number, sender in enumerate((before, after)):
        for group in groups:
            await sender.group_send(group, {"type": "x", "n": group, "new": number})
        await sender.send("normal", {"type": "x", "n": "normal", "new": number})
    got = [await waiting[0], await receive(layer, channel)]
    assert sorted((message["n"], message["new"]) for message in got) == [
        ("group", 1),
        ("service.user", 1),
    ]
    assert (await waiting[1])["new"] == 1
    await layer.send(other, {"type": "x", "n": 1})
    assert await drain(layer, other, 1) == [1]


@pytest.mark.parametrize("capacity", [1, 3])
async def test_a_full_channel_of_another_process_refuses_at_the_sender(
    make: Make, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fullness, "VALID", 3600.0)  # only the owner says that there is room
    owner, sender = make(capacity=capacity), make()
    channel = await owner.new_channel()
    name = channel.encode()
    for number in range(capacity):
        await sender.send(channel, {"type": "x", "n": number})
    await until(lambda: name in full_channels, 20, "the owner says so")
    for _ in range(3):
        with pytest.raises(ChannelFull, match=channel):
            await sender.send(channel, {"type": "x", "n": 99})
        with pytest.raises(ChannelFull, match=channel):
            await asyncio.to_thread(sender.send_sync, channel, {"type": "x", "n": 99})
    for number in range(10):  # refused for as long as there is no room, and no longer
        assert await drain(owner, channel, 1) == [number]
        await until(lambda: name not in full_channels, 20, "there is room")
        await sender.send(channel, {"type": "x", "n": number + capacity})
        await until(lambda: name in full_channels, 20, "the owner says so")
    assert await drain(owner, channel, capacity) == list(range(10, 10 + capacity))
    waiting = asyncio.create_task(drain(owner, channel, 100))
    for number in range(100):  # a waiting reader makes room each time
        await until(lambda: name not in full_channels, 20, "there is room")
        await sender.send(channel, {"type": "x", "n": number})
        await settled(sender)
        await settled(owner)
        await asyncio.sleep(0)
    assert await waiting == list(range(100))


async def test_a_full_channel_whose_process_is_gone_is_not_full_for_ever(make: Make) -> None:
    owner, sender = make(capacity=1), make()
    channel = await owner.new_channel()
    await sender.send(channel, {"type": "x"})
    await until(lambda: channel.encode() in full_channels, 10, "the owner says so")
    await owner.close()
    await until(lambda: channel.encode() not in full_channels, 10, "nobody says so any more")
    await sender.send(channel, {"type": "x"})


async def test_flush_makes_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fullness, "VALID", 3600.0)
    owner, sender = make(capacity=1), make()
    channel = await owner.new_channel()
    await sender.send(channel, {"type": "x"})
    await until(lambda: channel.encode() in full_channels, 10, "the owner says so")
    await sender.flush()
    await sender.send(channel, {"type": "x", "n": 1})
    assert await drain(owner, channel, 1) == [1]


async def receive_nothing(layer: NatsChannelLayer, channel: str) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(layer.receive(channel), 0.1)


async def test_full_members_miss_a_group_message_and_the_log_says_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wsgateway.layer")
    layer = make(capacity=2)
    full, free = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("group", full)
    for number in range(2):
        await layer.group_send("group", {"type": "x", "n": number})
    await settled(layer)  # both have come back
    await layer.group_add("group", free)
    await layer.group_send("group", {"type": "x", "n": 2})
    assert await drain(layer, free, 1) == [2]
    assert await drain(layer, full, 2) == [0, 1]
    [record] = [r for r in caplog.records if "over capacity" in r.getMessage()]
    assert record.levelno == logging.INFO
    assert record.getMessage() == "1 of 2 channels over capacity in group group"


@pytest.mark.parametrize("way", ["process", "normal", "group"])
async def test_messages_expire_from_the_time_of_sending(make: Make, way: str) -> None:
    layer = make(expiry=0.8)
    channel = "normal" if way == "normal" else await layer.new_channel()
    await layer.group_add("group", channel)

    async def send(number: int) -> None:
        if way == "group":
            await layer.group_send("group", {"type": "x", "n": number})
        else:
            await layer.send(channel, {"type": "x", "n": number})

    await send(0)
    until = time.monotonic() + 0.9
    while time.monotonic() < until:
        await asyncio.sleep(0.05)
    await send(1)
    assert await drain(layer, channel, 1) == [1]


# -- groups ----------------------------------------------------------------------------------


async def test_membership_is_idempotent(make: Make) -> None:
    layer = make()
    channel = await layer.new_channel()
    await layer.group_discard("group", channel)
    for _ in range(3):
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "x", "n": 1})
    await layer.group_send("unknown", {"type": "x", "n": 9})
    assert await drain(layer, channel, 1) == [1]
    await nothing_comes(layer, channel, "end")
    for _ in range(2):
        await layer.group_discard("group", channel)
    await layer.group_send("group", {"type": "x", "n": 2})
    await nothing_comes(layer, channel, "end")


async def test_membership_is_forwarded_to_the_owner(make: Make) -> None:
    owner, other, sender = make(), make(), make()
    channel = await owner.new_channel()
    for group in ("group", "service.forwarded"):
        await other.group_add(group, channel)
        await sender.group_send(group, {"type": "x", "n": 1})
        assert await drain(owner, channel, 1) == [1]
        await other.group_discard(group, channel)
        await sender.group_send(group, {"type": "x", "n": 2})
        await nothing_comes(owner, channel, f"end-{group}")


async def test_joining_a_channel_whose_process_is_gone_is_no_error(make: Make) -> None:
    await make().group_add("group", "specific.0123456789abcdef!x")


async def test_normal_channel_in_a_group_gets_each_message_once(make: Make) -> None:
    """However many processes have added it."""
    one, two, sender = make(), make(), make()
    for group in ("group", "service.normal-member"):
        await one.group_add(group, "shared")
        await two.group_add(group, "shared")
        for number in range(20):
            await sender.group_send(group, {"type": "x", "n": number})
        assert await drain(one, "shared", 20) == list(range(20))
    await sender.send("shared", {"type": "the.end"})
    assert await receive(one, "shared") == {"type": "the.end"}


@pytest.mark.parametrize("group", ["group", "service.discarded"])
async def test_a_normal_channel_leaves_a_group_for_every_process(make: Make, group: str) -> None:
    one, two, sender = make(), make(), make()
    for _ in range(3):
        for layer in (one, two):
            await layer.group_add(group, "shared")
        await sender.group_send(group, {"type": "x", "n": 1})
        assert await drain(one, "shared", 1) == [1]
        await one.group_discard(group, "shared")
        await sender.group_send(group, {"type": "x", "n": 2})
        await sender.send("shared", {"type": "x", "n": 3})
        assert await drain(two, "shared", 1) == [3]
        await one.group_add(group, "shared")  # which its own farewell does not end
        await sender.group_send(group, {"type": "x", "n": 4})
        assert await drain(two, "shared", 1) == [4]


async def test_flush_empties_every_process(make: Make) -> None:
    one, two = make(), make()
    channel = await two.new_channel()
    await two.group_add("group", channel)
    await one.send(channel, {"type": "x", "n": 1})
    await one.send("normal", {"type": "x", "n": 2})
    await one.group_send("group", {"type": "x", "n": 3})
    await one.flush()
    await one.group_send("group", {"type": "x", "n": 4})
    await one.send("normal", {"type": "x", "n": 5})
    assert await drain(two, "normal", 1) == [5]
    await nothing_comes(two, channel, "end")


async def test_flush_reaches_a_process_that_reads_only_normal_channels(make: Make) -> None:
    """It had fetched a message, did not hear of the flush, and gave the message out."""
    one, worker = make(), make()
    waiting = asyncio.create_task(worker.receive("work"))
    await until(lambda: bool(worker.normal.prefetches), 20, "a reader")
    [reader] = worker.normal.prefetches.values()
    await until(lambda: reader.asked, 20, "a request")
    waiting.cancel()  # which leaves the request for messages open
    await asyncio.wait([waiting])
    await one.send("work", {"type": "x", "n": 1})
    async with asyncio.timeout(20):
        while not reader.mailbox.queue:
            await asyncio.sleep(0)
    await one.flush()
    await one.send("work", {"type": "x", "n": 2})
    assert await drain(worker, "work", 1) == [2]


async def test_prefixes_are_worlds_of_their_own(make: Make, prefix: str) -> None:
    one, two = make(), make(prefix=f"{prefix}x")
    channels = await one.new_channel(), await two.new_channel()
    await one.group_add("group", channels[0])
    await two.group_add("group", channels[1])
    await one.group_send("group", {"type": "x", "n": 1})
    await two.group_send("group", {"type": "x", "n": 2})
    assert await drain(one, channels[0], 1) == [1]
    assert await drain(two, channels[1], 1) == [2]


async def test_a_closed_layer_connects_again(make: Make) -> None:
    layer = make()
    channel = await layer.new_channel()
    await layer.close()
    await layer.close_pools()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "x", "n": 1})
    assert await drain(layer, channel, 1) == [1]


@pytest.mark.parametrize("end", ["close", "close_pools"])
@pytest.mark.parametrize("way", ["process", "normal", "group", "durable"])
@pytest.mark.parametrize("pause", [0, 0.0005, 0.1])
async def test_who_waits_when_the_layer_is_closed_connects_again(
    make: Make, way: str, end: str, pause: float
) -> None:
    """A view that ends its use of the layer as channels_redis wants it made consumers deaf."""
    layer, sender = make(), make()
    channel = "normal" if way == "normal" else await layer.new_channel()
    group = "service.user" if way == "durable" else "group"
    if way in ("group", "durable"):
        await layer.group_add(group, channel)
    waiting = [asyncio.create_task(receive(layer, channel)) for _ in range(3)]
    await asyncio.sleep(pause)
    for number in range(3):
        await getattr(layer, end)()
        if way in ("process", "group"):  # which need a connection that is there
            await until(lambda: layer.local.connection is not None, 10, "a new home")
            await settled(layer)
        message = {"type": "x", "n": number}
        if way in ("group", "durable"):
            await sender.group_send(group, message)
        else:
            await sender.send(channel, message)
        await until(lambda: sum(task.done() for task in waiting) == number + 1, 10, "received")  # noqa: B023
    assert sorted([(await task)["n"] for task in waiting]) == [0, 1, 2]


def test_the_methods_are_coroutines_and_the_extensions_declared(prefix: str) -> None:
    layer = NatsChannelLayer("nats://127.0.0.1:1", prefix=prefix)
    assert set(layer.extensions) == {"groups", "flush"}
    names = "send receive new_channel group_add group_discard group_send flush close close_pools"
    assert all(inspect.iscoroutinefunction(getattr(layer, name)) for name in names.split())


# -- durable groups --------------------------------------------------------------------------


async def test_a_frame_travels_plainly(make: Make, nats_server: Any, prefix: str) -> None:
    """Other languages, and the gateway's sockets, read it."""
    layer, client = make(), await nats.connect(nats_server.url)
    try:
        await layer.group_send("service1.user001", {"type": "ws.message", "text": "hi"})
        info = await client.jetstream().find_stream_name_by_subject(
            f"{prefix}.recv.service1.user001"
        )
        assert info == f"{prefix.upper()}_RECV"
        stored = await client.jetstream().get_msg(info, seq=1)
    finally:
        await client.close()
    assert (stored.subject, stored.data) == (f"{prefix}.recv.service1.user001", b"hi")


async def test_durable_members_miss_nothing_because_of_capacity_or_expiry(make: Make) -> None:
    sender, receiver = make(), make(capacity=5, expiry=0.2)
    channel = await receiver.new_channel()
    await receiver.group_add("service.user", channel)
    for number in range(200):
        await sender.group_send("service.user", {"type": "x", "n": number})
    assert await drain(receiver, channel, 200) == list(range(200))


async def test_patterns_make_other_groups_durable(make: Make, settings: Any) -> None:
    settings.WSGATEWAY_DURABLE_GROUPS = ["audit-*"]
    layer = make(capacity=2)
    channel = await layer.new_channel()
    await layer.group_add("audit-log", channel)
    for number in range(20):
        await layer.group_send("audit-log", {"type": "x", "n": number})
    assert await drain(layer, channel, 20) == list(range(20))


async def test_keys_rotate(make: Make) -> None:
    old = make(symmetric_encryption_keys=["old"])
    both = make(symmetric_encryption_keys=["new", "old"])
    plain = make()
    channel, deaf = await both.new_channel(), await plain.new_channel()
    for group in ("group", "service.secret"):
        await both.group_add(group, channel)
        await plain.group_add(group, deaf)
        await old.group_send(group, {"type": "x", "n": 1})
        assert await drain(both, channel, 1) == [1]
        await both.group_send(group, {"type": "x", "n": 2})
        assert await drain(both, channel, 1) == [2]
        await nothing_comes(plain, deaf, f"end-{len(group)}")


def test_a_string_of_keys_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="must be a list"):
        NatsChannelLayer(prefix=prefix, symmetric_encryption_keys="secret")


async def test_foreign_bytes_are_skipped(make: Make, nats_server: Any, prefix: str) -> None:
    layer, client = make(), await nats.connect(nats_server.url)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    try:
        damaged = b"\xc1\x00" + b"\x7f" * 8 + b"\xff\xff"
        for data in (damaged, b"\xc1\x04" + b"\x7f" * 8 + b"\x00\x00abc"):
            await client.publish(f"{prefix}.recv.group", data)
        await client.publish(f"{prefix}.recv.group", b"plain text")
        await client.flush()
    finally:
        await client.close()
    assert await receive(layer, channel) == {"type": "ws.message", "text": "plain text"}
    await nothing_comes(layer, channel, "group")
