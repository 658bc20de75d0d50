"""wsgateway.testing: handlers and publishing without a broker."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from wsgateway import Message, Reject, asend, declared, send, send_topic, topic
from wsgateway.exceptions import TopicsUnknown
from wsgateway.services import registry
from wsgateway.testing import adeliver, assert_not_sent, assert_sent, deliver, sent

pytest_plugins = ["wsgateway.testing.plugin"]


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})


def test_sent_and_assertions(wsgateway_memory: Any) -> None:
    assert_not_sent()
    send("orders", "ann", json={"b": 1, "a": [2]})
    send("orders", "ann", bytes=b"\xff")
    send("service1", "bob", text="hi")
    assert [message.data for message in sent("orders")] == ['{"b":1,"a":[2]}', b"\xff"]
    assert_sent("orders", "ann", json={"a": [2], "b": 1}, count=1)
    assert_sent("orders", "ann", bytes=b"\xff")
    assert_sent("orders", "ann", count=2)
    assert_not_sent("orders", "bob")
    with pytest.raises(AssertionError) as error:
        assert_sent("service1", "bob", text="ho")
    assert str(error.value) == (
        "service1.bob should have got a message with text='ho', but 0 fit; it got: 'hi'"
    )
    with pytest.raises(AssertionError, match=r"got 2 message\(s\) with json=\[1\], but 0 fit"):
        assert_sent("service1", "bob", json=[1], count=2)
    with pytest.raises(AssertionError, match="nothing should have been sent"):
        assert_not_sent("service1")


def test_each_test_begins_with_nothing(wsgateway_memory: Any) -> None:
    assert_not_sent()


async def test_deliver(wsgateway_memory: Any) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        if message.text == "bad":
            raise Reject("why", code="no")
        if message.text == "broken":
            raise OSError("disk")
        await message.reply(text=f"{message.user_name}/{message.device}/{message.attempt}")

    done = await adeliver("orders", "ann", text="hello", device="d", request=True)
    assert (done.outcome, [reply.data for reply in done.replies]) == ("done", ["ann/d/1"])
    assert done.replies[0].stored.reply_to is not None
    refused = await adeliver("orders", "ann", text="bad")
    assert (refused.outcome, refused.replies[0].stored.error) == ("rejected", "no")
    again = await adeliver("orders", "ann", text="broken", attempt=2)
    assert again.outcome == "retried"
    assert again.after is not None
    assert (await adeliver("orders", "ann", text="broken", attempt=5)).outcome == "dead-lettered"
    with pytest.warns(DeprecationWarning, match="write 'retried', not 'retry'"):
        assert again.outcome == "retry"
    with pytest.warns(DeprecationWarning, match="write 'retried', not 'retry'"):
        assert not again.outcome != "retry"  # noqa: SIM202
    assert again.outcome != "dead"
    with pytest.raises(LookupError, match="no service 'nonsense'"):
        await adeliver("nonsense", "ann", text="x")


def test_deliver_to_a_synchronous_handler(wsgateway_memory: Any) -> None:
    @registry.service("orders")
    def handle(message: Any) -> None:
        message.reply(json=message.json())

    assert deliver("orders", "ann", json=[1]).replies[0].json() == [1]


@pytest.mark.parametrize("number", range(3))
def test_fixture_leaves_no_connection(wsgateway_nats: str, number: int) -> None:
    """Each test left the connection of its synchronous calls, until there were too many."""
    send("orders", "ann", text=str(number))
    port = int(wsgateway_nats.rpartition(":")[2])
    open_ones = [
        each
        for each in psutil.Process().net_connections("tcp")
        if each.status == psutil.CONN_ESTABLISHED and each.raddr and each.raddr.port == port
    ]
    assert len(open_ones) == 1


async def test_real_server(wsgateway_nats: str) -> None:
    receipt = await asend("orders", "ann", text="x")
    assert receipt.offset == 1
    with pytest.raises(AssertionError, match="PUBSUB_BROKER"):
        sent()


def test_messages_to_topics(wsgateway_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "topics", {})

    @topic("room")
    class Room:
        def allow(self, identity: Any, name: str) -> str:
            return "write"

        def handle(self, message: Any) -> None:
            message.reply(text=f"{message.sender.service} to {message.topic}")
            message.publish(text=f"{message.user_name}: {message.text}")

    topic("wall", direct=True)(lambda identity, name: "write")
    topic("pointer", direct=True, durable=False)(lambda identity, name: "write")

    done = deliver("orders", "ann", topic="room.42", text="hello")
    assert (done.outcome, [each.data for each in done.replies]) == ("done", ["orders to room.42"])
    said = assert_sent(topic="room.42", text="ann: hello", count=1)
    assert (str(said.address), said.sender) == ("room.42", None)
    assert_not_sent(topic="room.43")
    with pytest.raises(TypeError, match=r"to the topic room\.42, not to a user"):
        said.inbox  # noqa: B018
    with pytest.raises(AssertionError, match=r"room\.42 should have got .* it got: 'ann: hello'"):
        assert_sent(topic="room.42", text="bye")

    for name in ("wall.1", "pointer.1"):
        assert deliver("orders", "ann", topic=name, json=[1]).outcome == "done"
        assert assert_sent(topic=name, json=[1], count=1).sender == ("orders", "ann")
    with pytest.raises(LookupError, match="no service 'hall'"):
        deliver("orders", "ann", topic="hall.1", text="x")
    with pytest.raises(TypeError, match="a service and a user, or a topic"):
        assert_sent("orders")
    with pytest.raises(TypeError, match="a service and a user, or a topic"):
        assert_sent(user="ann", topic="room.42")


def test_misspelt_or_mistaken_topic_is_not_a_topic_that_got_nothing(
    wsgateway_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """assert_not_sent passed, although the topic had the message."""
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(lambda identity, name: "read")
    send_topic("room", "42", text="hello")
    for look in (assert_sent, assert_not_sent):
        with pytest.raises(TypeError, match=r"pass topic='room\.42'"):
            look("room", "42")
        with pytest.raises(TopicsUnknown, match="'rom' has no topics; did you mean 'room'"):
            look(topic="rom.42")
        with pytest.raises(TopicsUnknown, match="'orders' has users, not topics"):
            look(topic="orders.ann")


def test_publish_needs_a_topic(wsgateway_memory: Any) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.publish(text="to whom?")

    done = deliver("orders", "ann", text="hello")
    assert (done.outcome, type(done.error)) == ("retried", RuntimeError)
    assert "was not sent to a topic" in str(done.error)
    assert_not_sent()
