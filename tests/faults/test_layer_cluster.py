"""Memberships in a cluster: in effect on every server from which somebody sends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.layer_worker import WorkerProcess
from tests.integration.layers import drain, layers, nats_of
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.nats import propagation
from wsgateway.broker.nats.propagation import Propagation
from wsgateway.exceptions import BrokerUnavailable

Start = Callable[[int], WorkerProcess]


@pytest.fixture
def start(nats_cluster: Cluster, prefix: str) -> Iterator[Start]:
    """Start processes, each with a layer that is connected to the server with that number."""
    started: list[WorkerProcess] = []

    def start(server: int) -> WorkerProcess:
        worker = WorkerProcess(nats_cluster.urls[server])
        started.append(worker)
        worker.open(prefix)
        worker.call("group_send", "loop", "first", 0)  # so that it is connected
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The probes that are sent from now on."""
    sent: list[Any] = []
    probe = Propagation.probe

    async def counted(self: Propagation) -> None:
        sent.append(self)
        await probe(self)

    monkeypatch.setattr(Propagation, "probe", counted)
    return sent


@pytest.mark.timeout(120)
def test_a_sender_on_another_server_may_send_right_after_group_add(start: Start) -> None:
    """86 of 1,000 messages never arrived, though the member's own server had confirmed."""
    member, senders = start(0), [start(1), start(2)]
    channels = [member.call("new_channel", "loop") for _ in range(200)]
    for number in range(400):
        member.call("group_add", "loop", f"group-{number}", channels[number // 2])
        senders[number % 2].call("group_send", "loop", f"group-{number}", number)
    got = [member.call("receive", "loop", channels[number // 2]) for number in range(400)]
    assert sorted(got) == list(range(400))  # two writers' messages have no order


@pytest.mark.timeout(120)
def test_a_new_process_on_another_server_may_be_sent_to_right_after_new_channel(
    start: Start, nats_cluster: Cluster, prefix: str
) -> None:
    sender = start(1)
    for number in range(4):
        member = start(2)
        channel = member.call("new_channel", "loop")
        sender.call("send", "loop", channel, [number])
        assert member.call("receive", "loop", channel) == number
        member.kill()


@pytest.mark.timeout(120)
def test_a_durable_membership_brings_what_is_stored_right_after_it(start: Start) -> None:
    member, sender = start(0), start(1)
    channel = member.call("new_channel", "loop")
    for number in range(50):
        member.call("group_add", "loop", f"service.user{number}", channel)
        sender.call("group_send", "loop", f"service.user{number}", number)
        assert member.call("receive", "loop", channel) == number


async def test_calls_at_once_share_a_probe(
    start: Start, nats_cluster: Cluster, prefix: str, probes: list[Any]
) -> None:
    await asyncio.to_thread(start, 1)
    async with layers(nats_cluster.urls[0], prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        probes.clear()
        await asyncio.gather(*(layer.group_add(f"group-{n}", channel) for n in range(32)))
        assert 1 <= len(probes) <= 2
        probes.clear()
        await layer.group_add("group-0", channel)
        await layer.group_add("group-0", await layer.new_channel())
        assert probes == []


@pytest.mark.timeout(120)
async def test_a_server_that_stands_still_holds_up_one_call(
    start: Start, nats_cluster: Cluster, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "wsgateway.layer")
    loop = asyncio.get_running_loop()
    senders = [await asyncio.to_thread(start, number) for number in (1, 2)]
    async with layers(nats_cluster.urls[0], prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        frozen = nats_cluster.nodes[2]
        frozen.pause()
        try:
            begin = loop.time()
            await layer.group_add("one", channel)
            assert loop.time() - begin >= propagation.PROBE_TIMEOUT / 2
            begin = loop.time()
            for number in range(20):
                await layer.group_add(f"group-{number}", channel)
            assert loop.time() - begin < 5 * propagation.PROBE_TIMEOUT
            assert [record for record in caplog.records if frozen.name in record.getMessage()]
            await asyncio.to_thread(senders[0].call, "group_send", "loop", "one", 1)
            assert await drain(layer, channel, 1) == [1]
        finally:
            frozen.resume()

        async def waited_for() -> bool:
            await layer.group_add(f"later-{loop.time()}", channel)
            node: Any = layer.local.connection
            return not node.broker.propagation.silent

        async with asyncio.timeout(20):
            while not await waited_for():
                await asyncio.sleep(0.05)
        await asyncio.to_thread(senders[1].call, "group_send", "loop", "one", 2)
        assert await drain(layer, channel, 1) == [2]


@pytest.mark.timeout(120)
async def test_a_server_without_a_process_of_ours_is_not_waited_for(
    start: Start, nats_cluster: Cluster, prefix: str
) -> None:
    await asyncio.to_thread(start, 1)
    async with layers(nats_cluster.urls[0], prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        nats_cluster.nodes[2].pause()
        loop = asyncio.get_running_loop()
        try:
            begin = loop.time()
            for number in range(20):
                await layer.group_add(f"group-{number}", channel)
            assert loop.time() - begin < 5 * propagation.PROBE_TIMEOUT
        finally:
            nats_cluster.nodes[2].resume()


async def test_a_server_that_reports_nothing_holds_up_one_call(
    nats_cluster: Cluster,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As when permissions forbid to publish where the reports go."""
    async with layers(nats_cluster.urls[0], prefix) as make:
        layer = make()
        monkeypatch.setattr(Propagation, "on_report", lambda *_: None)
        monkeypatch.setattr(propagation, "PROBE_TIMEOUT", 0.2)
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        assert "does not report traced messages" in caplog.text
        await layer.group_send("group", {"type": "x", "n": 1})
        assert await drain(layer, channel, 1) == [1]


@pytest.mark.timeout(120)
async def test_memberships_are_in_effect_after_the_server_is_lost(
    start: Start, nats_cluster: Cluster, prefix: str
) -> None:
    """The layer reconnects to another server; `on_reconnect` says when all is in effect."""
    sender = await asyncio.to_thread(start, 1)
    async with layers(nats_cluster.urls[0], prefix, on_reconnect="back") as make:
        layer = make()
        channel = await layer.new_channel()
        for number in range(200):
            await layer.group_add(f"group-{number}", channel)
        node = layer.local.connection
        assert node is not None
        lost = asyncio.Event()  # it may be open again before a poll sees that it was not
        node.broker.on_lost(lost.set)
        nats_cluster.nodes[0].kill()
        try:
            await asyncio.wait_for(lost.wait(), 30)
            joining = asyncio.create_task(layer.group_add("new", channel))
            async with asyncio.timeout(30):
                assert await layer.receive(channel) == {"type": "back"}
            await joining
            await asyncio.to_thread(sender.call, "group_send", "loop", "group-199", 199)
            await asyncio.to_thread(sender.call, "group_send", "loop", "new", 200)
            assert await drain(layer, channel, 2) == [199, 200]
        finally:
            await nats_cluster.nodes[0].astart()


async def test_a_connection_lost_under_a_probe_is_no_membership_lost(
    nats_cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Propagation.probe
    failed: list[BaseException] = []
    armed = False

    async def cut(self: Propagation) -> None:
        if armed and not failed:
            nats_of(layer.connections.current()).connection.force_reconnect()
        try:
            await probe(self)
        except BrokerUnavailable as exc:
            failed.append(exc)
            raise

    monkeypatch.setattr(Propagation, "probe", cut)
    async with layers(nats_cluster.urls[0], prefix) as make:
        layer = make()
        channel = await layer.new_channel()
        armed = True
        await layer.group_add("group", channel)
        assert len(failed) == 1
        await layer.group_send("group", {"type": "x", "n": 1})
        assert await drain(layer, channel, 1) == [1]
