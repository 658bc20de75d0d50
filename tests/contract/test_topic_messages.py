"""What clients send to topics, on every implementation: to a handler, or to the topic itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import wsgateway
from tests.contract.conftest import Brokers
from tests.integration.workers import no_services
from tests.support import until
from wsgateway import Message, Reject, RetryPolicy, declared
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import SENDER_HEADER, TOPIC_HEADER, Stored, stamp
from wsgateway.broker.work import Job
from wsgateway.exceptions import QueueFull
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import deadletters
from wsgateway.services.registry import get_service
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture

ROOM = Topic("room", "42")
ANN = Inbox("orders", "ann@example.com")
OTHER_ANN = Inbox("service1", "ann@example.com")


@pytest.fixture(autouse=True)
def topics(brokers: Brokers, monkeypatch: pytest.MonkeyPatch, no_services: None) -> None:
    """Rooms with a handler, a wall without one, and a pointer that nobody keeps."""
    monkeypatch.setattr(declared, "topics", {})
    brokers.settings.WSGATEWAY_SERVICES = ["orders", "service1"]

    policy = RetryPolicy(attempts=2, initial=0.01, cap=0.01)

    @wsgateway.topic("room", retry=policy, concurrency=4)
    class Room:
        handler: Callable[[Message], Any] = staticmethod(lambda message: None)

        def allow(self, identity: Any, name: str) -> str:
            return "write"

        async def handle(self, message: Message) -> None:
            await Room.handler(message)

    @wsgateway.topic("echo", durable=False)
    class Echo:
        def allow(self, identity: Any, name: str) -> str:
            return "write"

        def handle(self, message: Any) -> None:
            message.publish(text=message.text)

    wsgateway.topic("wall", direct=True)(lambda identity, name: "write")
    wsgateway.topic("pointer", direct=True, durable=False)(lambda identity, name: "write")


def handle(handler: Callable[[Message], Any]) -> None:
    """Let *handler* handle what is sent to rooms."""
    room: Any = declared.topics["room"].handler
    type(room.__self__).handler = staticmethod(handler)


@pytest.fixture
async def worker(broker: Broker) -> AsyncIterator[Worker]:
    worker = Worker(get_service("room"), broker)
    worker.start()
    await worker.ready()
    yield worker
    await worker.stop(5.0)


async def say(
    broker: Broker, text: str, inbox: Inbox = ANN, topic: Topic = ROOM, **headers: str
) -> None:
    """Do what a gateway does with a client's frame."""
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    direct = declared.topics[topic.service].direct
    await broker.offer_topic(topic, inbox, Frame.of(text), f"{inbox} {text}", found, direct=direct)


async def told(broker: Broker, inbox: Inbox = ANN) -> list[tuple[bytes, str | None, str | None]]:
    messages = (await broker.inboxes.read_after(inbox, 0, limit=100)).messages
    return [(each.payload, each.reply_to, each.error) for each in messages]


