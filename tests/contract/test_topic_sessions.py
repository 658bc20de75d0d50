"""What a socket that reads topics is promised, on every kind of broker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import OperationalError

import wsgateway
from tests.support import until, within
from tests.troubleshooting import Symptom
from wsgateway import Message, counters, declared, topics
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.messages import Stored
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway import casts
from wsgateway.gateway import session as sessions
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol import credit, window
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Resume, Subscribed, Unsubscribed
from wsgateway.protocol.v1.endpoint import V1Endpoint
from wsgateway.protocol.v1.messages import Reason, ServerMessage
from wsgateway.services.registry import get_service
from wsgateway.services.worker import Worker

ANN = Inbox("service1", "ann")
ROOM, LOBBY, SECRET = Topic("room", "42"), Topic("room", "lobby"), Topic("room", "secret")


class Client(Transport):
    """A client that reads while `reads` is set."""

    def __init__(self, hub: Hub, user: str = "ann") -> None:
        super().__init__(self._take)
        self.reads = asyncio.Event()
        self.reads.set()
        self.frames: list[Any] = []
        self.session = Session(hub, Identity("service1", user), Socket(self, V1Endpoint))
        self._asked = 0

    async def _take(self, event: dict[str, Any]) -> None:
        await self.reads.wait()
        if event["type"] == "websocket.send":
            self.frames.append(protocol.parse_server(event["text"]))

    async def subscribe(self, topic: Topic, **options: Any) -> Any:
        """Ask for a topic; return the answer."""
        self._asked += 1
        id = f"s{self._asked}"
        await self.session.receive(protocol.encode_subscribe(id, str(topic), **options))
        return await until(lambda: self._answer(id), what=f"an answer about {topic}")

    def _answer(self, id: str) -> Any:
        kinds = (Subscribed, Unsubscribed)
        return next((f for f in self.frames if isinstance(f, kinds) and f.id == id), None)

    def told(self, kind: type[Any], topic: Topic) -> list[Any]:
        return [f for f in self.frames if isinstance(f, kind) and f.topic == str(topic)]

    def got(self, topic: Topic | None = None) -> list[Any]:
        """The payloads that came of *topic*; None: of the inbox."""
        name = None if topic is None else str(topic)
        messages = [f for f in self.frames if isinstance(f, ServerMessage) and f.topic == name]
        return [f.frame.data for f in messages]

    async def has(self, *expected: str, topic: Topic | None = None) -> None:
        await until(
            lambda: self.got(topic) == [*expected], what=f"{expected}, not {self.got(topic)}"
        )

    async def ack(self, topic: Topic) -> None:
        """Acknowledge everything that came of *topic*."""
        epoch = self.told(Subscribed, topic)[-1].epoch
        offset = max(f.offset for f in self.told(ServerMessage, topic))
        await self.session.receive(protocol.encode_client_ack(offset, epoch, str(topic)))

    async def say(self, id: str, text: str, topic: Topic) -> None:
        frame = protocol.encode_client_message(id, Frame.of(text), topic=str(topic))
        await self.session.receive(frame)

    async def unsubscribe(self, topic: Topic) -> None:
        await self.session.receive(protocol.encode_unsubscribe(str(topic)))


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, brokers: Any) -> dict[tuple[str, str], str | None]:
    """Declares rooms, which everybody may write but the secret ones; returns exceptions."""
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    exceptions: dict[tuple[str, str], str | None] = {}

    @wsgateway.topic("room", queue=True)
    async def allow(identity: Identity, name: str) -> str | None:
        default = None if name.startswith("secret") else "write"
        return exceptions.get((identity.user, name), default)

    wsgateway.topic("cursor", durable=False, direct=True)(allow)
    wsgateway.topic("board", direct=True)(allow)
    wsgateway.topic("news")(allow)

    @wsgateway.topic("hall")
    class Hall:
        def allow(self, identity: Identity, name: str) -> str:
            return "write"

        async def handle(self, message: Message) -> None:
            await message.publish(text=f"{message.user_name}: {message.text}")
            await message.reply(text="published")

    return exceptions


@pytest.fixture
async def hub(rules: Any, brokers: Any) -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), brokers.make()))
    await hub.open()
    await hub.broker.wait_ready(20)
    await hub.broker.set_up()
    yield hub
    await hub.close()


@pytest.fixture
async def ann(hub: Hub) -> AsyncIterator[Client]:
    client = Client(hub)
    await client.session.start(Resume())
    yield client
    await client.session.stop()


async def publish(broker: Broker, to: Inbox | Topic, *data: str) -> int:
    """Store messages; return the last one's offset."""
    offset = 0
    for text in data:
        offset = (await broker.publish(to, text.encode())).offset
    return offset


