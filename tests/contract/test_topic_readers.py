"""Who reads a topic, on every kind of broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import wsgateway
from tests.contract.test_topic_sessions import Client
from wsgateway import declared, topics
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.exceptions import NameRefused, TopicsUnknown
from wsgateway.gateway.hub import Hub
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Resume

ROOM, CURSOR = Topic("room", "42"), Topic("cursor", "42")
ANN, BOB = Inbox("service1", "ann"), Inbox("service1", "bob")


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, brokers: Any) -> None:
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})

    @wsgateway.topic("room")
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
