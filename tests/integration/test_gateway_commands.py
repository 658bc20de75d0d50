"""``manage.py gateway``: what it shows of real gateways, and what it does to them."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests.commands import ESCAPES, Ended, Site, call, called, documented
from tests.support import Gateway, Process, until
from wsgateway import declared, presence, topic
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.operations import NatsOperations
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.management.exits import Exit
from wsgateway.protocol.subjects import Inbox

pytestmark = pytest.mark.usefixtures("nats_settings")

Factory = Callable[..., Gateway]
ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
V1: Any = ["wsgateway.v1"]


@pytest.fixture
def site(tmp_path: Path, nats_server: EmbeddedServer, prefix: str) -> Site:
    return Site(tmp_path, NATS_BROKER_URL=nats_server.url, WSGATEWAY_PREFIX=prefix)


@pytest.fixture
def gateways(gateway_factory: Factory) -> list[Gateway]:
    return [gateway_factory(), gateway_factory()]


async def run(site: Site, *arguments: str) -> Ended:
    """Run an action in a process of its own."""
    return await asyncio.to_thread(site.run, "gateway", *arguments)


async def show(site: Site, *arguments: str, **options: Any) -> Ended:
    done = await asyncio.to_thread(lambda: site.show("gateway", *arguments, **options))
    return done._replace(out=ESCAPES.sub("", done.out).replace("\r", "\n"))


@asynccontextmanager
async def sockets(*opens: Any) -> AsyncIterator[list[ClientConnection]]:
    """Open several sockets at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_opened(each)) for each in opens]
    found = [task.result() for task in tasks]
    try:
        yield found
    finally:
        await asyncio.gather(*(socket.close() for socket in found))


async def _opened(opening: Any) -> ClientConnection:
    socket: ClientConnection = await opening
    return socket


async def closed_with(socket: ClientConnection) -> int:
    await asyncio.wait_for(socket.wait_closed(), 20)
    assert socket.close_code is not None
    return socket.close_code


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def readyz(gateway: Gateway) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


# -- who ---------------------------------------------------------------------------------


async def test_who_is_complete_over_all_gateways(site: Site, gateways: list[Gateway]) -> None:
    one, two = gateways
    async with sockets(one.connect(*ANN), two.connect(*ANN), two.connect(*BOB)):
        done = await run(site, "who", "orders")
        assert (done.code, done.err) == (0, "")
        assert [columns(line) for line in done.lines] == [
            ["User", "Sockets"],
            ["ann", "2"],
            ["bob", "1"],
        ]
        found = (await call("who", "orders", "--json")).json
        assert found == {"service": "orders", "users": {"ann": 2, "bob": 1}, "silent": []}
        assert set(found) <= documented("gateway who")
    done = await call("who", "orders")
    assert (done.code, done.out) == (0, "No one is online in orders.\n")


async def test_who_shows_a_users_connections(site: Site, gateway: Gateway) -> None:
    phone = gateway.connect(*ANN, query="?device=phone", subprotocols=V1)
    async with sockets(phone) as [socket]:
        connection = json.loads(await socket.recv())["connection"]
        found = (await call("who", "orders", "ann", "--json")).json
        assert set(found) <= documented("gateway who")
        assert (found["user"], found["online"], found["silent"]) == ("ann", True, [])
        [shown] = found["connections"]
        assert (shown["id"], shown["device"]) == (connection, "phone")
        assert (shown["protocol"], shown["address"]) == ("wsgateway.v1", "127.0.0.1")
        piped = await run(site, "who", "orders", "ann")
        assert connection in piped.out
        assert columns(piped.lines[0])[0] == "Connection"
        assert "Python" in piped.lines[1]  # the user agent
        terminal = await show(site, "who", "orders", "ann")
        assert max(map(len, terminal.out.split("\n"))) <= 80
        assert connection in terminal.out.split("\n")[0]
        assert re.search(r"^  Device +phone$", terminal.out, re.M)
    async with asyncio.timeout(20):  # the gateway notices soon
        while (done := await call("who", "orders", "ann", "--json")).json["online"]:
            await asyncio.sleep(0.05)
    assert (done.code, done.json["online"]) == (0, False)


async def test_who_names_the_gateway_that_is_silent(site: Site, gateways: list[Gateway]) -> None:
    one, _ = gateways
    async with sockets(one.connect(*ANN)):
        one.send(signal.SIGSTOP)
        try:
            done = await call("who", "orders", "ann", "--json")
            assert (done.code, done.json["online"]) == (Exit.INCOMPLETE, None)
            [silent] = done.json["silent"]
            assert f"no answer from {silent}, so the result may be incomplete" in done.err
            words = await call("who", "orders", "ann")
            assert words.out == "No gateway that answered has a connection of ann in orders.\n"
        finally:
            one.send(signal.SIGCONT)


