"""Topics: published, stored and heard alike on every broker."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import eventually
from wsgateway import (
    Outgoing,
    OutgoingTopic,
    asend,
    asend_many,
    asend_topic,
    declared,
    send_topic,
    topic,
    topics,
)
from wsgateway.broker import follow as following
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Receipt, Stored
from wsgateway.declared import TopicKind
from wsgateway.exceptions import IdentityRefused, ServiceUnknown, TopicsUnknown
from wsgateway.identity.resolving import require_service
from wsgateway.layer import NatsChannelLayer
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic

ROOM, OTHER, TICK = Topic("room", "42"), Topic("room", "43"), Topic("tick", "now")


def allow(identity: Any, name: str) -> None:
    return None


@pytest.fixture(autouse=True)
def declare(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services `room`, with durable topics, and `tick`, with ephemeral ones."""
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(allow)
    topic("tick", durable=False)(allow)
    brokers.settings.WSGATEWAY_SERVICES = ["orders"]


async def texts(broker: Broker, address: Topic | Inbox) -> list[str]:
    batch = await broker.log(address).read_after(address, 0, limit=100)
    return [stored.payload.decode() for stored in batch.messages]


async def test_each_topic_has_its_own_order_and_ids(broker: Broker) -> None:
    first = await asend_topic("room", "42", text="a", msg_id="1")
    again = await asend_topic("room", "42", text="a", msg_id="1")
    elsewhere = await asend_topic("room", "43", json={"b": 1}, msg_id="1")
    assert again == Receipt(first.offset, True)
    assert not elsewhere.duplicate
    assert elsewhere.offset > first.offset
    assert await texts(broker, ROOM) == ["a"]
    assert await texts(broker, OTHER) == ['{"b":1}']


async def test_oldest_of_a_full_topic_goes_first(brokers: Brokers) -> None:
    brokers.settings.WSGATEWAY_TOPICS = {"room": {"max_messages": 2}}
    broker = await brokers.open()
    for number in range(4):
        await asend_topic("room", "42", text=str(number))
    await asend_topic("room", "43", text="x")

    async def trimmed() -> bool:
        return await texts(broker, ROOM) == ["2", "3"]

    await eventually(trimmed, "the oldest are gone")
    assert await texts(broker, OTHER) == ["x"]


async def test_ephemeral_topics_are_heard_and_not_stored(broker: Broker, other: Broker) -> None:
    heard: list[Stored] = []
    hearing = other.hear(TICK, heard.append)
    await other.in_effect()
    receipt = await asend_topic("tick", "now", bytes=b"a")
    assert receipt == Receipt(0, False)
    await asend_topic("tick", "now", text="b", ttl=5, msg_id="1")

    async def both() -> bool:
        return len(heard) == 2

    await eventually(both, "both came")
    assert [(each.payload, each.kind, each.offset) for each in heard] == [
        (b"a", "binary", 0),
        (b"b", "text", 0),
    ]
    hearing.close()


async def test_service_has_users_or_topics(broker: Broker) -> None:
    assert broker.known_topics("room") is TopicKind.DURABLE
    assert await broker.topics_of("orders") is TopicKind.NONE
    assert await broker.address_of("room", "42") == ROOM
    assert await broker.address_of("orders", "ann") == Inbox("orders", "ann")
    assert not await broker.service_exists("room")
    with pytest.raises(ServiceUnknown, match=r"'room' has topics, not users.*send_topic"):
        await asend("room", "42", text="x")
    with pytest.raises(TopicsUnknown, match=r"'orders' has users, not topics.*wsgateway.send"):
        await asend_topic("orders", "ann", text="x")
    with pytest.raises(TopicsUnknown, match="'rom' has no topics; did you mean 'room'"):
        await asend_topic("rom", "42", text="x")


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize("services", [["orders"], ["*"]], ids=["listed", "any"])
async def test_socket_for_a_service_of_topics_is_told_so(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, is_here: bool, services: list[str]
) -> None:
    """The log asked to add it to WSGATEWAY_SERVICES, or to declare it with @service."""
    brokers.settings.WSGATEWAY_SERVICES = services
    broker = await brokers.open()
    if not is_here:
        brokers.settings.WSGATEWAY_SERVICES = ["*"]
        monkeypatch.setattr(declared, "topics", {})
    with pytest.raises(IdentityRefused) as refusal:
        await require_service(broker, "room")
    assert refusal.value.code == CloseCode.FORBIDDEN
    assert refusal.value.reason == "service 'room' has topics, not users"
    assert "subscribe to the topics" in refusal.value.explanation


async def test_many_may_go_to_users_and_topics(broker: Broker) -> None:
    first, second, third = await asend_many(
        [
            OutgoingTopic("room", "42", text="a"),
            Outgoing("orders", "ann", text="b"),
            OutgoingTopic("rooom", "42", text="c"),
        ]
    )
    assert isinstance(first, Receipt)
    assert isinstance(second, Receipt)
    assert isinstance(third, TopicsUnknown)
    assert await texts(broker, ROOM) == ["a"]
    assert await texts(broker, Inbox("orders", "ann")) == ["b"]