async def test_topic_and_inbox_come_side_by_side(hub: Hub, ann: Client) -> None:
    answer = await ann.subscribe(ROOM)
    assert (answer.access, answer.recovered, answer.reason) == ("write", False, Reason.NEW)
    await publish(hub.broker, ROOM, "a", "b")
    await publish(hub.broker, ANN, "mail")
    await publish(hub.broker, LOBBY, "not for ann")
    await ann.has("a", "b", topic=ROOM)
    await ann.has("mail")


@pytest.mark.parametrize(
    ("since", "expected"),
    [("new", []), ("all", ["0", "1", "2"]), (2, ["1", "2"]), (9, ["0", "1", "2"])],
)
async def test_since(hub: Hub, ann: Client, since: Any, expected: list[str]) -> None:
    await publish(hub.broker, ROOM, "0", "1", "2")
    await publish(hub.broker, LOBBY, "later")
    await ann.subscribe(ROOM, since=since)
    await publish(hub.broker, ROOM, "live")
    await ann.has(*expected, "live", topic=ROOM)


async def test_newest_messages_are_read_once(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were read to find out where they begin, and then again to be sent."""
    await publish(hub.broker, ROOM, "0", "1", "2")
    log, reads = hub.broker.log(ROOM), 0
    read_after = log.read_after

    async def count(*args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read_after(*args, **options)

    monkeypatch.setattr(log, "read_after", count)
    await ann.subscribe(ROOM, since=2)
    await ann.has("1", "2", topic=ROOM)
    assert reads == 0


async def test_large_messages_come_in_several_pages(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(hub.broker, ROOM, *map(str, range(7)))
    log = hub.broker.log(ROOM)
    read_last = log.read_last

    async def read_few(address: Any, limit: int, *, before: int | None = None) -> Any:
        return await read_last(address, min(limit, 2), before=before)

    monkeypatch.setattr(log, "read_last", read_few)
    await ann.subscribe(ROOM, since=5)
    await ann.has("2", "3", "4", "5", "6", topic=ROOM)


async def test_position_is_recovered(hub: Hub, ann: Client) -> None:
    first = await ann.subscribe(ROOM)
    offset = await publish(hub.broker, ROOM, "had")
    await ann.has("had", topic=ROOM)
    await ann.session.stop()
    await publish(hub.broker, ROOM, "missed", "too")
    again = Client(hub)
    await again.session.start(Resume())
    answer = await again.subscribe(ROOM, epoch=first.epoch, offset=offset)
    assert (answer.recovered, answer.offset) == (True, offset)
    await again.has("missed", "too", topic=ROOM)
    await again.session.stop()


class Reads:
    """Counts what is read of a topic after an offset, and holds answers back on demand."""

    def __init__(self, hub: Hub, topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
        log = hub.broker.log(topic)
        self._read = log.read_after
        self.count = 0
        self.pass_on = asyncio.Event()
        self.pass_on.set()
        monkeypatch.setattr(log, "read_after", self._counted)

    async def _counted(self, *args: Any, **options: Any) -> Any:
        found = await self._read(*args, **options)
        self.count += 1
        await self.pass_on.wait()
        return found


async def test_what_proves_a_position_is_not_read_again(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each resume read the same messages twice: to prove the position, and to deliver them."""
    epoch = (await ann.subscribe(ROOM)).epoch
    offset = await publish(hub.broker, ROOM, "had")
    await publish(hub.broker, ROOM, "missed", "too")
    await ann.has("had", "missed", "too", topic=ROOM)
    await ann.unsubscribe(ROOM)
    reads, bob = Reads(hub, ROOM, monkeypatch), Client(hub, "bob")
    await bob.session.start(Resume())
    assert (await bob.subscribe(ROOM, epoch=epoch, offset=offset)).recovered
    await bob.has("missed", "too", topic=ROOM)
    await publish(hub.broker, ROOM, "live")
    await bob.has("missed", "too", "live", topic=ROOM)
    assert reads.count == 1
    await bob.session.stop()


async def test_many_who_resume_at_the_same_time_share_what_is_read(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = (await ann.subscribe(ROOM)).epoch
    offset = await publish(hub.broker, ROOM, "had")
    await publish(hub.broker, ROOM, "missed")
    clients = [Client(hub, f"user{number}") for number in range(20)]
    for client in clients:
        await client.session.start(Resume())
    reads = Reads(hub, ROOM, monkeypatch)
    answers = await asyncio.gather(
        *(client.subscribe(ROOM, epoch=epoch, offset=offset) for client in clients)
    )
    await publish(hub.broker, ROOM, "live")
    for client, answer in zip(clients, answers, strict=True):
        assert answer.recovered
        await client.has("missed", "live", topic=ROOM)
        await client.session.stop()
    assert reads.count <= 2


@pytest.mark.parametrize("since", ["all", "new", None])
async def test_answer_that_was_asked_for_before_a_client_came_is_not_shared_with_it(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch, brokers: Any, since: str | None
) -> None:
    """What is stored between the question and the client came to it neither live nor read."""
    brokers.settings.WSGATEWAY_SWEEP_INTERVAL = 600.0  # which would find it
    options: dict[str, Any] = {"since": since}
    if since is None:
        options = {"epoch": (await ann.subscribe(LOBBY)).epoch, "offset": 0}
    await publish(hub.broker, ROOM, "before")
    reads, bob = Reads(hub, ROOM, monkeypatch), Client(hub, "bob")
    await bob.session.start(Resume())
    reads.pass_on.clear()
    first = asyncio.create_task(ann.subscribe(ROOM, **options))
    await until(lambda: reads.count == 1, what="the first question is answered")
    await publish(hub.broker, ROOM, "between")
    second = asyncio.create_task(bob.subscribe(ROOM, **options))
    await until(lambda: len(hub.rights.holders_of(ROOM)) == 2, what="the second one has come")
    reads.pass_on.set()
    await asyncio.gather(first, second)
    kept = [] if since == "new" else ["before", "between"]
    await until(lambda: bob.got(ROOM) == kept, 5, "all, before a live message shows a gap")
    await publish(hub.broker, ROOM, "after")
    await ann.has(*kept[:1], "between", "after", topic=ROOM)
    await bob.has(*kept, "after", topic=ROOM)
    await bob.session.stop()


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


async def test_replaced_stream_is_told_and_read_from_its_start(
    hub: Hub, ann: Client, brokers: Any
) -> None:
    await ann.subscribe(ROOM)
    await publish(hub.broker, ROOM, "before")
    await ann.has("before", topic=ROOM)
    await brokers.renew(hub.broker, ROOM.service)
    await publish(hub.broker, ROOM, "after")
    await hub.subscriptions.sweep(thorough=True)
    await ann.has("before", "after", topic=ROOM)
    told = ann.told(Subscribed, ROOM)
    assert [each.reason for each in told] == [Reason.NEW, Reason.EPOCH]
    await ann.ack(ROOM)
    assert ann.session.subscriptions[ROOM].window.unconfirmed == 0


async def test_nothing_comes_after_unsubscribe(hub: Hub, ann: Client) -> None:
    before = counters.gateway.subscriptions
    await ann.subscribe(ROOM)
    await ann.unsubscribe(ROOM)
    await until(lambda: ann.told(Unsubscribed, ROOM), what="an answer")
    await publish(hub.broker, ROOM, "late")
    await ann.subscribe(LOBBY)
    await publish(hub.broker, LOBBY, "here")
    await ann.has("here", topic=LOBBY)
    assert ann.got(ROOM) == []
    assert ann.session.credit.messages == 1
    assert counters.gateway.subscriptions == before + 1


async def test_unsubscribe_ends_a_question_that_is_being_answered(hub: Hub, ann: Client) -> None:
    frames = [
        protocol.encode_subscribe("a", str(ROOM)),
        protocol.encode_unsubscribe(str(ROOM)),
        protocol.encode_subscribe("b", str(ROOM)),
    ]
    for frame in frames:
        await ann.session.receive(frame)
    await until(lambda: ann.told(Subscribed, ROOM), what="the second question is answered")
    await publish(hub.broker, ROOM, "once")
    await ann.has("once", topic=ROOM)
    assert [each.id for each in ann.told(Subscribed, ROOM)] == ["b"]


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


async def test_sockets_of_a_topic_share_its_subscription(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [Client(hub, f"user{number}") for number in range(20)]
    log, watched = hub.broker.log(ROOM), []
    watch = log.watch

    def count(*args: Any) -> Any:
        watched.append(args[0])
        return watch(*args)

    monkeypatch.setattr(log, "watch", count)
    for client in clients:
        await client.session.start(Resume())
        await client.subscribe(ROOM)
    assert watched == [ROOM]
    await publish(hub.broker, ROOM, "to all")
    for client in clients:
        await client.has("to all", topic=ROOM)
        await client.session.stop()


async def answer(client: Client, id: str) -> Any:
    """Return what the gateway says about a message of the client."""
    kinds = (protocol.Accepted, protocol.Refused)
    return await until(
        lambda: next((f for f in client.frames if isinstance(f, kinds) and f.id == id), None),
        what=f"an answer about {id}",
    )


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


CURSOR = Topic("cursor", "7")


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


async def test_topic_whose_stream_is_away_holds_up_no_other(
    hub: Hub, ann: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, asked = Topic("board", "1"), asyncio.Event()
    log = hub.broker.log(away)

    async def no_leader(*_: Any, **__: Any) -> Any:
        asked.set()
        await asyncio.sleep(0.2)
        raise BrokerUnavailable("stream 'WS_TOPIC_board' has no leader")

    monkeypatch.setattr(log, "position", no_leader)
    refused = asyncio.create_task(ann.subscribe(away))
    await asyncio.wait_for(asked.wait(), 10)
    await ann.subscribe(ROOM)
    await publish(hub.broker, ROOM, "here")
    await ann.has("here", topic=ROOM)
    assert not refused.done()
    told = await refused
    assert (told.code, told.temporary) == ("unavailable", True)
    monkeypatch.undo()


async def test_read_of_a_topic_that_hangs_holds_up_no_other(
    hub: Hub, ann: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, asked = Topic("board", "1"), asyncio.Event()
    await ann.subscribe(board)
    await ann.subscribe(ROOM)
    window = ann.session.subscriptions[board].window
    await until(lambda: not window.fetching, what="its backlog is read")

    async def hang(*_: Any, **__: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(hub.broker.log(board), "read_after", hang)
        window.invalidate()
        ann.session.subscriptions[board].wake()
        await asyncio.wait_for(asked.wait(), 10)
        await publish(hub.broker, ROOM, "here")
        await ann.has("here", topic=ROOM)
        await ann.unsubscribe(board)
        await until(lambda: ann.told(Unsubscribed, board), what="even this can be ended")


async def test_topics_whose_stream_is_away_hold_up_no_other_of_their_socket(
    hub: Hub, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them took all the turns of the socket, each until the broker's time-out."""
    release = asyncio.Event()

    async def no_leader(*_: Any, **__: Any) -> Any:
        await release.wait()
        raise BrokerUnavailable("stream 'WS_TOPIC_board' has no leader")

    monkeypatch.setattr(hub.broker.log(Topic("board", "1")), "position", no_leader)
    asking = [asyncio.create_task(ann.subscribe(Topic("board", str(n)))) for n in range(8)]
    await asyncio.sleep(0)
    await asyncio.wait_for(ann.subscribe(ROOM), 5)
    await publish(hub.broker, ROOM, "here")
    await ann.has("here", topic=ROOM)
    release.set()
    assert {(await each).code for each in asking} == {"unavailable"}
    monkeypatch.undo()


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


async def test_message_that_is_no_frame_is_skipped_and_warned_about_once(
    hub: Hub, ann: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of a topic's sockets wrote a line, so one such message could make thousands."""
    clients = [ann, Client(hub, "bob"), Client(hub, "eve")]
    for client in clients:
        if client is not ann:
            await client.session.start(Resume())
        await client.subscribe(ROOM)
    for kind in ("junk", "text"):
        await hub.broker.publish(ROOM, b"\xff", kind=kind)
    await publish(hub.broker, ROOM, "fine")
    for client in clients:
        await client.has("fine", topic=ROOM)
        await client.session.stop()
    warned = [each for each in caplog.messages if "skipped message" in each]
    assert len(warned) == 2