class TestHandler:
    async def test_knows_topic_and_writer_and_answers_into_the_writers_inbox(
        self, broker: Broker, worker: Worker
    ) -> None:
        seen: list[tuple[object, ...]] = []

        async def handler(message: Message) -> None:
            seen.append((message.service, message.topic, message.sender, message.user_name))
            await message.reply(text=f"hello {message.sender.service}")

        handle(handler)
        await say(broker, "one", Ws_Client_Id="c1", Ws_Request="c1")
        await say(broker, "two", OTHER_ANN, Topic("room", "a.b\n"))
        await until(lambda: worker.counts["done"] == 2)
        assert sorted(seen, key=repr) == [
            ("room", ROOM, ANN, ANN.user),
            ("room", Topic("room", "a.b\n"), OTHER_ANN, ANN.user),
        ]
        assert await told(broker) == [(b"hello orders", "c1", None)]
        assert await told(broker, OTHER_ANN) == [(b"hello service1", None, None)]

    async def test_rejections_and_failures_are_told_to_the_writer_only(
        self, broker: Broker, worker: Worker
    ) -> None:
        async def handler(message: Message) -> None:
            raise Reject("no", code="no") if message.text == "wrong" else ValueError("poison")

        handle(handler)
        await say(broker, "wrong", Ws_Client_Id="c1")
        await say(broker, "poison", Ws_Client_Id="c2")
        await until(lambda: worker.counts["dead-lettered"] == 1)
        assert [(reply, error) for _, reply, error in await told(broker)] == [
            ("c1", "no"),
            ("c2", "failed"),
        ]
        assert await told(broker, OTHER_ANN) == []
        if await broker.log(ROOM).count(ROOM):
            raise AssertionError("an answer is in the topic")

    async def test_publishes_to_the_topic_once(self, broker: Broker, worker: Worker) -> None:
        async def handler(message: Message) -> None:
            await message.publish(text=f"{message.user_name}: {message.text}")
            if message.attempt == 1:
                raise ValueError("after it was published")

        handle(handler)
        await say(broker, "hello")
        await until(lambda: worker.counts["done"] == 1)
        [stored] = (await broker.log(ROOM).read_after(ROOM, 0, limit=10)).messages
        assert (stored.payload, stored.sender) == (b"ann@example.com: hello", None)

    async def test_one_writers_messages_keep_their_order_over_all_topics(
        self, broker: Broker, worker: Worker
    ) -> None:
        seen: list[tuple[str, str, int]] = []

        async def handler(message: Message) -> None:
            seen.append((message.sender.service, message.text, message.attempt))
            if message.text == "0" and message.attempt == 1:
                raise ValueError("the first one is tried again")

        handle(handler)
        for number in range(6):
            for inbox in (ANN, OTHER_ANN):
                await say(broker, f"{number}", inbox, Topic("room", f"{number % 2}"))
        await until(lambda: worker.counts["done"] == 12)
        for service in ("orders", "service1"):
            own = [(text, attempt) for who, text, attempt in seen if who == service]
            assert own == [("0", 1), ("0", 2), *((f"{n}", 1) for n in range(1, 6))]

    async def test_other_workers_hear_whose_message_was_handled(
        self, broker: Broker, other: Broker
    ) -> None:
        """They would look for the writer's next message a quarter of a second later."""
        jobs: list[Job] = []
        turns: list[Inbox] = []
        taker = broker.work_queue("room", jobs.append, lambda inbox: None, 30.0)
        hearer = other.work_queue("room", lambda job: None, turns.append, 30.0)
        taker.open(10)
        hearer.open(0)
        await taker.ready.wait()
        await hearer.ready.wait()
        await say(broker, "hello")
        await until(lambda: jobs)
        await taker.ack_now(jobs[0])
        await until(lambda: turns == [ANN], what="it is told")
        await taker.close()
        await hearer.close()

    async def test_dead_letter_names_writer_and_topic_and_goes_back_to_its_handler(
        self, broker: Broker, worker: Worker
    ) -> None:
        async def fail(message: Message) -> None:
            raise ValueError("poison")

        handle(fail)
        await say(broker, "poison")
        await until(lambda: worker.counts["dead-lettered"] == 1)
        for service, user in ((None, None), ("room", None), (None, ANN.user), ("room", ANN.user)):
            [letter] = [each async for each in deadletters.letters(broker, service, user=user)]
            assert (letter.service, letter.inbox, letter.topic) == ("room", ANN, ROOM)
            assert (letter.target, letter.sender) == ("room.42", "ann@example.com (orders)")
        for service, user in (("orders", None), (None, "ann"), ("orders", ANN.user)):
            assert [each async for each in deadletters.letters(broker, service, user=user)] == []

        seen: list[object] = []

        async def take(message: Message) -> None:
            seen.append((message.topic, message.sender))

        handle(take)
        await deadletters.retry(broker, letter)
        await until(lambda: worker.counts["done"] == 1)
        assert seen == [(ROOM, ANN)]

    async def test_dead_letter_that_is_shortened_keeps_its_topic(self, broker: Broker) -> None:
        """The header of a long topic was left out first, so it could not be sent again."""
        topic = Topic("room", "*" * 255)
        payload = bytes(broker.dead_letters.max_size - 600)
        headers = stamp(topic, ANN, {"Ws-Foreign": "x" * 400}, direct=False)
        job = Job(ANN, payload, headers, sequence=1, id="S.1", service="room")
        await deadletters.set_aside(broker, job, ValueError("poison"))
        [letter] = [each async for each in deadletters.letters(broker, "room")]
        assert (letter.topic, letter.inbox) == (topic, ANN)
        assert letter.shortened == ("payload", "headers")

    async def test_everything_a_writer_sent_is_found_and_erased(
        self, broker: Broker, brokers: Brokers
    ) -> None:
        await say(broker, "waits")
        await say(broker, "hers", OTHER_ANN)
        dead = broker.dead_letters
        await dead.add(ANN, b"x", {TOPIC_HEADER: "room.42"}, "1", "room")
        operations = broker.operations
        found = await operations.held(ANN.user)
        assert {name: (held.queued, held.dead_letters) for name, held in found.items()} == {
            "orders": (1, 1),
            "service1": (1, 0),
        }
        assert (await operations.held(ANN.user, "orders")).keys() == {"orders"}
        assert (await operations.held("ann")) == {}
        erased = await operations.erase(ANN)
        assert (erased.queued, erased.dead_letters) == (1, 1)
        assert (await operations.held(ANN.user)).keys() == {"service1"}

    async def test_what_no_gateway_sent_is_set_aside_and_stops_nobody(
        self, broker: Broker, worker: Worker
    ) -> None:
        """A header of a foreign program must not make a handler take it for another user's."""
        seen: list[str] = []

        async def handler(message: Message) -> None:
            seen.append(message.text)

        handle(handler)
        foreign = [
            {},
            {TOPIC_HEADER: "nonsense"},
            {TOPIC_HEADER: "=XX.42"},
            {TOPIC_HEADER: "orders.42"},
            {TOPIC_HEADER: ""},
        ]
        for number, headers in enumerate(foreign):
            await broker.dead_letters.requeue(ANN, b"foreign", headers, f"{number}", "room")
        own = Inbox("room", "ann")
        await broker.dead_letters.requeue(own, b"foreign", {TOPIC_HEADER: "room.42"}, "own")
        await say(broker, "fine")
        await until(lambda: worker.counts.total() == len(foreign) + 2)
        assert worker.counts == {"dead-lettered": len(foreign) + 1, "done": 1}
        assert seen == ["fine"]

    async def test_a_writer_who_sends_too_much_is_refused_and_nobody_else(
        self, brokers: Brokers
    ) -> None:
        brokers.settings.WSGATEWAY_SEND_MAX_MESSAGES_PER_USER = 2
        broker = await brokers.open()
        for number in range(2):
            await say(broker, f"{number}", topic=Topic("room", f"{number}"))
        with pytest.raises(QueueFull):
            await say(broker, "too many")
        await say(broker, "other", OTHER_ANN)


