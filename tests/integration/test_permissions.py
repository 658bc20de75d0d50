"""docs/how-to/nats-permissions.md: with these, each role can do its work and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from tests.bridges.fake_bus import FakeBus
from tests.integration.backends import Caller
from tests.integration.layers import layers, receive
from tests.integration.test_presence_events import signals_of_runevents
from tests.integration.workers import answers, no_services, offer, serving
from tests.support import ROOT, Gateway, Process, until
from wsgateway import (
    Message,
    RetryPolicy,
    asend,
    asend_topic,
    counters,
    declared,
    send,
    topic,
    topics,
)
from wsgateway.bridges import runner as bridge_runner
from wsgateway.bridges.runner import bridges_to_run, make_runner
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.discovery import Shown
from wsgateway.broker.embedded import find_server, free_port
from wsgateway.broker.inquiry import Responder
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.broker.nats.limits import AUTOMATIC
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerForbidden, RecordRefused
from wsgateway.gateway.watching import Watching
from wsgateway.identity import Identity
from wsgateway.models import InboxEntry
from wsgateway.outbox import enqueue
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.relay import Relay
from wsgateway.presence import overview, users
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import deadletters, registry
from wsgateway.services.report import Report
from wsgateway.services.running import Running
from wsgateway.services.status import ask_workers
from wsgateway.topics.rights import Rights

__all__ = ["no_services"]  # a fixture

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
ROLES = ("gateway", "service", "publisher", "admin", "events", "operator")
PASSWORD = secrets.token_hex(8)


def documented() -> str:
    """Return the configuration in docs/how-to/nats-permissions.md."""
    found = re.search(
        r"```\n(authorization \{.*?)```",
        (ROOT / "docs/how-to/nats-permissions.md").read_text(),
        re.S,
    )
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with exactly the documented permissions."""
    folder, number = tmp_path_factory.mktemp("permissions"), free_port()
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:{number}"\n'
        f'jetstream {{ store_dir: "{folder}", sync_interval: 10s }}\n{documented()}'
    )
    passwords = {f"{role.upper()}_PASSWORD": PASSWORD for role in ROLES}
    command = [str(find_server()), "-c", str(folder / "nats.conf")]
    process = Process(command, folder / "log", {**os.environ, **passwords})
    process.spawn()
    try:
        process.wait_for_line("Server is ready")
        yield number
    finally:
        runtime.stop_background()  # or it asks for the server until the process ends
        process.kill()


@pytest.fixture
def url(port: int) -> Callable[[str], str]:
    return lambda role: f"nats://{role}:{PASSWORD}@127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def ws_settings(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The documented permissions are those for this prefix, and for the services that exist."""
    settings.PUBSUB_BROKER = "nats"
    settings.WSGATEWAY_PREFIX = "ws"
    settings.WSGATEWAY_SERVICES = ["orders"]
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    # Those of the demo too: gateways are processes of the site
    for name, durable in (("chat", True), ("room", True), ("tick", False), ("demo-room", True)):
        topic(name, durable=durable)(lambda identity, name: None)
    settings.WSGATEWAY_BROKER_TIMEOUT = 20.0
    for name in ("INBOX", "SEND", "DEAD", "CURSOR", "CHANNEL", "BLOB"):
        setattr(settings, f"WSGATEWAY_{name}_MAX_BYTES", AUTOMATIC)  # as users have it
    return settings


@pytest.fixture(autouse=True)
def nothing_refused(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if a role's work met a refusal that it did not notice."""
    yield
    assert [r.getMessage() for r in caplog.records if "NATS permissions" in r.getMessage()] == []


@asynccontextmanager
async def acting(settings: Any, url: str) -> AsyncIterator[NatsBroker]:
    settings.NATS_BROKER_URL = url
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        yield broker
    finally:
        await broker.close()


@pytest.fixture(autouse=True)
async def clean(ws_settings: Any, url: Callable[[str], str]) -> None:
    """The operator makes the streams and empties them."""
    ws_settings.NATS_BROKER_URL = url("operator")
    broker = broker_from_settings(wsgateway_settings)
    try:
        assert await broker.set_up()
        for spec in broker.streams.specs:
            await broker.jetstream.api(f"STREAM.PURGE.{spec.name}")
        for kind in ("chan", "blob"):  # the process that needs these makes them
            with contextlib.suppress(ApiError):
                await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.stream(kind)}")
    finally:
        await broker.close()