async def test_group_send_goes_to_the_topic(broker: Broker) -> None:
    layer = NatsChannelLayer()
    heard: list[Stored] = []
    hearing = broker.hear(TICK, heard.append)
    await broker.in_effect()
    channel = await layer.new_channel()
    await layer.group_add("room.42", channel)
    await layer.group_add("tick.now", channel)
    await layer.group_send("room.42", {"type": "ws.message", "text": "a"})
    await layer.group_send("room.42", {"type": "chat.event", "n": 1})
    stored = (await broker.log(ROOM).read_after(ROOM, 0, limit=9)).messages
    assert (stored[0].payload, stored[0].kind) == (b"a", "text")
    assert [each.kind for each in stored[1:]] == ["event"]
    assert await layer.receive(channel) == {"type": "ws.message", "text": "a"}
    assert await layer.receive(channel) == {"type": "chat.event", "n": 1}
    await layer.group_send("tick.now", {"type": "ws.message", "text": "t"})
    await layer.group_send("tick.now", {"type": "chat.event", "n": 2})
    assert await layer.receive(channel) == {"type": "ws.message", "text": "t"}
    assert await layer.receive(channel) == {"type": "chat.event", "n": 2}
    await broker.publish(TICK, b"end")

    async def ended() -> bool:
        return len(heard) >= 2

    await eventually(ended, "the messages came")
    assert [each.payload for each in heard] == [b"t", b"end"]  # an event is for consumers
    hearing.close()
    await layer.close()


async def test_history_is_read_page_by_page(broker: Broker) -> None:
    for number in range(5):
        await asend_topic("room", "42", json=number)
    await asend_topic("room", "43", text="x")
    await broker.publish(ROOM, b"\x80", kind="event")

    async def newest() -> topics.History | None:
        page = await topics.ahistory("room", "42", limit=2)
        return page if [each.data for each in page.messages] == ["4"] else None

    page = await eventually(newest, "the last one is an event, which is left out")
    assert page.more
    page = await topics.ahistory("room", "42", limit=2, before=page.first)
    assert [each.json() for each in page.messages] == [2, 3]
    assert page.more
    page = await topics.ahistory("room", "42", limit=2, before=page.first)
    assert [each.json() for each in page.messages] == [0, 1]
    assert not page.more
    page = await topics.ahistory("room", "42", after=page.last, limit=100)
    assert [each.json() for each in page.messages] == [2, 3, 4]
    assert not page.more
    epoch = (await broker.log(ROOM).position()).epoch
    assert page.position == {"epoch": epoch, "offset": page.last}
    nothing = await topics.ahistory("room", "42", after=page.last)
    assert nothing == ([], False, None, None, page.position)
    oldest = await topics.ahistory("room", "42", after=0, limit=1)
    assert oldest.messages[0].time.utcoffset() is not None
    with pytest.raises(ValueError, match="'tick' are ephemeral"):
        await topics.ahistory("tick", "now")
    with pytest.raises(TopicsUnknown):
        await topics.ahistory("rom", "42")
    with pytest.raises(TypeError, match="not both"):
        await topics.ahistory("room", "42", after=1, before=2)
    with pytest.raises(ValueError, match="limit 0 is not"):
        await topics.ahistory("room", "42", limit=0)
    with pytest.raises(RuntimeError, match="await ahistory"):
        topics.history("room", "42")


async def test_history_says_who_sent_what_a_gateway_stored(broker: Broker) -> None:
    ann = Inbox("orders", "ann")
    await broker.offer_topic(ROOM, ann, Frame.of("hi"), "m1", direct=True)
    page = await topics.ahistory("room", "42")
    assert [(each.data, each.sender) for each in page.messages] == [("hi", ann)]


async def test_topic_that_is_followed_does_not_begin_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five quiet seconds, `gateway tail` took a topic's stream for one that was recreated."""
    monkeypatch.setattr(following, "LOOK_EACH", 0.02)
    first = await broker.publish(ROOM, b"1")
    replaced: list[bool] = []
    messages = following.follow(broker, ROOM, first.offset, lambda: replaced.append(True))
    async with aclosing(messages):
        second = asyncio.ensure_future(anext(messages))

        async def looked() -> bool:
            return bool(broker.log(ROOM).epoch) or second.done()

        await eventually(looked, "the stream was asked for")
        await broker.publish(ROOM, b"2")
        assert (await second).payload == b"2"
    assert not replaced


async def test_operators_see_and_delete_what_topics_hold(broker: Broker) -> None:
    first = await asend_topic("room", "42", text="a")
    await asend_topic("room", "42", text="b")
    await asend_topic("room", "43", text="c")
    name = broker.subjects.topic_stream("room")
    [stream] = [each for each in await broker.operations.streams() if each.name == name]
    assert (stream.purpose, stream.service) == ("topics of the service room", None)
    assert (stream.messages, stream.subjects, stream.max_per_subject) == (3, 2, 10_000)
    assert stream.max_age == 7 * 86400
    assert not await broker.operations.delete(OTHER, first.offset)
    assert await broker.operations.delete(ROOM, first.offset)
    assert await broker.operations.purge(ROOM) == 1
    assert await texts(broker, OTHER) == ["c"]


def test_send_topic_refuses_to_block_a_loop(brokers: Brokers) -> None:
    async def call() -> None:
        send_topic("room", "42", text="x")

    with pytest.raises(RuntimeError, match=r"send_topic\(\).*await asend_topic"):
        runtime.call_sync(lambda _: call())
