"""What a socket that reads topics is sent: all of it, once, and from its position."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.topic_sessions.client import ANN, LOBBY, ROOM, Client, publish
from tests.support import until
from wsgateway import counters
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.hub import Hub
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import Resume, Subscribed, Unsubscribed
from wsgateway.protocol.v1.messages import Reason


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
