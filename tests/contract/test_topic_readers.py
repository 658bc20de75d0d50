"""Who reads a topic, on every kind of broker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

import wsgateway
from tests.commands import call, documented
from tests.contract.topic_sessions.client import Client
from tests.support import until
from wsgateway import declared, topics
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.exceptions import NameRefused, TopicsUnknown
from wsgateway.gateway.hub import Hub
from wsgateway.identity import Identity
from wsgateway.management.exits import Exit
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Resume

WATCH = json.dumps({"type": "watch", "id": "w", "topic": "room.42"})
ROOM, CURSOR = Topic("room", "42"), Topic("cursor", "42")
ANN, BOB = Inbox("service1", "ann"), Inbox("service1", "bob")


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, brokers: Any) -> None:
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})

    @wsgateway.topic("room", presence=True)
    async def allow(identity: Identity, name: str) -> str | None:
        return None if name.startswith("secret") else "read"

    wsgateway.topic("cursor", durable=False)(allow)


@pytest.fixture
async def hubs(rules: Any, brokers: Any) -> AsyncIterator[list[Hub]]:
    """Two gateways."""
    made = [Hub(Connection(asyncio.get_running_loop(), brokers.make())) for _ in range(2)]
    for hub in made:
        await hub.open()
        await hub.broker.wait_ready(20)
        await hub.presence.listed()
    await made[0].broker.set_up()
    yield made
    for hub in made:
        await hub.close()


@pytest.fixture
async def connect(hubs: list[Hub]) -> AsyncIterator[Callable[..., Any]]:
    """Opens sockets that read topics; closes them at the end."""
    clients: list[Client] = []

    async def connect(hub: Hub, user: str, *names: Topic) -> Client:
        client = Client(hub, user)
        clients.append(client)
        await client.session.start(Resume())
        for name in names:
            await client.subscribe(name)
        return client

    yield connect
    for client in clients:
        await client.session.stop()


@pytest.fixture(params=["sync", "async"])
def readers(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls `topics.readers` in a thread, or its asynchronous twin."""

    async def call(topic: Topic, **options: Any) -> topics.Readers:
        names = topic.service, topic.name
        if request.param == "sync":
            return await asyncio.to_thread(topics.readers, *names, **options)
        return await topics.areaders(*names, **options)

    return call


async def test_readers_are_the_users_whose_sockets_read_the_topic(
    hubs: list[Hub], connect: Any, readers: Any
) -> None:
    assert (await readers(ROOM)).users == {}
    first = await connect(hubs[0], "ann", ROOM)
    await connect(hubs[1], "ann", ROOM, CURSOR)
    bob = await connect(hubs[1], "bob", ROOM, Topic("room", "secret"))
    await connect(hubs[1], "carl")
    found = await readers(ROOM)
    assert (found.users, found.sockets, found.after) == ({ANN: 2, BOB: 1}, 3, None)
    assert found.complete
    assert (await readers(CURSOR)).users == {ANN: 1}
    assert (await readers(Topic("room", "secret"))).users == {}
    await bob.unsubscribe(ROOM)
    await first.session.stop()
    found = await readers(ROOM)
    assert (found.users, found.sockets) == ({ANN: 1}, 1)


async def test_command_lists_the_readers(hubs: list[Hub], connect: Any) -> None:
    """It said that the service room does not exist, and to declare it with @service."""
    await connect(hubs[0], "ann", ROOM)
    await connect(hubs[1], "bob", ROOM)
    done = await call("who", "room", "42", "--json")
    assert done.json["sockets"] == 2
    assert done.json["users"] == [{**inbox._asdict(), "sockets": 1} for inbox in (ANN, BOB)]
    assert set(done.json) | set(done.json["users"][0]) <= documented("gateway who")
    assert "No one reads cursor.42." in (await call("who", "cursor", "42")).out
    without_name = await call("who", "room")
    assert (without_name.code, without_name.out) == (Exit.USAGE, "")
    assert "name one, such as: gateway who room 42" in without_name.err
    closing = await call("disconnect", "room", "42", "--no-input")
    assert (closing.code, closing.out) == (Exit.UNKNOWN, "")
    assert "has topics, not users" in closing.err


async def test_revoked_user_is_not_a_reader(hubs: list[Hub], connect: Any) -> None:
    await connect(hubs[0], "ann", ROOM)
    await topics.arevoke("room", "42", user="ann")

    async def is_gone() -> bool:
        return not (await topics.areaders("room", "42")).users

    async with asyncio.timeout(5):
        while not await is_gone():
            await asyncio.sleep(0.02)


async def test_readers_come_in_pages_without_repeats(hubs: list[Hub], connect: Any) -> None:
    for number in range(7):
        await connect(hubs[number % 2], f"user{number}", ROOM)
    names: list[str] = []
    page = await topics.areaders("room", "42", limit=3)
    sizes = [len(page.users)]
    names += [inbox.user for inbox in page.users]
    while page.after is not None:
        assert page.sockets == 7
        page = await topics.areaders("room", "42", after=page.after, limit=3)
        sizes.append(len(page.users))
        names += [inbox.user for inbox in page.users]
    assert names == [f"user{number}" for number in range(7)]
    assert max(sizes) == 3


