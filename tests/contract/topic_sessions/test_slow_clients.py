"""What slow and busy clients cost: bounded memory, and no other client's time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import wsgateway
from tests.contract.topic_sessions.client import (
    ANN,
    CURSOR,
    LOBBY,
    ROOM,
    Client,
    answer,
    publish,
)
from tests.support import until
from wsgateway import counters
from wsgateway.broker.messages import Stored
from wsgateway.gateway import casts
from wsgateway.gateway import session as sessions
from wsgateway.gateway.hub import Hub
from wsgateway.identity import Identity
from wsgateway.protocol import credit, window
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import Resume, Unsubscribed


def held_by(client: Client) -> int:
    """Return the bytes of what is queued for a client, or not acknowledged."""
    return sum(each.window.in_flight_bytes for each in client.session.subscriptions.values())


async def test_client_that_acknowledges_nothing_holds_few_bytes_of_many_topics(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message of each topic went beyond the limit: 172 MB of 200 topics."""
    limit, text = 20_000, "x" * 4_000
    for module in (credit, window):
        monkeypatch.setattr(module, "WINDOW_BYTES", limit)
    rooms = [Topic("room", str(number)) for number in range(20)]
    starts = [await ann.subscribe(room) for room in rooms]
    for room in rooms:
        await publish(hub.broker, room, text, text)
    await until(lambda: held_by(ann) >= limit, what="as much as may be")
    await hub.subscriptions.sweep(thorough=True)
    for room in rooms:
        await publish(hub.broker, room, "small")
    assert limit <= held_by(ann) < limit + len(text)
    late = Client(hub, "bob")
    await late.session.start(Resume())
    for room, start in zip(rooms, starts, strict=True):  # as after a reconnect
        answer = await late.subscribe(room, epoch=start.epoch, offset=start.offset)
        assert answer.recovered
        assert held_by(late) < limit + len(text)
    for client in (ann, late):
        while not all(len(client.got(room)) == 3 for room in rooms):
            for room in filter(client.got, rooms):
                await client.ack(room)
            assert held_by(client) < limit + len(text)
            await asyncio.sleep(0.001)
        assert all(client.got(room) == [text, text, "small"] for room in rooms)
    await late.session.stop()


async def test_client_that_asks_for_many_topics_delays_no_other_client(
    hub: Hub, ann: Client
) -> None:
    """Django was asked about all of them first."""
    asked: list[str] = []

    @wsgateway.topic("slow")
    async def allow(identity: Identity, name: str) -> None:
        asked.append(identity.user)
        await asyncio.sleep(0)

    bob = Client(hub, "bob")
    await bob.session.start(Resume())
    for number in range(200):
        await ann.session.receive(protocol.encode_subscribe(f"t{number}", f"slow.{number}"))
    assert isinstance(await bob.subscribe(Topic("slow", "bob")), Unsubscribed)
    assert asked.index("bob") < 50
    await bob.session.stop()


async def test_client_that_acknowledges_nothing_of_one_topic_gets_the_others(
    hub: Hub, settings: Any
) -> None:
    settings.WSGATEWAY_WINDOW, settings.WSGATEWAY_SOCKET_WINDOW = 4, 8
    client = Client(hub)
    await client.session.start(Resume())
    for topic in (ROOM, LOBBY):
        await client.subscribe(topic)
    data = [str(number) for number in range(12)]
    await publish(hub.broker, ROOM, *data)
    await until(lambda: len(client.got(ROOM)) == 4, what="a window")
    for number in data:
        await publish(hub.broker, LOBBY, number)
        await until(lambda: number in client.got(LOBBY), what="it came")  # noqa: B023
        await client.ack(LOBBY)
    await publish(hub.broker, ANN, "mail")
    await client.has("mail")
    assert client.got(ROOM) == data[:4]
    while len(client.got(ROOM)) < 12:
        before = len(client.got(ROOM))
        await client.ack(ROOM)
        await until(lambda: len(client.got(ROOM)) > before, what="more")  # noqa: B023
    assert client.got(ROOM) == client.got(LOBBY) == data
    await client.session.stop()


async def test_ephemeral_topic_reaches_those_who_read_it_now(hub: Hub, ann: Client) -> None:
    bob = Client(hub, "bob")
    await bob.session.start(Resume())
    await publish(hub.broker, CURSOR, "before")
    for client in (ann, bob):
        told = await client.subscribe(CURSOR)
        assert (told.durable, told.epoch, told.access) == (False, "", "write")
    await ann.say("m1", "5,7", CURSOR)
    assert isinstance(await answer(ann, "m1"), protocol.Accepted)
    for client in (ann, bob):
        await client.has("5,7", topic=CURSOR)
    await ann.unsubscribe(CURSOR)
    await until(lambda: ann.told(Unsubscribed, CURSOR), what="an answer")
    await publish(hub.broker, CURSOR, "after")
    await bob.has("5,7", "after", topic=CURSOR)
    assert ann.got(CURSOR) == ["5,7"]
    await bob.session.stop()