async def test_gateway_takes_frames_delivers_and_keeps_cursors(
    ws_settings: Any, url: Callable[[str], str], gateway_factory: Callable[..., Gateway]
) -> None:
    gateway = gateway_factory(
        NATS_BROKER_URL=url("gateway"), WSGATEWAY_PREFIX="ws", WSGATEWAY_SERVICES="orders"
    )
    async with acting(ws_settings, url("publisher")) as publisher:
        await publisher.publish(ANN, b"waited")
        async with gateway.connect(*ANN) as socket:
            assert await asyncio.wait_for(socket.recv(), 20) == "waited"
            await socket.send("from ann")
            await publisher.publish(ANN, b"live")
            assert await asyncio.wait_for(socket.recv(), 20) == "live"
        async with gateway.connect(*ANN) as socket:
            await publisher.publish(ANN, b"after the cursor")
            assert await asyncio.wait_for(socket.recv(), 20) == "after the cursor"
    async with acting(ws_settings, url("operator")) as operator:
        [queue] = [s.name for s in operator.streams.specs if "SEND" in s.name]
        info = await operator.jetstream.api(f"STREAM.INFO.{queue}")
        assert info["state"]["messages"] == 1
    assert "NATS permissions" not in gateway.output


@pytest.mark.parametrize("role", ["publisher", "service", "admin", "events"])
async def test_gateway_hears_of_rights_to_topics_that_end(
    ws_settings: Any, url: Callable[[str], str], role: str
) -> None:
    identity, room = Identity("orders", "ann"), Topic("chat", "42")
    given = topics.token("chat", "42", user="ann")
    async with acting(ws_settings, url("gateway")) as gateway:
        rights = Rights(gateway)
        assert await rights.access(identity, room, given) == "read"
        ws_settings.NATS_BROKER_URL = url(role)
        await topics.arevoke("chat", "42")
        while await rights.access(identity, room, given):
            await asyncio.sleep(0.01)
        rights.close()


async def test_gateway_limits_a_users_devices(ws_settings: Any, url: Callable[[str], str]) -> None:
    ws_settings.WSGATEWAY_MAX_DEVICES_PER_USER = 1
    async with acting(ws_settings, url("publisher")) as publisher:
        last = (await publisher.publish(ANN, b"x")).offset
    async with acting(ws_settings, url("gateway")) as gateway:
        for device in ("phone", "laptop"):
            await gateway.save_cursor(ANN, device, last)
        assert await gateway.load_cursor(ANN, "phone") == 0
        assert await gateway.load_cursor(ANN, "laptop") == last
        await gateway.drop_cursor(ANN, "laptop")
        assert await gateway.load_cursor(ANN, "laptop") == 0


