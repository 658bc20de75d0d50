"""`group_add`, `group_discard` and `new_channel` return once they are in effect."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from tests.integration.layer_worker import WorkerProcess
from tests.integration.layers import Make, drain, layers, nothing_comes, receive
from tests.support import until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import handshake
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import NatsConnection
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.reader import Reader
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer import NatsChannelLayer

Start = Callable[[], WorkerProcess]


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


@pytest.fixture
def start(nats_server: Any, prefix: str) -> Iterator[Start]:
    """Start processes with a layer."""
    started: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        worker = WorkerProcess(nats_server.url)
        started.append(worker)
        worker.open(prefix)
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def pongs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The round trips from now on."""
    answers: list[bytes] = []

    def counting(handlers: Any, on_control: Callable[[bytes], None], *options: Any) -> Reader:
        def counted(line: bytes) -> None:
            if line == b"PONG":
                answers.append(line)
            on_control(line)

        return Reader(handlers, counted, *options)

    monkeypatch.setattr(handshake, "Reader", counting)
    return answers


@pytest.mark.timeout(90)
def test_another_process_may_send_right_after_group_add(start: Start) -> None:
    """82 of 300 messages never arrived: group_add returned before the server knew of it."""
    member, sender = start(), start()
    channels = [member.call("new_channel", "loop") for _ in range(100)]
    sender.call("group_send", "loop", "first", 0)  # so that it is connected
    for number in range(200):
        member.call("group_add", "loop", f"group-{number}", channels[number // 2])
        sender.call("group_send", "loop", f"group-{number}", number)
    got = [member.call("receive", "loop", channels[number // 2]) for number in range(200)]
    assert got == list(range(200))


@pytest.mark.timeout(90)
async def test_threads_may_send_right_after_group_add(make: Make) -> None:
    """Some first messages were lost: another thread's send had cleared the note to wait."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()

    def work(thread: int) -> None:
        for number in range(40):
            group = f"group-{thread}-{number}"
            async_to_sync(layer.group_add)(group, channel)
            async_to_sync(layer.group_send)(group, {"type": "x", "n": (thread, number)})

    await asyncio.gather(*(asyncio.to_thread(work, thread) for thread in range(8)))
    got = [tuple(pair) for pair in await drain(layer, channel, 320)]
    assert sorted(got) == [(thread, number) for thread in range(8) for number in range(40)]


@pytest.mark.timeout(90)
def test_nobodys_messages_come_after_group_discard_of_a_normal_channel(start: Start) -> None:
    """The other processes were told, and group_discard returned before they had heard it."""
    one, two, sender = start(), start(), start()
    for number in range(30):
        group = f"group-{number}"
        for process in (one, two):
            process.call("group_add", "loop", group, "work")
        one.call("group_discard", "loop", group, "work")
        sender.call("group_send", "loop", group, number)
        two.call("confirm", "loop")  # what came has been forwarded
    assert sender.call("stored", "loop", "work") == 0


def test_group_add_is_in_effect_when_the_owner_is_another_process(start: Start) -> None:
    owner, asker, sender = start(), start(), start()
    channel = owner.call("new_channel", "loop")
    sender.call("group_send", "loop", "first", 0)
    for number in range(100):
        asker.call("group_add", "loop", f"group-{number}", channel)
        sender.call("group_send", "loop", f"group-{number}", number)
        assert owner.call("receive", "loop", channel) == number


async def test_group_add_says_so_if_the_owner_does_not_answer(
    make: Make, nats_server: Any, prefix: str, settings: Any
) -> None:
    """It returned as if the channel were a member; nothing arrives once the process goes on."""
    settings.WSGATEWAY_BROKER_TIMEOUT = 1.0
    worker = await asyncio.to_thread(WorkerProcess, nats_server.url)
    try:
        await asyncio.to_thread(worker.open, prefix)
        channel = await asyncio.to_thread(worker.call, "new_channel", "loop")
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(BrokerUnavailable):
            await make().group_add("group", channel)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
        await asyncio.to_thread(worker.kill)


async def test_calls_at_once_share_a_round_trip(make: Make, pongs: list[bytes]) -> None:
    layer = make()
    channel = await layer.new_channel()
    pongs.clear()
    await asyncio.gather(*(layer.group_add(f"group-{number}", channel) for number in range(32)))
    assert 1 <= len(pongs) <= 2


async def test_durable_memberships_at_once_share_a_round_trip(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make()
    channel = await layer.new_channel()
    asked: list[str] = []
    api = JetStream.api

    async def counted(self: JetStream, name: str, *args: Any) -> Any:
        if name.startswith("STREAM.INFO.") and name.endswith("_RECV"):
            asked.append(name)
        return await api(self, name, *args)

    await (await layer.connections.ready()).broker.wait_ready()
    monkeypatch.setattr(JetStream, "api", counted)
    groups = [f"service.user{number}" for number in range(32)]
    await asyncio.gather(*(layer.group_add(group, channel) for group in groups))
    assert 1 <= len(asked) <= 2
    for number, group in enumerate(groups):
        await layer.group_send(group, {"type": "x", "n": number})
    assert sorted(await drain(layer, channel, 32)) == list(range(32))


async def test_a_group_that_is_in_effect_costs_no_round_trip(
    make: Make, pongs: list[bytes]
) -> None:
    layer = make()
    channels = [await layer.new_channel() for _ in range(10)]
    await layer.group_add("group", channels[0])
    pongs.clear()
    for channel in channels:
        await layer.group_add("group", channel)
    assert pongs == []
    await layer.group_send("group", {"type": "x", "n": 1})
    assert [await drain(layer, channel, 1) for channel in channels] == [[1]] * 10


async def test_a_second_member_waits_for_the_first_ones_subscription(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both join at once: neither returns before the group's subscription is in effect."""
    layer = make()
    one, two = await layer.new_channel(), await layer.new_channel()
    going_on = asyncio.Event()
    confirm = NatsConnection.confirm

    async def late(self: NatsConnection) -> None:
        await going_on.wait()
        await confirm(self)

    monkeypatch.setattr(NatsConnection, "confirm", late)
    joining = [asyncio.create_task(layer.group_add("group", name)) for name in (one, two)]
    done, _ = await asyncio.wait(joining, timeout=0.2)
    assert not done
    going_on.set()
    await asyncio.gather(*joining)


@pytest.mark.parametrize("is_connected", [True, False])
async def test_new_channel_waits_for_the_subscription_that_another_call_makes(
    make: Make, monkeypatch: pytest.MonkeyPatch, is_connected: bool
) -> None:
    """The second of two first calls returned before the server knew where its messages go.

    If both had waited for the connection, it still did.
    """
    layer = make()
    if is_connected:
        await layer.connections.ready()
    going_on = asyncio.Event()
    in_effect = NatsBroker.in_effect

    async def late(self: NatsBroker) -> None:
        await going_on.wait()
        await in_effect(self)

    monkeypatch.setattr(NatsBroker, "in_effect", late)
    first, second = (asyncio.create_task(layer.new_channel()) for _ in range(2))
    await until(lambda: layer.local.connection is not None, 10, "the channels have a connection")
    done, _ = await asyncio.wait([first, second], timeout=0.2)
    assert not done
    going_on.set()
    assert await first != await second


async def test_a_failed_group_add_leaves_no_membership(
    own_server: EmbeddedServer, prefix: str, settings: Any
) -> None:
    settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = 1.0
    async with layers(own_server.url, prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        await layer.group_add("old", channel)
        own_server.pause()
        try:
            for group in ("new", "service.user"):
                with pytest.raises(BrokerUnavailable):
                    await layer.group_add(group, channel)
        finally:
            own_server.resume()
        assert list(layer.local.groups.by_name) == ["old"]
        await layer.connections.current().bus.ready(20)
        await layer.group_add("new", channel)
        await layer.group_send("new", {"type": "x", "n": 1})
        assert await drain(layer, channel, 1) == [1]


async def test_group_add_while_the_server_is_away_waits_for_it(
    own_server: EmbeddedServer, prefix: str
) -> None:
    async with layers(own_server.url, prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        own_server.kill()
        await until(
            lambda: not layer.connections.current().bus.is_open, 20, "the connection is lost"
        )
        joining = asyncio.create_task(layer.group_add("group", channel))
        await own_server.astart()
        await joining
        await layer.group_send("group", {"type": "x", "n": 1})
        assert await drain(layer, channel, 1) == [1]


async def test_on_reconnect_comes_after_memberships_are_in_effect(
    own_server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with layers(own_server.url, prefix, on_reconnect="back") as make:
        layer: NatsChannelLayer = make()
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        going_on = asyncio.Event()
        in_effect = NatsBroker.in_effect

        async def late(self: NatsBroker) -> None:
            await going_on.wait()
            await in_effect(self)

        monkeypatch.setattr(NatsBroker, "in_effect", late)
        own_server.kill()
        await own_server.astart()
        link = layer.connections.current().bus
        await until(
            lambda: link.is_open and link.times_connected == 2, 20, "the connection is back"
        )
        waiting = asyncio.create_task(receive(layer, channel))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        going_on.set()
        assert await waiting == {"type": "back"}


async def test_leaving_at_the_request_of_somebody_who_expects_no_answer(make: Make) -> None:
    """The answer went to no subject, so the server ended the connection."""
    layer = make()
    await layer.group_add("group", "work")
    connection = layer.connections.current()
    connection.bus.publish(connection.subjects.leave("group", "work"), b"")
    await until(lambda: not layer.local.groups.by_name, 10, "it has left")
    await connection.bus.confirm()
    assert connection.bus.times_connected == 1


async def test_member_that_is_discarded_while_it_is_added_was_added(
    own_server: EmbeddedServer, prefix: str
) -> None:
    """`group_add` failed with "the channel left the group", as if NATS were unavailable."""
    async with layers(own_server.url, prefix) as make:
        layer = make()
        first, second = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("service.user", first)  # so that the group is known
        own_server.pause()
        try:
            adding = asyncio.create_task(layer.group_add("service.user", second))
            await until(lambda: second.encode() in layer.local.groups.joined, what="it joins")
            discarding = asyncio.create_task(layer.group_discard("service.user", second))
            await until(lambda: second.encode() not in layer.local.groups.joined, what="it leaves")
        finally:
            own_server.resume()
        await asyncio.gather(adding, discarding)
        await layer.group_send("service.user", {"type": "x"})
        assert await receive(layer, first) == {"type": "x"}
        await nothing_comes(layer, second, "service.user")
