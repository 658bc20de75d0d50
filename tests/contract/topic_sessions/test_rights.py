"""Who may read and write which topic, and what becomes of what they write."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from django.db import OperationalError

import wsgateway
from tests.contract.topic_sessions.client import (
    ANN,
    CURSOR,
    LOBBY,
    ROOM,
    SECRET,
    Client,
    answer,
    publish,
)
from tests.support import until, within
from tests.troubleshooting import Symptom
from wsgateway import counters, declared, topics
from wsgateway.broker.connection import Connection
from wsgateway.gateway.hub import Hub
from wsgateway.identity import Identity
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import Resume, Subscribed, Unsubscribed
from wsgateway.protocol.v1.messages import ServerMessage
from wsgateway.services.registry import get_service
from wsgateway.services.worker import Worker


@pytest.mark.parametrize("topic", [SECRET, Topic("nobodys", "42")])
async def test_no_such_topic_and_not_allowed_are_one_answer(ann: Client, topic: Topic) -> None:
    refused = counters.gateway.refused_subscriptions
    before = refused["forbidden"]
    answer = await ann.subscribe(topic)
    assert (answer.code, answer.temporary) == ("forbidden", False)
    assert refused["forbidden"] == before + 1
    assert answer.reason == "there is no such topic, or this client may not read it"
    assert str(topic) not in answer.reason


@pytest.mark.troubleshooting("refused topic … to …: no @topic declares")
async def test_log_says_that_nobody_declares_the_topic(
    symptom: Symptom, ann: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The client may not learn it, and the log had nothing: a typo looked like a missing right."""
    with caplog.at_level("INFO", "wsgateway"):
        await ann.subscribe(Topic("rom", "42"))
    symptom.must_show_in(caplog.text)
    assert "to 'ann': no @topic declares 'rom'; did you mean 'room'?" in caplog.text