async def test_silent_gateway_is_named(hubs: list[Hub], connect: Any, brokers: Any) -> None:
    broker = await brokers.open()
    broker.bus.subscribe(broker.subjects.member("gateway", "frozen"), lambda *_: None)
    await broker.in_effect()
    await broker.roster.join("gateway", "frozen")
    await connect(hubs[0], "ann", ROOM)
    found = await topics.areaders("room", "42")
    assert (found.users, found.silent, found.complete) == ({ANN: 1}, ("frozen",), False)
    await broker.close()


async def test_answer_that_cannot_be_read_counts_as_silence(
    hubs: list[Hub], connect: Any, brokers: Any
) -> None:
    broker = await brokers.open()

    def answer(_subject: bytes, reply: bytes, *_: Any) -> None:
        broker.bus.publish(reply.decode(), b'{"gateway": "odd", "readers": [7], "sockets": 1}')

    broker.bus.subscribe(broker.subjects.member("gateway", "odd"), answer)
    await broker.in_effect()
    await broker.roster.join("gateway", "odd")
    found = await topics.areaders("room", "42")
    assert (found.users, found.silent) == ({}, ("odd",))
    await broker.close()


async def test_arguments_that_mean_nothing_are_refused(hubs: list[Hub]) -> None:
    with pytest.raises(TopicsUnknown):
        await topics.areaders("rom", "42")
    with pytest.raises(NameRefused):
        await topics.areaders("room", "")
    with pytest.raises(ValueError, match="limit is 0"):
        await topics.areaders("room", "42", limit=0)
    with pytest.raises(RuntimeError, match="await areaders"):
        topics.readers("room", "42")


class Watcher(Client):
    """A client that also keeps every frame as JSON, and plays a page that shows who is there."""

    def __init__(self, hub: Hub, user: str = "eve") -> None:
        super().__init__(hub, user)
        self.seen: list[dict[str, Any]] = []
        self.shown: set[str] = set()
        self.changes: list[tuple[str, str]] = []

    async def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.send":
            self._show(json.loads(event["text"]))

    def _show(self, frame: dict[str, Any]) -> None:
        self.seen.append(frame)
        if frame.get("topic") != "room.42":
            return
        if frame.get("users") is not None:
            self.shown = {each["user"] for each in frame["users"]}
        for kind in ("joined", "left"):
            self.changes += [(kind, each["user"]) for each in frame.get(kind, ())]
        self.shown |= {each["user"] for each in frame.get("joined", ())}
        self.shown -= {each["user"] for each in frame.get("left", ())}

    async def watch(self) -> dict[str, Any]:
        await self.session.receive(WATCH)
        await until(lambda: any(f.get("id") == "w" for f in self.seen), what="an answer")
        return next(f for f in self.seen if f.get("id") == "w")

    async def shows(self, *users: str) -> None:
        await until(lambda: self.shown == {*users}, what=f"{users}, not {self.shown}")


@pytest.fixture
async def eve(hubs: list[Hub]) -> AsyncIterator[Watcher]:
    """Watches, and reads nothing."""
    client = Watcher(hubs[0])
    await client.session.start(Resume())
    yield client
    await client.session.stop()


@pytest.fixture
def grace(settings: Any) -> None:
    """Those who are gone are so soon."""
    settings.WSGATEWAY_OFFLINE_GRACE = 0.1


async def test_watcher_sees_who_is_there_and_who_comes_and_goes(
    hubs: list[Hub], connect: Any, eve: Watcher, grace: None
) -> None:
    await connect(hubs[1], "ann", ROOM)
    answer = await eve.watch()
    assert answer["users"] == [{"service": "service1", "user": "ann"}]
    assert answer["complete"]
    bob = await connect(hubs[1], "bob", ROOM)
    await eve.shows("ann", "bob")
    second = await connect(hubs[0], "bob", ROOM)
    await bob.unsubscribe(ROOM)
    await connect(hubs[0], "carl", ROOM)
    await eve.shows("ann", "bob", "carl")
    await second.session.stop()
    await eve.shows("ann", "carl")
    assert eve.changes == [("joined", "bob"), ("joined", "carl"), ("left", "bob")]


async def test_reader_who_moves_to_another_gateway_does_not_flicker(
    hubs: list[Hub], connect: Any, eve: Watcher
) -> None:
    ann = await connect(hubs[1], "ann", ROOM)
    await eve.watch()
    await ann.session.stop()
    await connect(hubs[1], "bob", ROOM)
    await eve.shows("ann", "bob")
    await connect(hubs[0], "ann", ROOM)
    await connect(hubs[0], "carl", ROOM)
    await eve.shows("ann", "bob", "carl")
    assert eve.changes == [("joined", "bob"), ("joined", "carl")]


async def test_revoked_right_ends_the_watch(hubs: list[Hub], eve: Watcher) -> None:
    await eve.watch()
    await topics.arevoke("room", "42", user="eve")
    frame = await until(lambda: eve.seen[-1] if eve.seen[-1]["type"] == "unwatched" else None)
    assert (frame["topic"], frame["code"]) == ("room.42", "forbidden")
    assert hubs[0].watching.targets == 0


