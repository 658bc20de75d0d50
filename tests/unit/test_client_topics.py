"""What a client does with topics: reading, writing, and every way in which they end."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from tests.support import until
from tests.unit.clients import client_of, gateway
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import GatewayError, Position, Topic
from wsgateway.client.reading import LIMIT
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.v1 import ErrorCode

__all__ = ["gateway"]  # a fixture


async def take(topic: Topic, number: int) -> list[Any]:
    async with asyncio.timeout(20):
        return [(await topic.recv()).data for _ in range(number)]


async def test_topic_delivers_beside_the_inbox(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42")
    await room.store("old", "newest")
    await gateway.store("mail")
    async with client_of(gateway) as client, client.topic("room.42", since=1) as topic:
        message = await topic.recv()
        assert (message.data, message.offset, message.topic) == ("newest", 2, "room.42")
        assert message.sender is not None
        assert (message.sender.service, message.sender.user) == ("orders", "bob")
        assert (await client.recv()).topic is None
        await room.store("live")
        assert await take(topic, 1) == ["live"]
        assert topic.subscribed is not None
        assert topic.subscribed.access == "write"
        assert topic.position == Position("r1", 2)
    await until(lambda: room.acks == [(2, "r1")])
    assert not room.readers


async def test_topics_go_on_after_a_reconnect_and_a_new_epoch(gateway: FakeGateway) -> None:
    answers: list[tuple[str, bool]] = []
    rooms = [gateway.topic(f"room.{number}") for number in range(3)]
    for room in rooms:
        await room.store("a", "b", "c")
    async with client_of(gateway) as client:
        topics = [
            client.topic(
                room.name,
                since="all",
                on_subscribed=lambda answer: answers.append((answer.topic, answer.recovered)),
            )
            for room in rooms
        ]
        for topic in topics:
            assert await take(topic, 2) == ["a", "b"]  # a is processed
        rooms[2].epoch, rooms[2].log = "r2", []
        await rooms[2].store("new")
        answers.clear()
        gateway.cut()
        await until(lambda: all(len(room.asked) == 2 for room in rooms))
        assert [(room.asked[1].epoch, room.asked[1].offset) for room in rooms] == [("r1", 1)] * 3
        for room in rooms[:2]:
            await room.store("d")
        for topic in topics[:2]:
            assert await take(topic, 2) == ["c", "d"]
        # What had arrived before is still handed over
        assert await take(topics[2], 2) == ["c", "new"]
        assert dict(answers) == {"room.0": True, "room.1": True, "room.2": False}


async def test_nothing_of_any_topic_is_lost_or_twice_whatever_is_cut(gateway: FakeGateway) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    numbers, total = random.Random(seed), 300
    rooms = [gateway.topic(f"room.{number}") for number in range(4)]

    async def publish() -> None:
        for number in range(total):
            for room in rooms:
                await room.store(str(number))
            await asyncio.sleep(0.001)

    async with client_of(gateway) as client:
        topics = [client.topic(room.name, since="all") for room in rooms]
        saboteur = asyncio.create_task(gateway.cut_at_random(numbers, 0.05))
        async with asyncio.timeout(20):
            got = await asyncio.gather(*(take(topic, total) for topic in topics), publish())
        saboteur.cancel()
    assert got[:-1] == [[str(number) for number in range(total)]] * 4
    assert len(gateway.resumes) > 1


async def test_topic_that_nobody_reads_holds_one_window(gateway: FakeGateway) -> None:
    room, other = gateway.topic("room.42", window=4), gateway.topic("room.43", window=4)
    async with client_of(gateway, ack_every=1) as client:
        unread, read = client.topic("room.42", since="all"), client.topic("room.43", since="all")
        await asyncio.gather(unread.open(), read.open())
        for topic in (room, other):
            await topic.store(*map(str, range(50)))
        assert await take(read, 50) == list(map(str, range(50)))
        (reader,) = room.readers.values()
        assert (reader.position, room.acks) == (4, [])
        assert await take(unread, 50) == list(map(str, range(50)))


async def test_ephemeral_topic_that_nobody_reads_keeps_the_newest(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    room = gateway.topic("cursor.1", durable=False)
    async with client_of(gateway) as client, client.topic("cursor.1") as topic:
        with caplog.at_level(logging.WARNING, "wsgateway.client"):
            await room.store(*map(str, range(LIMIT + 5)))
            await gateway.round_trip()
        assert topic.dropped == 5
        assert [record.getMessage() for record in caplog.records] == [
            "dropping messages of cursor.1: nobody reads them"
        ]
        message = await topic.recv()
        assert (message.data, message.offset) == ("5", 0)
        assert topic.position is None
    assert room.acks == []


async def test_writing_waits_for_the_answer_on_each_connection(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42", refusals=[ErrorCode.UNAVAILABLE])
    async with client_of(gateway) as client:
        topic = client.topic("room.42")
        writing = asyncio.create_task(topic.send({"text": "hi"}, id="w"))
        await client.send("not to the topic", id="s")
        assert await writing == "w"
        assert len(room.asked) == 2  # refused for now, then accepted
        asking = asyncio.create_task(topic.request("?", id="q"))
        await until(lambda: "q" in gateway.requests)
        await gateway.reply("q", "!")
        assert (await asking).data == "!"
    assert gateway.stored_in == {"s": None, "w": "room.42", "q": "room.42"}


async def test_refused_topic_says_why_to_everybody_who_waits(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        topic = client.topic("room.42")
        writing = asyncio.create_task(topic.send("x", id="w"))
        for waiting in (topic.open(), topic.recv(), anext(aiter(topic)), writing):
            with pytest.raises(GatewayError) as caught:
                await waiting
            assert (caught.value.code, caught.value.temporary) == ("forbidden", False)
        with pytest.raises(GatewayError, match="no") as caught:
            await topic.send("y", id="again")
        assert caught.value.id == "again"
        await client.send("the client goes on")


async def test_withdrawn_right_ends_the_topic_after_what_had_arrived(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42")
    async with client_of(gateway) as client, client.topic("room.42") as topic:
        await room.store("a")
        await room.end(ErrorCode.FORBIDDEN)
        await gateway.round_trip()
        assert await take(topic, 1) == ["a"]
        with pytest.raises(GatewayError) as caught:
            await anext(aiter(topic))
        assert caught.value.code == "forbidden"
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
        await client.send("x")
        assert len(room.asked) == 1  # not asked for again


@pytest.mark.parametrize("code", [code for code in ErrorCode if code.temporary])
async def test_topic_that_is_away_for_now_goes_on_where_it_was(
    gateway: FakeGateway, code: ErrorCode
) -> None:
    room = gateway.topic("room.42")
    async with client_of(gateway) as client, client.topic("room.42") as topic:
        await room.store("a", "b")
        assert await take(topic, 2) == ["a", "b"]
        room.refusals = [code, code]
        await room.end(code)
        await room.store("c")
        writing = asyncio.create_task(topic.send("d", id="d"))
        assert await take(topic, 1) == ["c"]
        assert await writing == "d"
        assert [frame.epoch for frame in room.asked] == [None, "r1", "r1", "r1"]


async def test_leaving_while_subscribing_is_not_leaving_the_next_time(
    gateway: FakeGateway,
) -> None:
    room = gateway.topic("room.42", answers=False)
    async with client_of(gateway) as client:
        first = client.topic("room.42")
        await until(lambda: room.asked)
        await first.close()
        room.answers = True
        second = client.topic("room.42", since="all")
        gateway.say(protocol.encode_subscribed("room.42", "write", None, "", room.asked[0].id))
        await second.open()
        await room.store("a")
        assert await take(second, 1) == ["a"]
    with pytest.raises(GatewayError, match="was closed"):
        await first.open()


async def test_loop_ends_when_the_topic_or_the_client_is_closed(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42")
    async with client_of(gateway) as client:
        for closed in (client.topic("room.42"), client):
            topic = client.topic("room.42")
            await topic.open()

            async def read(topic: Topic = topic) -> list[Any]:
                return [message.data async for message in topic]

            reading = asyncio.create_task(read())
            await room.store("a")
            await gateway.round_trip()
            await closed.close()
            assert await reading == ["a"]
        with pytest.raises(GatewayError, match="already closed"):
            client.topic("room.42")


async def test_closing_a_topic_acknowledges_what_was_processed(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42")
    await room.store("a", "b")
    async with client_of(gateway) as client:
        topic = client.topic("room.42", since="all")
        await take(topic, 2)
        await topic.close()
        await topic.close()
    await until(lambda: room.acks == [(1, "r1")])
    with pytest.raises(GatewayError) as caught:
        await topic.send("x")
    assert caught.value.code == "ended"


async def test_token_is_asked_for_again_once_it_has_expired(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42", token="t1")
    asked: list[str] = []

    async def token(name: str) -> str:
        asked.append(name)
        if len(asked) == 2:
            raise OSError("no network")
        return room.token or ""

    async with client_of(gateway) as client, client.topic("room.42", token=token) as topic:
        room.token = "t2"
        gateway.cut()
        await until(lambda: len(room.readers) == 1 and len(asked) == 3)
        await room.store("a")
        assert await take(topic, 1) == ["a"]
    assert asked == ["room.42"] * 3
    assert [frame.token for frame in room.asked] == ["t1", "t1", "t2"]


async def test_token_that_the_application_refuses_ends_the_topic(gateway: FakeGateway) -> None:
    def token(name: str) -> str:
        raise GatewayError("left", f"not in {name} any more", False)

    async with client_of(gateway) as client:
        with pytest.raises(GatewayError, match=r"not in room\.42 any more"):
            await client.topic("room.42", token=token).open()


async def test_second_call_returns_the_topic_unless_it_has_options(gateway: FakeGateway) -> None:
    gateway.topic("room.42")
    async with client_of(gateway) as client:
        topic = client.topic("room.42", since="all")
        assert client.topic("room.42") is topic
        with pytest.raises(ValueError, match="already open"):
            client.topic("room.42", since=5)
        await topic.close()
        assert client.topic("room.42", since=5) is not topic


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("room", {}, "<service>.<name>"),
        ("room.42", {"since": 0}, "since=0"),
        ("room.42", {"since": "old"}, "since='old'"),
        ("room.42", {"since": True}, "since=True"),
    ],
)
def test_impossible_topic_is_refused_at_once(name: str, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        client_of(FakeGateway()).topic(name, **options)