class TestDirect:
    async def test_is_stored_once_with_its_sender(self, broker: Broker) -> None:
        wall = Topic("wall", "42")
        live: list[Stored] = []
        broker.log(wall).watch(wall, live.append)
        await broker.in_effect()
        for _ in range(2):
            await say(broker, "hello", topic=wall)
        await broker.publish(wall, b"from a service", kind="text")
        read = broker.log(wall).read_after
        stored = (await read(wall, 0, limit=10)).messages
        assert [(each.payload, each.sender) for each in stored] == [
            (b"hello", ANN),
            (b"from a service", None),
        ]
        await until(lambda: len(live) == 2)
        assert [each.sender for each in live] == [ANN, None]
        assert [each.sender for each in (await broker.log(wall).read_last(wall, 9)).messages] == [
            ANN,
            None,
        ]

    async def test_one_id_serves_several_topics(self, broker: Broker) -> None:
        """JetStream compares ids over the whole stream, so the second message vanished."""
        for name in ("1", "2"):
            wall = Topic("wall", name)
            receipt = await broker.offer_topic(wall, ANN, Frame.of("x"), "ann:1", direct=True)
            assert not receipt.duplicate
            assert await broker.log(wall).count(wall) == 1

    async def test_a_service_cannot_pass_for_a_client(self, broker: Broker) -> None:
        for name in (SENDER_HEADER, SENDER_HEADER.lower()):
            with pytest.raises(ValueError, match="only a gateway sets it"):
                await broker.publish(Topic("wall", "42"), b"x", headers={name: "orders.ann"})

    async def test_what_names_no_sender_has_none(self, broker: Broker, brokers: Brokers) -> None:
        wall = Topic("wall", "42")
        for value in ("", "ann", "orders.", ".ann", "=41.ann", "orders.a.b", "\x7f"):
            await brokers.publish_raw(broker, wall, b"x", {SENDER_HEADER: value})
        stored = (await broker.log(wall).read_after(wall, 0, limit=10)).messages
        assert [each.sender for each in stored] == [None] * 7

    async def test_handler_publishes_to_an_ephemeral_topic(
        self, broker: Broker, other: Broker
    ) -> None:
        echo = Topic("echo", "42")
        live: list[Stored] = []
        other.hear(echo, live.append)
        await other.in_effect()
        worker = Worker(get_service("echo"), broker)
        worker.start()
        await say(broker, "hello", topic=echo)
        await until(lambda: live)
        assert (live[0].frame.data, live[0].sender) == ("hello", None)
        await worker.stop(5.0)

    async def test_ephemeral_reaches_those_who_watch(self, broker: Broker, other: Broker) -> None:
        pointer = Topic("pointer", "42")
        live: list[Stored] = []
        other.hear(pointer, live.append)
        await other.in_effect()
        await say(broker, "here", topic=pointer)
        await broker.publish(pointer, b"\xff", kind="binary")
        await until(lambda: len(live) == 2)
        assert [(each.offset, each.frame.data, each.sender) for each in live] == [
            (0, "here", ANN),
            (0, b"\xff", None),
        ]