@pytest.mark.parametrize(
    "arguments",
    [
        ["who", "oders"],
        ["inbox", "oders", "ann"],
        ["tail", "oders", "ann"],
        ["purge", "oders", "ann", "--no-input"],
        ["disconnect", "oders", "ann", "--no-input"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_misspelt_service(arguments: list[str]) -> None:
    done = called(*arguments)
    assert (done.code, done.out) == (Exit.UNKNOWN, "")
    assert "service 'oders' does not exist; did you mean 'orders'?" in done.err


# -- disconnect --------------------------------------------------------------------------


async def test_disconnect_closes_what_is_named(site: Site, gateways: list[Gateway]) -> None:
    one, two = gateways
    phone = one.connect(*ANN, query="?device=phone", subprotocols=V1)
    laptop = two.connect(*ANN, query="?device=laptop", subprotocols=V1)
    async with sockets(phone, laptop, two.connect(*BOB)) as [first, second, other]:
        done = await run(site, "disconnect", "orders", "ann")
        assert (done.code, done.out) == (Exit.USAGE, "")
        assert "so no one can confirm this; pass --no-input" in done.err
        to = ("disconnect", "orders", "ann")
        refused = await show(site, *to, typed="n\n")
        assert refused.code == Exit.FAILED
        assert "Close all sockets of ann in orders?" in refused.out
        done = await call(*to, "--device", "phone", "--yes", "--json", "--reason", "bye")
        assert done.json == {"sockets": 1, "silent": []}
        assert set(done.json) <= documented("gateway disconnect")
        assert await closed_with(first) == 4505
        agreed = await show(site, *to, typed="y\n")
        assert agreed.code == 0
        assert "1 closed" in agreed.out
        assert await closed_with(second) == 4505
        await other.ping()
        assert (await call(*to, "--no-input")).lines == ["0 closed"]


# -- drain -------------------------------------------------------------------------------


async def test_drain_empties_one_gateway(site: Site, gateways: list[Gateway]) -> None:
    one, two = gateways
    async with sockets(one.connect(*ANN, subprotocols=V1), two.connect(*BOB)) as [mine, other]:
        [name] = [each.id for each in await presence.agateways() if each.pid == one.pid]
        done = await call("drain", name)
        assert done.code == Exit.USAGE
        assert (await call("drain", "nothing", "--no-input")).code == Exit.UNKNOWN
        done = await run(site, "drain", name, "--no-input")
        assert (done.code, done.lines) == (0, [f"{name} is drained: no sockets left"])
        assert await closed_with(mine) == 4001
        await other.ping()
        assert readyz(one) == (503, {"ready": False, "not_ready": {"gateway": "draining"}})
        assert readyz(two) == (200, {"ready": True})
        again = await call("drain", name, "--no-input", "--json")
        assert again.json == {"gateway": name, "draining": True, "sockets": 0}
        assert set(again.json) <= documented("gateway drain")


async def test_drain_of_a_gateway_that_freezes_meanwhile(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be gone, with code 0, although it still held its sockets."""
    async with asyncio.timeout(30):  # a gateway serves a moment before others can know of it
        while not (found := await presence.agateways()):
            await asyncio.sleep(0.05)
    name = found[0].id
    drain = presence.drain

    def drain_and_freeze(gateway_id: str) -> bool:
        found = drain(gateway_id)
        gateway.send(signal.SIGSTOP)
        return found

    monkeypatch.setattr(presence, "drain", drain_and_freeze)
    async with sockets(gateway.connect(*ANN)):
        try:
            done = await call("drain", name, "--no-input", "--timeout", "1")
        finally:
            gateway.send(signal.SIGCONT)
    assert done.code == Exit.INCOMPLETE
    assert "does not answer any more" in done.err


@pytest.mark.parametrize("timeout", ["nan", "-1", "inf", "soon"])
def test_drain_waits_for_a_number_of_seconds(timeout: str) -> None:
    """With nan it waited forever, and -1 was a time-out at once."""
    done = called("drain", "some-1-abcd", f"--timeout={timeout}")
    assert "is not a number of seconds, 0 or more" in done.err


@pytest.mark.parametrize("data", ["[" * 100_000, "[NaN]", '{"a": 1, "a": 2}'])
def test_send_refuses_json_that_not_everybody_reads_alike(data: str) -> None:
    """Deep JSON ended with a traceback of 1,000 lines; the others were sent as JSON."""
    done = called("send", "orders", "ann", data, "--type", "json")
    assert done.code == Exit.USAGE
    assert "the message is not JSON" in done.err


# -- inbox, purge ------------------------------------------------------------------------


async def test_inbox_shows_devices_and_the_newest_messages(
    site: Site, broker: NatsBroker, gateway: Gateway
) -> None:
    for number in range(1, 4):
        await broker.publish(ANN, f"message {number}".encode())
    await broker.publish(ANN, b"\xff\x00", kind="binary")
    async with sockets(gateway.connect(*ANN, query="?device=phone")) as [socket]:
        for _ in range(4):
            await socket.recv()
    last = (await broker.publish(ANN, b"clear\x1b[2Jscreen " + b"x" * 400)).offset
    done = await run(site, "inbox", "orders", "ann", "--json")
    found = done.json
    assert set(found) <= documented("gateway inbox")
    assert (found["messages"], found["first"], found["last"]) == (5, 1, last)
    assert found["waiting"] == 1
    [device] = found["devices"]
    assert (device["device"], device["offset"], device["waiting"]) == ("phone", 4, 1)
    assert [each["offset"] for each in found["stored"]] == [1, 2, 3, 4, 5]
    for message in found["stored"]:
        assert set(message) <= documented("gateway inbox")
    assert [found["stored"][0]["text"], found["stored"][3]["base64"]] == ["message 1", "/wA="]
    assert found["stored"][3]["kind"] == "binary"

    words = await call("inbox", "orders", "ann", "--last", "2")
    assert words.lines[0] == "ann in orders: 5 messages, offsets 1 to 5; 1 waiting"
    assert r"clear\x1b[2Jscreen xxx" in words.out
    assert "message 3" not in words.out
    assert "there are older ones: --before 4" in words.err
    older = await call("inbox", "orders", "ann", "--last", "2", "--before", "4")
    assert "message 2" in older.out
    assert "<binary" not in older.out
    terminal = await show(site, "inbox", "orders", "ann")
    assert max(map(len, terminal.out.split("\n"))) <= 80
    whole = await call("inbox", "orders", "ann", "--offset", str(last))
    assert "x" * 400 in whole.out
    assert "\x1b" not in whole.out
    missing = await call("inbox", "orders", "ann", "--offset", "99")
    assert (missing.code, missing.out) == (Exit.UNKNOWN, "")
    assert "the inbox of 'ann' in 'orders' has no message at offset 99" in missing.err
    assert (await run(site, "inbox", "orders", "ann", "--offset", "-1")).code == Exit.USAGE


async def test_purge_deletes_one_or_all(site: Site, broker: NatsBroker) -> None:
    for number in range(1, 5):
        await broker.publish(ANN, str(number).encode())
    await broker.publish(BOB, b"5")
    to = ("purge", "orders", "ann")
    assert (await call(*to)).code == Exit.USAGE
    refused = await show(site, *to, typed="\n")
    assert refused.code == Exit.FAILED
    assert "Delete 4 messages of ann in orders for good?" in refused.out
    assert await broker.inboxes.count(ANN) == 4
    done = await run(site, *to, "2", "5", "--no-input", "--json")
    assert done.json == {"deleted": 1, "missing": [5]}  # 5 is another user's
    assert set(done.json) <= documented("gateway purge")
    assert done.code == Exit.UNKNOWN
    left = await broker.inboxes.read_after(ANN, 0, limit=10)
    assert [stored.offset for stored in left.messages] == [1, 3, 4]
    done = await call(*to, "--no-input")
    assert (done.code, done.lines) == (0, ["3 deleted"])
    assert [await broker.inboxes.count(ANN), await broker.inboxes.count(BOB)] == [0, 1]
    assert (await call(*to)).lines == ["0 deleted"]  # nothing is lost, so nothing is asked


async def test_commands_find_out_what_is_a_topic(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(lambda identity, name: None)
    topic("tick", durable=False)(lambda identity, name: None)
    assert (await call("send", "room", "42", "first")).lines == ["stored at offset 1"]
    assert (await call("send", "room", "43", "other")).lines == ["stored at offset 2"]
    await call("send", "room", "42", '{"n": 3}', "--type", "json")
    shown = await call("inbox", "room", "42")
    assert shown.lines[0] == "room.42: 2 messages, offsets 1 to 3"
    assert "Device" not in shown.out
    assert "first" in shown.out
    found = (await call("inbox", "room", "42", "--json")).json
    assert set(found) <= documented("gateway inbox")
    assert [each["offset"] for each in found["stored"]] == [1, 3]
    missing = await call("inbox", "room", "42", "--offset", "2")
    assert missing.code == Exit.UNKNOWN
    assert "the topic 'room.42' has no message at offset 2" in missing.err
    followed = await call("tail", "room", "42", "--count", "2")
    assert [line.split()[0] for line in followed.lines] == ["1", "3"]
    deleted = await call("purge", "room", "42", "1", "2", "--no-input", "--json")
    assert deleted.json == {"deleted": 1, "missing": [2]}  # 2 is another topic's
    assert (await call("purge", "room", "42", "--no-input")).lines == ["1 deleted"]
    assert "room.42: 0 messages" in (await call("inbox", "room", "42")).out
    assert "room.43: 1 message" in (await call("inbox", "room", "43")).out
    sent = await call("send", "tick", "now", "x")
    assert "nothing is stored" in sent.out
    assert "topics of 'tick' are ephemeral" in (await call("tail", "tick", "now")).err


async def test_purge_that_fails_halfway_says_how_far_it_came(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three messages one was deleted, and the error told nothing of that."""
    first, second, third = [(await broker.publish(ANN, b"x")).offset for _ in range(3)]
    delete = NatsOperations.delete

    async def fail_at_second(self: NatsOperations, inbox: Inbox, offset: int) -> bool:
        if offset == second:
            raise BrokerUnavailable("no answer")
        return await delete(self, inbox, offset)

    monkeypatch.setattr(NatsOperations, "delete", fail_at_second)
    done = await call("purge", *ANN, str(first), str(second), str(third), "--no-input")
    assert done.code == Exit.UNAVAILABLE
    assert f"1 deleted; offset {second}: no answer" in done.err
    assert await broker.inboxes.count(ANN) == 2


@pytest.mark.django_db(transaction=True)
async def test_purge_of_a_user_shows_asks_and_deletes(broker: NatsBroker) -> None:
    """There was no way to delete all that is kept of a user."""
    chat, of_ann = Inbox("service1", "ann"), ("purge", "--user", "ann")
    for inbox in (ANN, ANN, chat, BOB):
        await broker.publish(inbox, b"x")
    await broker.save_cursor(ANN, "phone", 1)
    shown = await call(*of_ann, "--dry-run")
    assert shown.lines[-1] == "4 records would be deleted"
    assert [columns(line) for line in shown.lines[1:3]] == [
        ["orders", "2", "1", "0", "0"],
        ["service1", "1", "0", "0", "0"],
    ]
    refused = await call(*of_ann)
    assert (refused.code, "--no-input" in refused.err) == (Exit.USAGE, True)
    assert await broker.inboxes.count(ANN) == 2
    done = await call(*of_ann, "--service", "service1", "--no-input", "--json")
    empty = {"cursors": 0, "queued": 0, "dead_letters": 0}
    assert done.json == {
        "user": "ann",
        "dry_run": False,
        "services": {"service1": {"messages": 1, **empty}},
        "outbox_rows": 0,
        "sockets": 0,
        "silent": [],
    }
    assert set(done.json) <= documented("gateway purge")
    assert (await call(*of_ann, "--no-input")).lines[-1] == "3 records deleted"
    assert [await broker.inboxes.count(each) for each in (ANN, chat, BOB)] == [0, 0, 1]
    assert "No service stores anything" in (await call(*of_ann, "--dry-run")).out


@pytest.mark.parametrize(
    "arguments",
    [
        ("orders", "ann", "--user", "ann"),
        ("orders",),
        (),
        ("orders", "ann", "--dry-run"),
        ("orders", "ann", "--service", "orders"),
        ("--user", "", "--no-input"),
        ("--user", "ann", "--service", "", "--no-input"),
    ],
)
async def test_purge_with_arguments_that_do_not_fit_deletes_nothing(
    broker: NatsBroker, arguments: tuple[str, ...]
) -> None:
    await broker.publish(ANN, b"x")
    assert (await call("purge", *arguments)).code == Exit.USAGE
    assert await broker.inboxes.count(ANN) == 1


# -- status ------------------------------------------------------------------------------


async def test_status_shows_everything_at_a_glance(
    site: Site, gateways: list[Gateway], tmp_path: Path
) -> None:
    one, two = gateways
    async with sockets(one.connect(*ANN), two.connect(*ANN), two.connect(*BOB)) as [socket, *_]:
        await socket.send("for the service")

        stuck = "orders: 1 message waits and no worker takes any"
        found: dict[str, Any] = {"alerts": []}
        async with asyncio.timeout(40):  # it is stuck after some seconds
            while stuck not in [each["text"] for each in found["alerts"]]:
                found = (await call("status", "--json")).json
                await asyncio.sleep(0.2)
        assert set(found) <= documented("gateway status")
        assert {each["pid"]: each["sockets"] for each in found["gateways"]} == {
            one.pid: 1,
            two.pid: 2,
        }
        [orders] = [each for each in found["services"] if each["service"] == "orders"]
        assert (orders["users"], orders["sockets"], orders["waiting"]) == (2, 3, 1)
        assert {each["name"].rpartition("_")[2] for each in found["streams"]} >= {"RECV", "DEAD"}
        words = await run(site, "status")
        assert words.code == 0
        for line in ("Gateways", "Services", "Workers", "Streams", "To look at", stuck):
            assert line in words.lines
        terminal = await show(site, "status")
        assert max(map(len, terminal.out.split("\n"))) <= 80
        two.send(signal.SIGSTOP)
        try:
            silent = await run(site, "status")
            assert silent.code == Exit.INCOMPLETE
            assert "no answer from" in silent.err
            assert "Streams" in silent.lines
        finally:
            two.send(signal.SIGCONT)


# -- tail --------------------------------------------------------------------------------


@asynccontextmanager
async def tailing(site: Site, folder: Path, *arguments: str) -> AsyncIterator[Process]:
    process = Process(site.command("gateway", "tail", *arguments), folder / "tail.log", site.env)
    process.spawn()
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_tail_follows_without_taking_anything(
    site: Site, broker: NatsBroker, gateway: Gateway, tmp_path: Path, number: signal.Signals
) -> None:
    for text in ("a", "b", "c"):
        await broker.publish(ANN, text.encode())
    async with tailing(site, tmp_path, "orders", "ann", "--last", "2") as tail:
        await until(lambda: len(tail.output.splitlines()) == 2, 30, "the newest two")
        await broker.publish(ANN, b"live")
        await until(lambda: len(tail.output.splitlines()) == 3, 30, "the live one")
        async with sockets(gateway.connect(*ANN)) as [socket]:
            got = [await asyncio.wait_for(socket.recv(), 20) for _ in range(4)]
        assert got == ["a", "b", "c", "live"]
        tail.send(number)
        assert await asyncio.to_thread(tail.wait) == 0
        assert [columns(line)[::2] for line in tail.output.splitlines()] == [
            ["2", "b"],
            ["3", "c"],
            ["4", "live"],
        ]


async def test_tail_as_json_ends_after_a_number_of_messages(site: Site, broker: NatsBroker) -> None:
    for text in ("a", "b", "c"):
        await broker.publish(ANN, text.encode())
    done = await run(site, "tail", "orders", "ann", "--after", "1", "--count", "2", "--json")
    assert done.code == 0
    messages = [json.loads(line) for line in done.lines]
    assert [(each["offset"], each["text"]) for each in messages] == [(2, "b"), (3, "c")]
    none = await run(site, "tail", "orders", "ann", "--count", "0", "--json")
    assert (none.code, none.lines) == (0, [])
    bad = await call("tail", "orders", "ann", "--after", "99")
    assert (bad.code, bad.out) == (Exit.UNKNOWN, "")
    assert "offset 99 is not stored yet; the newest of all inboxes is 3" in bad.err
    assert (await run(site, "tail", "orders", "ann", "--after", "x")).code == Exit.USAGE


async def test_tail_goes_on_after_the_broker_was_away(
    tmp_path: Path, own_server: EmbeddedServer, settings: Any
) -> None:
    site = Site(tmp_path, NATS_BROKER_URL=own_server.url, WSGATEWAY_PREFIX="ws")

    def send(text: str) -> None:
        done = site.run("gateway", "send", "orders", "ann", text)
        assert done.code == 0, done.err

    await asyncio.to_thread(send, "before")
    async with tailing(site, tmp_path, "orders", "ann", "--json") as tail:
        await until(lambda: "before" in tail.output, 30, "the first")
        await asyncio.to_thread(own_server.stop)
        await until(lambda: "the connection to the broker is lost" in tail.output, 30, "a note")
        await asyncio.to_thread(own_server.start)
        await asyncio.to_thread(send, "after")
        await until(lambda: '"after"' in tail.output, 30, "the next")
        tail.send(signal.SIGTERM)
        assert await asyncio.to_thread(tail.wait) == 0