@pytest.mark.parametrize("topic", ["room.secret", "cursor.42", "unknown.42"])
async def test_nobody_watches_what_they_may_not_read_or_what_does_not_show_it(
    hubs: list[Hub], eve: Watcher, topic: str
) -> None:
    await eve.session.receive(json.dumps({"type": "watch", "id": "w", "topic": topic}))
    frame = await until(lambda: next((f for f in eve.seen if f.get("id") == "w"), None))
    text = "there is no such topic, or this client may not see who reads it"
    assert (frame["code"], frame["message"]) == ("forbidden", text)


async def test_token_lets_a_client_watch(hubs: list[Hub], eve: Watcher) -> None:
    token = topics.token("room", "secret", user=("service1", "eve"))
    frame = {"type": "watch", "id": "w", "topic": "room.secret", "token": token}
    await eve.session.receive(json.dumps(frame))
    answer = await until(lambda: next((f for f in eve.seen if f.get("id") == "w"), None))
    assert answer["users"] == []


async def test_whoever_reads_the_topic_may_watch_it_without_another_query(
    hubs: list[Hub], connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page that came back cost two queries, and a watch with an expired token was refused."""
    asked: list[str] = []

    async def allow(identity: Identity, name: str) -> str | None:
        asked.append(identity.user)
        return "read" if len(asked) == 1 else None

    monkeypatch.setattr(declared.topics["room"], "allow", allow)
    ann = await connect(hubs[0], "ann", ROOM)
    await ann.session.receive(WATCH)
    await until(lambda: hubs[0].watching.targets == 1, what="a watch")
    await ann.unsubscribe(ROOM)
    await topics.arecheck("room", None)
    await until(lambda: hubs[0].watching.targets == 0, what="the end of the watch")
    assert asked == ["ann", "ann"]


async def test_watch_ends_with_the_socket_and_on_request(hubs: list[Hub], eve: Watcher) -> None:
    await eve.watch()
    assert hubs[0].watching.targets == 1
    await eve.session.receive(json.dumps({"type": "unwatch", "topic": "room.42"}))
    assert hubs[0].watching.targets == 0
    await eve.session.receive(WATCH.replace('"w"', '"v"'))
    await until(lambda: hubs[0].watching.targets == 1)
    await eve.session.stop()
    assert hubs[0].watching.targets == 0
    assert not hubs[0].rights.holders_of(ROOM)


async def test_topic_of_many_is_counted_and_not_listed(
    hubs: list[Hub], connect: Any, eve: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgateway.protocol.readership.MOST_LISTED", 2)
    for number in range(3):
        await connect(hubs[number % 2], f"user{number}", ROOM)
    answer = await eve.watch()
    assert (answer["users"], answer["sockets"]) == (None, 3)


async def test_reader_of_a_topic_is_not_announced_as_a_user(
    hubs: list[Hub], connect: Any, brokers: Any
) -> None:
    heard: list[dict[str, Any]] = []
    broker = await brokers.open()
    subject = broker.subjects.event(ROOM)
    broker.bus.subscribe(subject, lambda *args: heard.append(json.loads(args[2])))
    await broker.in_effect()
    ann = await connect(hubs[0], "ann", ROOM, CURSOR)
    await ann.unsubscribe(ROOM)
    await until(lambda: len(heard) == 2)
    kept = ("event", "service", "user", "topic", "code")
    assert [[each.get(name) for name in kept] for each in heard] == [
        ["joined", "service1", "ann", "room.42", None],
        ["left", "service1", "ann", "room.42", None],
    ]
    await broker.close()


async def test_client_that_watches_many_topics_delays_no_other_client(
    hubs: list[Hub], connect: Any
) -> None:
    """Django was asked about all of them first."""
    asked: list[str] = []

    @wsgateway.topic("slow", presence=True)
    async def allow(identity: Identity, name: str) -> None:
        asked.append(identity.user)
        await asyncio.sleep(0)

    ann, bob = await connect(hubs[0], "ann"), await connect(hubs[0], "bob")
    for number in range(100):
        frame = {"type": "watch", "id": f"w{number}", "topic": f"slow.{number}"}
        await ann.session.receive(json.dumps(frame))
    await bob.subscribe(Topic("slow", "bob"))
    assert asked.index("bob") < 50


async def test_right_to_watch_is_asked_about_the_identity_of_the_newest_token(
    hubs: list[Hub], connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refresh, `allow` went on to see whom the socket had been opened for."""
    asked: list[float | None] = []

    async def allow(identity: Identity, name: str) -> str:
        asked.append(identity.expires_at)
        return "read"

    monkeypatch.setattr(declared.topics["room"], "allow", allow)
    ann = await connect(hubs[0], "ann")
    await ann.session.receive(WATCH)
    await until(lambda: asked, what="asked")
    end = time.time() + 600
    hubs[0].renew(ann.session, replace(ann.session.identity, expires_at=end))
    await topics.arecheck("room", None)
    await until(lambda: len(asked) == 2, what="asked again")
    assert asked == [None, end]