async def test_slow_reader_of_an_ephemeral_topic_costs_bounded_memory_and_is_told(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casts, "WINDOW_BYTES", 20_000)
    before = counters.gateway.ended_slow
    bob = Client(hub, "bob")
    await bob.session.start(Resume())
    for client in (ann, bob):
        await client.subscribe(CURSOR)
        await client.subscribe(ROOM)
    ann.reads.clear()
    data = [str(number) for number in range(100)]
    for number in data:
        await publish(hub.broker, CURSOR, number)
        await until(lambda: number in bob.got(CURSOR), what="it came")  # noqa: B023
    await publish(hub.broker, ROOM, "kept")
    ann.reads.set()
    await ann.has("kept", topic=ROOM)
    [told] = ann.told(Unsubscribed, CURSOR)
    assert (told.code, told.temporary) == ("too_slow", True)
    assert counters.gateway.ended_slow == before + 1
    assert len(ann.got(CURSOR)) <= 20_000 // casts.OVERHEAD
    assert bob.got(CURSOR) == data
    await ann.subscribe(CURSOR)
    await publish(hub.broker, CURSOR, "again")
    await until(lambda: ann.got(CURSOR)[-1] == "again", what="it goes on")
    await bob.session.stop()


async def test_client_that_subscribes_and_leaves_without_reading_is_cut(
    hub: Hub, ann: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to ``unsubscribe`` waited for it without a limit."""
    monkeypatch.setattr(sessions, "MAX_ANSWERS", 20)
    settings.WSGATEWAY_PING_TIMEOUT = 0.2

    async def storm(client: Client, pairs: int) -> None:
        for number in range(pairs):
            frame = protocol.encode_subscribe(f"x{number}", str(ROOM))
            await client.session.receive(frame)
            await client.unsubscribe(ROOM)

    await storm(ann, 60)
    await until(lambda: len(ann.told(Unsubscribed, ROOM)) == 60, what="all are answered")
    assert not ann.session.socket.closed
    ann.reads.clear()
    storming = asyncio.create_task(storm(ann, 60))
    await until(lambda: ann.session.socket.closed, what="it is cut")
    assert ann.session.close_code == CloseCode.TOO_SLOW
    ann.reads.set()
    await storming


async def test_ephemeral_topics_of_a_slow_socket_share_one_bound(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each topic kept one message more, however large; the one that is behind must go."""
    monkeypatch.setattr(casts, "WINDOW_BYTES", 4 * (casts.OVERHEAD + 10))
    many = [Topic("cursor", str(number)) for number in range(8)]
    bob = Client(hub, "bob")
    await bob.session.start(Resume())
    for topic in many:
        await ann.subscribe(topic)
        await bob.subscribe(topic)
    ann.reads.clear()
    for topic in [many[0]] * 4 + many:
        before = len(bob.got(topic))
        await publish(hub.broker, topic, "text 00000")
        await until(lambda: len(bob.got(topic)) > before, what="it came")  # noqa: B023
    ann.reads.set()
    await ann.has("text 00000", topic=many[-1])
    assert ann.told(Unsubscribed, many[0])
    assert sum(len(ann.got(topic)) for topic in many) <= 5  # one was being written
    await bob.session.stop()


class Busy(Client):
    """While it reads a message of `CURSOR`, the next one comes; with the first, one of `ROOM`."""

    heard = 0

    async def _take(self, event: dict[str, Any]) -> None:
        await super()._take(event)
        broker, count = self.session.hub.broker, len(self.got(CURSOR))
        if count == 1 and not self.got(ROOM):
            await publish(broker, ROOM, "here")
        if 0 < count < 50 and not self.got(ROOM):
            await publish(broker, CURSOR, "tick")
            await until(lambda: self.heard > count, what="it is heard")

    def hear(self, _: Stored) -> None:
        self.heard += 1


async def test_busy_ephemeral_topic_holds_up_no_other(hub: Hub) -> None:
    """While more of it came than was written, nothing else was written."""
    busy = Busy(hub)
    await busy.session.start(Resume())
    await busy.subscribe(CURSOR)
    await busy.subscribe(ROOM)
    hearing = hub.broker.hear(CURSOR, busy.hear)
    await hub.broker.in_effect()
    await publish(hub.broker, CURSOR, "tick")
    await busy.has("here", topic=ROOM)
    assert len(busy.got(CURSOR)) < 50
    hearing.close()
    await busy.session.stop()