async def test_gateway_runs_consumers_of_the_channel_layer(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    async with layers(url("gateway"), "ws") as make:
        mine, other = make(), make()
        channel = await mine.new_channel()
        for group in ("room", "orders.ann"):
            await mine.group_add(group, channel)
            await other.group_send(group, {"type": "x", "n": group})
            assert (await receive(mine, channel))["n"] == group
        await other.send(channel, {"type": "x", "n": "direct"})
        assert (await receive(mine, channel))["n"] == "direct"
        for n in (1, "x" * 2_000_000):
            await other.send("normal", {"type": "x", "n": n})
            assert (await receive(mine, "normal"))["n"] == n
        await mine.group_add("room", "normal")
        await other.group_send("room", {"type": "x", "n": 2})
        assert (await receive(mine, "normal"))["n"] == 2
        await mine.group_discard("room", "normal")
        await mine.flush()


async def test_every_role_may_ask_who_is_connected(
    ws_settings: Any, url: Callable[[str], str], gateway_factory: Callable[..., Gateway]
) -> None:
    gateway = gateway_factory(
        NATS_BROKER_URL=url("gateway"), WSGATEWAY_PREFIX="ws", WSGATEWAY_SERVICES="orders"
    )
    async with gateway.connect(*ANN):
        for role in ROLES:
            async with acting(ws_settings, url(role)) as broker:
                assert await users.find_online(broker, [ANN]) == {ANN: True}
                found = (await users.find_connections(broker, [ANN]))[ANN]
                assert (len(found), found.silent) == (1, ())
                gateways = await overview.find_gateways(broker)
                assert [each.pid for each in gateways] == [gateway.pid]
        async with acting(ws_settings, url("publisher")) as broker:
            assert (await users.close_sockets(broker, ANN, {"ask": "disconnect"})).sockets == 1
            assert await overview.drain_gateway(broker, gateways[0].id) is True
    await asyncio.to_thread(gateway.stop)
    assert "NATS permissions" not in gateway.output


@pytest.mark.usefixtures("no_services")
async def test_service_takes_acknowledges_replies_and_sets_aside(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    """Without $JS.ACK.> every message was handled again and again."""
    handled: list[str] = []

    @registry.service("orders", retry=RetryPolicy(initial=0.01))
    async def handle(message: Message) -> None:
        handled.append(message.text)
        if message.text == "bad":
            raise RuntimeError("broken")
        await message.reply(text="done")

    ws_settings.WSGATEWAY_MAX_DELIVER = 2
    ws_settings.WSGATEWAY_ACK_WAIT = 2.0
    async with acting(ws_settings, url("gateway")) as gateway:
        for text in ("good", "bad", "second"):
            await offer(gateway, text, Ws_Client_Id=text, Ws_Request=text)
        async with acting(ws_settings, url("service")) as service, serving(service) as worker:
            await until(lambda: worker.counts.total() == 4, 20, "all")
            await asyncio.sleep(2.5)  # longer than ACK_WAIT: what is not acknowledged comes again
            await service.operations.pause("orders")  # as a webhook that is gone does
        assert handled == ["good", "bad", "bad", "second"]
        assert [s.reply_to for s in await answers(gateway)] == ["good", "bad", "second"]
    async with acting(ws_settings, url("operator")) as operator:
        [letter] = [letter async for letter in deadletters.letters(operator)]
        assert letter.payload == b"bad"
        await deadletters.retry(operator, letter)
        assert await operator.operations.resume("orders")
        assert [letter async for letter in deadletters.letters(operator)] == []


@pytest.fixture
async def desk(ws_settings: Any, url: Callable[[str], str], clean: None) -> AsyncIterator[Topic]:
    """A topic that clients may write; beside it, ``ping`` is ephemeral."""
    for name, durable in (("desk", True), ("ping", False)):
        topic(name, queue=True, durable=durable)(lambda identity, name: "write")
    ws_settings.NATS_BROKER_URL = url("operator")
    broker = broker_from_settings(wsgateway_settings)
    try:
        await broker.set_up()
        yield Topic("desk", "1")
        for name in ("TOPIC_desk", "SEND_desk", "SEND_ping"):  # nobody else expects them
            await broker.jetstream.api(f"STREAM.DELETE.WS_{name}")
    finally:
        await broker.close()


@pytest.mark.usefixtures("no_services")
async def test_service_runs_a_bridge_both_ways(
    ws_settings: Any, url: Callable[[str], str], desk: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"url": "kafka://localhost", "services": ["orders", "desk", "ping"]}
    ws_settings.WSGATEWAY_BRIDGES = {"warehouse": options}
    bus, said, heard = FakeBus(), list[str](), list[bytes]()
    monkeypatch.setattr(bridge_runner, "make_bus", lambda bridge: bus)
    ws_settings.NATS_BROKER_URL = url("service")

    def say(text: str, /, *, event: str, **fields: object) -> None:
        said.append(text)

    runner = make_runner(bridges_to_run([]), None, say)
    running = asyncio.create_task(runner.run())
    try:
        await until(lambda: said[-1:] == ["warehouse: connected to kafka://localhost:9092"], 20)
        async with acting(ws_settings, url("gateway")) as gateway:
            gateway.hear(Topic("ping", "1"), lambda stored: heard.append(stored.payload))
            await gateway.in_effect()
            await offer(gateway, "to orders")
            await gateway.offer_topic(desk, ANN, Frame.of("to a topic"), "1")
            bus.hand_out("re", "orders.ann")
            bus.hand_out("all", "desk.1", target="topic")
            bus.hand_out("ping", "ping.1", target="topic")
            await until(lambda: len(bus.produced) == 2 and len(bus.acked) == 3 and heard, 20)
            assert {each[2] for each in bus.produced} == {b"to orders", b"to a topic"}
            assert [each.payload for each in await answers(gateway)] == [b"re"]
            batch = await gateway.log(desk).read_last(desk, 1)
            assert [each.payload for each in batch.messages] == [b"all"]
            assert heard == [b"ping"]
            bus.error = RecordRefused("too large")
            await offer(gateway, "refused")
            await until(lambda: counters.bridges["warehouse"].refused, 20)
        async with acting(ws_settings, url("admin")) as admin, asyncio.timeout(20):
            while [list(each.bridges) for each in await ask_workers(admin)] != [["warehouse"]]:
                await asyncio.sleep(0.02)
            while not [letter async for letter in deadletters.letters(admin)]:
                await asyncio.sleep(0.02)
    finally:
        runner.end()
        await running


async def test_events_follows_sockets_and_sends_signals(
    ws_settings: Any, url: Callable[[str], str], gateway_factory: Callable[..., Gateway]
) -> None:
    ws_settings.WSGATEWAY_OFFLINE_GRACE = 0.0
    ws_settings.NATS_BROKER_URL = url("events")
    gateway = gateway_factory(
        NATS_BROKER_URL=url("gateway"), WSGATEWAY_PREFIX="ws", WSGATEWAY_SERVICES="orders"
    )
    async with signals_of_runevents() as (got, _):
        async with gateway.connect(*ANN):
            await until(lambda: ("user_online", "ann") in got, 20)
        await until(lambda: ("user_offline", "ann") in got, 20)
    assert "NATS refuses" not in gateway.output


@pytest.mark.django_db(transaction=True)
async def test_publisher_sends_to_inboxes_and_groups_and_relays_the_outbox(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    ws_settings.NATS_BROKER_URL = url("publisher")
    await asend("orders", "ann", text="send")
    async with layers(url("publisher"), "ws") as make, layers(url("gateway"), "ws") as gateways:
        listener = gateways()
        channel = await listener.new_channel()
        await listener.group_add("room", channel)
        await make().group_send("orders.ann", {"type": "ws.message", "text": "group_send"})
        await make().group_send("room", {"type": "x", "n": 1})
        assert (await receive(listener, channel))["n"] == 1
        await make().send(channel, {"type": "x", "n": 2})
        assert (await receive(listener, channel))["n"] == 2
        await make().send("task", {"type": "x", "n": "x" * 2_000_000})
        assert len((await receive(listener, "task"))["n"]) == 2_000_000
    await asyncio.to_thread(_relay)
    await asend_topic("room", "42", text="topic")
    page = await topics.ahistory("room", "42")
    assert [message.data for message in page.messages] == ["topic"]
    assert (await topics.ahistory("room", "42", before=page.first)).messages == []
    async with acting(ws_settings, url("gateway")) as gateway:
        assert [s.payload for s in await answers(gateway)] == [b"send", b"group_send", b"outbox"]


def _relay() -> None:
    enqueue("orders", "ann", text="outbox")
    Relay().step()
    assert not OutboxMessage.objects.exists()


@pytest.mark.parametrize("role", ["gateway", "service", "publisher", "events", "operator"])
async def test_topics_are_published_to_and_read(
    ws_settings: Any, url: Callable[[str], str], role: str
) -> None:
    room, tick, heard = Topic("room", "42"), Topic("tick", "now"), list[bytes]()
    async with (
        acting(ws_settings, url("gateway")) as gateway,
        acting(ws_settings, url(role)) as broker,
    ):
        gateway.log(room).watch(room, lambda stored: heard.append(stored.payload))
        gateway.hear(tick, lambda stored: heard.append(stored.payload))
        await gateway.in_effect()
        offset = (await broker.publish(room, b"room")).offset
        await broker.publish(tick, b"tick")
        await until(lambda: sorted(heard) == [b"room", b"tick"], 20, "both")
        batch = await gateway.log(room).read_last(room, 1)
        assert [stored.offset for stored in batch.messages] == [offset]
        assert (await gateway.log(room).position()).last == offset
        assert await gateway.log(room).last_offsets([room]) == {room: offset}


async def test_gateway_is_found_by_those_who_ask(
    ws_settings: Any, url: Callable[[str], str], gateway_factory: Callable[..., Gateway]
) -> None:
    gateway = gateway_factory(
        NATS_BROKER_URL=url("gateway"), WSGATEWAY_PREFIX="ws", WSGATEWAY_SERVICES="orders"
    )
    async with gateway.connect(*ANN) as socket:
        await socket.send("x")
        for role in ("gateway", "service", "publisher", "admin", "operator"):
            async with acting(ws_settings, url(role)) as broker:
                online = await users.find_online(broker, inboxes=[ANN, BOB])
                assert online == {ANN: True, BOB: False}
                [found] = await overview.find_gateways(broker)
                assert found.sockets == 1
        async with acting(ws_settings, url("operator")) as operator:
            reply = await operator.connection.request(f"$SRV.PING.wsgateway.{found.id}", b"")
            assert json.loads(reply.data)["metadata"]["prefix"] == "ws"
        async with acting(ws_settings, url("admin")) as admin:
            done = await users.close_sockets(admin, inbox=ANN, request={"ask": "disconnect"})
            assert (done.sockets, done.complete) == (1, True)
            assert await overview.drain_gateway(admin, id=found.id)
    assert "NATS permissions" not in gateway.output


@pytest.mark.usefixtures("no_services")
async def test_worker_says_what_it_does(ws_settings: Any, url: Callable[[str], str]) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    async with (
        acting(ws_settings, url("service")) as service,
        acting(ws_settings, url("admin")) as admin,
        acting(ws_settings, url("operator")) as operator,
        serving(service) as worker,
        asyncio.timeout(50),
    ):
        report = Report(service, [worker], Running(30.0))
        report.open()
        for broker in (admin, operator):
            while [each.id for each in await ask_workers(broker)] != [report.id]:
                await asyncio.sleep(0.02)
        name = f"$SRV.STATS.wsgateway-worker.{report.id}"
        assert (await operator.connection.request(name, b"")).data
        report.close()
        deadline = time.monotonic() + 20  # longer than its entry lives
        while left := await admin.roster.members("worker"):
            assert time.monotonic() < deadline, (report.id, left)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("role", ["gateway", "service"])
async def test_metrics_may_ask_about_queues_and_streams(
    ws_settings: Any, url: Callable[[str], str], role: str
) -> None:
    async with acting(ws_settings, url(role)) as broker:
        assert [queue.service for queue in await broker.operations.queues()] == ["orders"]
        streams = await broker.operations.streams()
    assert [stream.last_error for stream in streams] == [""] * len(streams)


async def test_admin_looks_into_inboxes_and_acts(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    async with acting(ws_settings, url("gateway")) as gateway:
        mine = [(await gateway.publish(ANN, b"%d" % n)).offset for n in range(4)]
        await gateway.save_cursor(ANN, "phone", mine[1])
        await offer(gateway, "waits")
    async with acting(ws_settings, url("service")) as service:
        await service.dead_letters.add(ANN, b"bad", {}, "dead-1")
    async with acting(ws_settings, url("admin")) as admin:
        operations = admin.operations
        assert (await operations.counts([ANN]))[ANN].waiting == 2
        assert [device.device for device in await operations.devices(ANN)] == ["phone"]
        assert await operations.names("orders") == ["ann"]
        batch = await admin.inboxes.read_last(ANN, 2, before=mine[3] + 1)
        assert [stored.offset for stored in batch.messages] == mine[2:]
        assert await admin.inboxes.offset_at(ANN, dt.datetime(2000, 1, 1, tzinfo=dt.UTC)) == mine[0]
        assert all(stream.last_error == "" for stream in await operations.streams())
        [queue] = await operations.queues()
        assert (queue.service, queue.waiting, queue.dead) == ("orders", 1, 1)
        assert await operations.delete(ANN, mine[0])
        await admin.publish(ANN, b"from the admin")
        assert await operations.purge(ANN) == 4
        [letter] = [letter async for letter in deadletters.letters(admin)]
        await deadletters.retry(admin, letter)
        [queue] = await operations.queues()
        assert (queue.waiting, queue.dead) == (2, 0)
        admin.broadcast("logout", b"{}")
        await admin.connection.confirm()


async def test_what_is_optional_keeps_nobody_from_working(
    ws_settings: Any, url: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway that was upgraded before its permissions: joining any group of Channels failed."""
    async with acting(ws_settings, url("publisher")) as broker:  # which may answer nobody
        at = dt.datetime.now(dt.UTC)
        broker.show(Shown("wsgateway", "g-1", "0.1.0", "A gateway.", at, {}, list))
        Responder(broker, {"info": lambda request: ()}).listen(broker.subjects.conn(ANN))
        watching = Watching(broker)
        watching.add(ANN, Mock())
        await broker.connection.confirm()
        await broker.connection.confirm()
        watching.close()
        said = " ".join(r.getMessage() for r in caplog.records)
        assert "ws.conn.orders.ann" in said
        assert "ws.event.orders.ann" in said
        assert "$SRV.*" in said
        broker.connection.subscribe("ws.recv.room", lambda *_: None)
        with pytest.raises(BrokerForbidden, match=r"ws\.recv\.room"):
            await broker.connection.confirm()
    caplog.clear()


async def test_operator_backs_up_and_restores(
    ws_settings: Any, url: Callable[[str], str], nats_command: str, tmp_path: Path
) -> None:
    """The operator could read a stream, but not confirm the pieces of a backup, so none ended."""

    async def nats(*arguments: str) -> None:
        command = [nats_command, "--server", url("operator"), "stream", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stdout + done.stderr

    async with acting(ws_settings, url("publisher")) as publisher:
        await publisher.publish(ANN, b"kept")
    await nats("backup", "--no-progress", "WS_RECV", str(tmp_path / "backup"))
    await nats("rm", "--force", "WS_RECV")
    await nats("restore", "--no-progress", str(tmp_path / "backup"))
    async with acting(ws_settings, url("gateway")) as gateway:
        batch = await gateway.inboxes.read_after(ANN, 0, limit=10)
        assert [message.payload for message in batch.messages] == [b"kept"]


async def test_operator_uses_nats_command_line(
    ws_settings: Any, url: Callable[[str], str], nats_command: str
) -> None:
    async with acting(ws_settings, url("gateway")) as gateway:
        at = dt.datetime.now(dt.UTC)
        gateway.show(Shown("wsgateway", "g-1", "0.1.0", "A gateway.", at, {}, list))
        await gateway.connection.confirm()
        command = [nats_command, "--server", url("operator"), "micro", "ls"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=20
        )
    assert "g-1" in done.stdout


async def join(kind: str, broker: Broker) -> None:
    await broker.roster.join(kind, "not-there-1")


@pytest.mark.django_db
def test_admins_pages_are_complete(
    ws_settings: Any, url: Callable[[str], str], client: Client
) -> None:
    ws_settings.NATS_BROKER_URL = url("operator")
    send(*ANN, text="to be looked at")
    for kind in ("gateway", "worker"):  # or nobody would be asked
        runtime.call_sync(partial(join, kind))
    ws_settings.NATS_BROKER_URL = url("admin")
    root = get_user_model()._default_manager.create_superuser("root")
    client.force_login(root)
    entry = InboxEntry.of(ANN)
    inbox = reverse("admin:wsgateway_inboxentry_websockets", args=[quote(entry.pk)])
    models = ("overview", "serviceentry", "gatewayentry", "streamentry", "deadletterentry")
    pages = [reverse(f"admin:wsgateway_{model}_changelist") for model in models]
    pages += [
        reverse("admin:wsgateway_inboxentry_changelist") + "?service=orders",
        reverse("admin:auth_user_changelist"),
        reverse("admin:auth_user_websockets", args=[root.pk]),
        inbox,
    ]
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200
        assert "unknown" not in answer.content.decode(), page
        assert "NATS refuses" not in answer.content.decode(), page
    assert "to be looked at" in client.get(inbox).content.decode()


@pytest.mark.django_db
@pytest.mark.urls("tests.api_site.urls")
def test_server_api_needs_what_publisher_and_admin_may(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    caller = Caller()
    ann, room = {"service": "orders", "user": "ann"}, {"service": "room", "topic": "42"}
    ws_settings.NATS_BROKER_URL = url("publisher")
    answers = [
        caller.post("publish", {**ann, "text": "hello"}),
        caller.post("publish-many", {"messages": [{**room, "text": "hello"}]}),
        caller.get("history/topic", **room),
        caller.get("online", service="orders"),
        caller.get("connections", **ann),
        caller.get("readers", **room),
        caller.post("disconnect", ann),
        caller.post("revoke", room),
        caller.post("recheck", room),
    ]
    ws_settings.NATS_BROKER_URL = url("admin")
    answers += [caller.get("history/user", **ann), caller.get("stats")]
    assert [each.status_code for each in answers] == [*[200] * 7, 204, 204, 200, 200]
    assert answers[1].json()["failed"] == 0


async def test_publisher_cannot_look_into_queues(
    ws_settings: Any, url: Callable[[str], str]
) -> None:
    async with acting(ws_settings, url("publisher")) as publisher:
        with pytest.raises(BrokerForbidden):
            await publisher.operations.queues()
        with pytest.raises(BrokerForbidden):
            await publisher.inboxes.read_last(ANN, 10)


@pytest.mark.django_db
def test_operator_runs_the_commands(ws_settings: Any, url: Callable[[str], str]) -> None:
    ws_settings.NATS_BROKER_URL = url("operator")
    call_command("setup_streams")
    call_command("deadletters", "list")
    call_command("gateway", "send", *ANN, "hello")
    call_command("gateway", "inbox", *ANN)
    call_command("gateway", "tail", *ANN, "--count", "1")
    call_command("gateway", "status")
    call_command("gateway", "who", "orders")
    call_command("gateway", "who", *ANN)
    call_command("gateway", "disconnect", *ANN, "--no-input")
    call_command("gateway", "purge", *ANN, "--no-input")


FORBIDDEN: dict[str, list[str]] = {
    "gateway": [
        "ws.dead.orders.ann",
        "ws.turn.orders",
        "$JS.API.STREAM.DELETE.WS_RECV",
        "$JS.API.STREAM.PURGE.WS_RECV",
        "$JS.API.STREAM.UPDATE.WS_RECV",
        "$JS.API.STREAM.CREATE.OTHER",
        "$JS.API.STREAM.MSG.DELETE.WS_DEAD",
        "$JS.API.CONSUMER.CREATE.WS_RECV.thief",
        "$KV.OTHER.key",
        "$KV.WS_ROSTER.worker.w-1",
        "$KV.WS_ROSTER.lease.events",
        "ws.worker.w-1",
        "$SRV.PING",
        "other.subject",
    ],
    "service": [
        "ws.send.orders.ann",
        "ws.event.orders.ann",
        "$KV.WS_ROSTER.gateway.g-1",
        "ws.worker.w-1",
        "$SRV.PING",
        "$JS.API.STREAM.MSG.DELETE.WS_RECV",
        "ws.all.logout",
        "$KV.WS_CURSORS.orders.ann.default",
        "$JS.API.STREAM.DELETE.WS_RECV",
        "$JS.API.STREAM.PURGE.WS_RECV",
        "$JS.API.STREAM.UPDATE.WS_RECV",
        "other.subject",
    ],
    "publisher": [
        "ws.send.orders.ann",
        "ws.event.orders.ann",
        "ws.dead.orders.ann",
        "$JS.API.DIRECT.GET.WS_RECV",
        "$JS.API.STREAM.MSG.GET.WS_RECV",
        "$JS.API.CONSUMER.CREATE.WS_RECV.thief",
        "$JS.API.STREAM.DELETE.WS_RECV",
        "$JS.API.STREAM.PURGE.WS_RECV",
        "$KV.WS_CURSORS.orders.ann.default",
        "$KV.WS_ROSTER.gateway.g-1",
        "$SRV.PING",
        "other.subject",
    ],
    "admin": [
        "ws.dead.orders.ann",
        "ws.turn.orders",
        "ws.recv.room",
        "ws.chan.normal",
        "$KV.WS_CURSORS.orders.ann.default",
        "$KV.WS_ROSTER.gateway.g-1",
        "$JS.ACK.WS_SEND_orders.service-orders.1.1.1.1.0",
        "$JS.API.STREAM.DELETE.WS_RECV",
        "$JS.API.STREAM.UPDATE.WS_RECV",
        "$JS.API.STREAM.PURGE.WS_SEND_orders",
        "$JS.API.STREAM.MSG.GET.WS_SEND_orders",
        "$JS.API.CONSUMER.CREATE.WS_RECV.thief",
        "$JS.API.CONSUMER.MSG.NEXT.WS_SEND_orders.service-orders",
        "$SRV.PING",
        "other.subject",
    ],
    "events": [
        "ws.event.orders.ann",
        "ws.send.orders.ann",
        "$KV.WS_ROSTER.gateway.g-1",
        "$KV.WS_CURSORS.orders.ann.default",
        "$JS.API.DIRECT.GET.WS_RECV",
        "$JS.API.STREAM.PURGE.KV_WS_ROSTER",
        "other.subject",
    ],
    "operator": ["other.subject"],
}
UNHEARD: dict[str, list[str]] = {
    "gateway": ["ws.send.>", "ws.recv.*.*", "ws.dead.>", "ws.worker.*", ">"],
    "service": ["ws.live.>", "ws.recv.>", "ws.send.>", "ws.conn.>", "ws.gateway.*", ">"],
    "publisher": [
        "ws.live.>",
        "ws.recv.>",
        "ws.event.>",
        "$KV.>",
        "ws.conn.>",
        "ws.gateway.*",
        ">",
    ],
    "admin": ["ws.live.>", "ws.recv.>", "ws.send.>", "ws.conn.>", "ws.gateway.*", "$SRV.>", ">"],
    "events": ["ws.live.>", "ws.recv.>", "ws.send.>", "ws.conn.>", "ws.gateway.*", ">"],
    "operator": ["ws.recv.>", "ws.send.>", "ws.conn.>", ">"],
}


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_not_do_is_an_error_at_once_that_says_so(
    ws_settings: Any, url: Callable[[str], str], role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """NATS names the subject; the caller waited for its timeout and read nothing of it."""
    async with acting(ws_settings, url(role)) as broker:
        for subject in FORBIDDEN[role]:
            with pytest.raises(BrokerForbidden) as error:
                await broker.jetstream.publish(subject, b"x")
            assert f'Permissions Violation for Publish to "{subject}"' in str(error.value)
            with pytest.raises(BrokerForbidden):
                await broker.jetstream.offer(subject, b"x", {"Nats-Msg-Id": "x"})
            # A client's frame: nobody else hears of it, so the operator does
            said = [r for r in caplog.records if f'"{subject}"' in r.getMessage()]
            assert [(r.levelname, vars(r)["subject"]) for r in said] == [("WARNING", subject)]
        assert not broker.connection.requests_waiting
    caplog.clear()


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_not_hear_is_an_error_of_confirm(
    ws_settings: Any,
    url: Callable[[str], str],
    role: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with acting(ws_settings, url(role)) as broker:
        for subject in UNHEARD[role]:
            subscription = broker.connection.subscribe(subject, lambda *_: None)
            with pytest.raises(BrokerForbidden, match="Subscription to"):
                await broker.connection.confirm()
            subscription.close()
    said = [r.getMessage() for r in caplog.records if "NATS permissions" in r.getMessage()]
    assert len(said) == len(UNHEARD[role])
    caplog.clear()