async def test_stuck_database_holds_up_new_subscriptions_only(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All plain functions share the thread for the database. What is open, and what a token
    decides, needs none of them. If the query fails in the end, the client may ask again."""
    stuck = threading.Event()

    def allow(identity: Identity, name: str) -> str:
        stuck.wait(20)
        raise OperationalError("canceling statement due to statement timeout")

    wsgateway.topic("slow")(allow)
    await ann.subscribe(ROOM)
    await ann.session.receive(protocol.encode_subscribe("slow", "slow.1"))
    await ann.subscribe(LOBBY, token=topics.token("room", "lobby", user="ann"))
    await publish(hub.broker, ROOM, "open")
    await publish(hub.broker, LOBBY, "token")
    await ann.has("open", topic=ROOM)
    await ann.has("token", topic=LOBBY)
    assert ann.told(Unsubscribed, Topic("slow", "1")) == []
    stuck.set()
    await until(lambda: ann.told(Unsubscribed, Topic("slow", "1")), what="an answer")
    [answer] = ann.told(Unsubscribed, Topic("slow", "1"))
    assert (answer.id, answer.code, answer.temporary) == ("slow", "unavailable", True)


async def test_revoked_right_ends_the_subscription(hub: Hub, ann: Client, rules: Any) -> None:
    await ann.subscribe(ROOM)
    await ann.subscribe(LOBBY)
    rules["ann", "42"] = None
    await topics.arecheck("room", "42")
    await until(lambda: ann.told(Unsubscribed, ROOM), what="it has ended")
    await publish(hub.broker, ROOM, "not any more")
    await publish(hub.broker, LOBBY, "still")
    await ann.has("still", topic=LOBBY)
    assert ann.got(ROOM) == []
    assert ann.told(Unsubscribed, ROOM)[0].code == "forbidden"
    assert (await ann.subscribe(ROOM)).code == "forbidden"


async def test_revoked_user_is_unsubscribed_on_two_gateways_within_a_second(
    hub: Hub, ann: Client, brokers: Any
) -> None:
    other = Hub(Connection(asyncio.get_running_loop(), brokers.make()))
    await other.open()
    clients = [ann, Client(other), Client(other, "bob")]
    for client in clients[1:]:
        await client.session.start(Resume())
    secrets = iter([SECRET, Topic("room", "secret2"), Topic("room", "secret3")])

    async def attempt() -> float:
        topic = next(secrets)
        for client in clients:
            token = topics.token("room", topic.name, user=client.session.identity.user)
            assert isinstance(await client.subscribe(topic, token=token), Subscribed)
        begin = time.monotonic()
        await topics.arevoke("room", topic.name, user="ann")
        await until(lambda: all(each.told(Unsubscribed, topic) for each in clients[:2]))
        return time.monotonic() - begin

    await within(1.0, attempt)
    token = topics.token("room", SECRET.name, user="ann")  # the clocks of two servers differ
    for client in clients[:2]:
        again = await client.subscribe(SECRET, token=token)
        assert isinstance(again, Unsubscribed)
        assert again.code == "forbidden"
    await publish(hub.broker, SECRET, "for bob")
    await clients[2].has("for bob", topic=SECRET)
    assert ann.got(SECRET) == clients[1].got(SECRET) == []
    await other.close()


async def test_client_writes_to_a_topic_that_stores_it_with_the_sender(
    hub: Hub, ann: Client
) -> None:
    bob = Client(hub, "bob")
    await bob.session.start(Resume())
    board = Topic("board", "1")
    for client in (ann, bob):
        await client.subscribe(board)
    await ann.say("m1", "from ann", board)
    assert isinstance(await answer(ann, "m1"), protocol.Accepted)
    for client in (ann, bob):
        await client.has("from ann", topic=board)
        assert client.told(ServerMessage, board)[0].sender == ANN
    await bob.session.stop()


async def test_client_writes_to_a_topic_whose_service_handles_it(
    hub: Hub, ann: Client, brokers: Any
) -> None:
    await ann.subscribe(ROOM)
    await ann.say("m1", "for the handler", ROOM)
    assert isinstance(await answer(ann, "m1"), protocol.Accepted)
    assert ann.got(ROOM) == []
    [queue] = [each for each in await hub.broker.operations.queues() if each.service == "room"]
    assert queue.waiting == 1


async def test_handler_answers_the_writer_and_publishes_to_all(hub: Hub, ann: Client) -> None:
    hall, bob = Topic("hall", "1"), Client(hub, "bob")
    await bob.session.start(Resume())
    for client in (ann, bob):
        await client.subscribe(hall)
    worker = Worker(get_service("hall"), hub.broker)
    worker.start()
    frame = protocol.encode_client_message("m1", Frame.of("hi"), request=True, topic=str(hall))
    await ann.session.receive(frame)
    for client in (ann, bob):
        await client.has("ann: hi", topic=hall)
        assert client.told(ServerMessage, hall)[0].sender is None  # the handler wrote it
    await ann.has("published")
    [reply] = [f for f in ann.frames if isinstance(f, ServerMessage) and f.topic is None]
    assert reply.reply_to == "m1"
    assert bob.got() == []
    await worker.stop(5.0)
    await bob.session.stop()


async def test_right_to_write_is_worth_nothing_where_nothing_takes_it(ann: Client) -> None:
    news = Topic("news", "1")
    assert (await ann.subscribe(news)).access == "read"
    await ann.say("m1", "unheard", news)
    assert (await answer(ann, "m1")).code == "forbidden"


async def test_right_to_write_is_withdrawn_while_reading_goes_on(
    hub: Hub, ann: Client, rules: Any
) -> None:
    first = await ann.subscribe(ROOM)
    rules["ann", "42"] = "read"
    await topics.arecheck("room", "42")
    await until(lambda: len(ann.told(Subscribed, ROOM)) == 2, what="it is told")
    told = ann.told(Subscribed, ROOM)[1]
    assert (told.access, told.recovered, told.id) == ("read", True, None)
    assert (told.durable, told.epoch, told.offset) == (True, first.epoch, first.offset)
    await ann.say("m1", "too late", ROOM)
    assert (await answer(ann, "m1")).code == "forbidden"
    await publish(hub.broker, ROOM, "still")
    await ann.has("still", topic=ROOM)


async def test_right_is_asked_about_the_identity_of_the_newest_token(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refresh, `allow` went on to see whom the socket had been opened for."""
    asked: list[float | None] = []

    async def allow(identity: Identity, name: str) -> str:
        asked.append(identity.expires_at)
        return "read"

    for topic in (ROOM, CURSOR):
        monkeypatch.setattr(declared.topics[topic.service], "allow", allow)
        await ann.subscribe(topic)
    end = time.time() + 600
    hub.renew(ann.session, replace(ann.session.identity, expires_at=end))
    for topic in (ROOM, CURSOR):
        await topics.arecheck(topic.service, None)
    await until(lambda: len(asked) == 4, what="asked again")
    assert asked == [None, None, end, end]
