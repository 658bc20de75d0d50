"""Whose presence the sockets of an event loop watch, with gateways that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support import until
from wsgateway import roll_call, supervision
from wsgateway.broker.bus import Closable
from wsgateway.broker.inquiry import Answers, Fields
from wsgateway.broker.memory import MemoryBroker
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway import watching as module
from wsgateway.gateway.watching import Watching
from wsgateway.presence.results import Readers
from wsgateway.protocol.events import (
    CONNECTED,
    DISCONNECTED,
    JOINED,
    LEFT,
    SocketEvent,
    encode_event,
)
from wsgateway.protocol.subjects import Inbox, Topic

ANN, BOB = Inbox("orders", "ann"), Inbox("chat", "bob")


class Socket:
    """A socket that watches; notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool | None]] = []

    def tell(self, inbox: Any, online: Any) -> None:
        if self.told[-1:] != [(inbox.user, online)]:
            self.told.append((inbox.user, online))

    def recheck(self, inbox: Inbox | None = None) -> None:
        pass


class World:
    """Who is online, and what is asked."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.online: dict[Inbox, bool | None] = {}
        self.asked: list[list[Inbox]] = []
        self.gateways = ["g1", "g2"]
        self.silent: tuple[str, ...] = ()
        self.fails = False
        self.pause: asyncio.Event | None = None

    async def find_online(self, broker: Any, inboxes: list[Inbox]) -> dict[Inbox, bool | None]:
        self.asked.append(list(inboxes))
        answer = {inbox: self.online.get(inbox, False) for inbox in inboxes}
        if self.pause is not None:
            await self.pause.wait()
        if self.fails:
            raise BrokerUnavailable("away")
        return answer

    async def ask_members(self, broker: Any, kind: str, request: Fields) -> Answers:
        assert (kind, request) == ("gateway", {"ask": "ping"}), "what costs a gateway nothing"
        return Answers({id: {"gateway": id} for id in self.gateways}, self.silent)

    def say(self, kind: str, inbox: Inbox) -> None:
        event = SocketEvent(kind, *inbox, "default", "c", "g1", "")
        self.broker.bus.publish(self.broker.subjects.event(inbox), encode_event(event))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    broker = MemoryBroker()
    await broker.open()
    made = World(broker)
    monkeypatch.setattr(module, "find_online", made.find_online)
    monkeypatch.setattr(roll_call, "ask_members", made.ask_members)
    monkeypatch.setattr(roll_call, "INTERVAL", 0.01)
    monkeypatch.setattr(module, "SETTLE", 0.05)
    monkeypatch.setattr(module, "SWEEP", 3600.0)
    monkeypatch.setattr(module, "RETRY", 0.02)
    yield made
    await broker.close()


@pytest.fixture
async def watching(world: World) -> AsyncIterator[Watching]:
    made = Watching(world.broker)
    yield made
    made.close()


async def test_the_state_and_each_change_is_told(world: World, watching: Watching) -> None:
    socket = Socket()
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", False)])
    world.online[ANN] = True
    world.say(CONNECTED, ANN)
    await until(lambda: socket.told[-1] == ("ann", True))
    world.online[ANN] = False
    world.say(DISCONNECTED, ANN)
    await until(lambda: socket.told[-1] == ("ann", False))


async def test_all_who_watch_a_user_share_a_subscription_and_a_question(
    world: World, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribed: list[str] = []
    subscribe = world.broker.bus.subscribe

    def count(subject: str, handler: Any, **options: Any) -> Closable:
        subscribed.append(subject)
        return subscribe(subject, handler, **options)

    monkeypatch.setattr(world.broker.bus, "subscribe", count)
    sockets = [Socket() for _ in range(50)]
    for socket in sockets:
        watching.add(ANN, socket)
        watching.add(BOB, socket)
    await until(lambda: all(len(socket.told) == 2 for socket in sockets))
    assert sorted(subscribed) == sorted(map(world.broker.subjects.event, (ANN, BOB)))
    assert world.asked == [[ANN, BOB]]
    late = Socket()
    watching.add(ANN, late)
    assert late.told == [("ann", False)], "what is known is told at once"
    assert watching.targets == 2


async def test_nobody_is_asked_about_any_more_when_the_last_has_left(
    world: World, watching: Watching
) -> None:
    socket, other = Socket(), Socket()
    watching.add(ANN, socket)
    watching.add(ANN, other)
    await until(lambda: other.told)
    watching.remove(ANN, socket)
    watching.remove(ANN, socket)
    world.online[ANN] = True
    world.say(CONNECTED, ANN)
    await until(lambda: other.told[-1] == ("ann", True))
    assert socket.told == [("ann", False)]
    watching.remove(ANN, other)
    assert watching.targets == 0
    asked = len(world.asked)
    world.say(DISCONNECTED, ANN)
    await asyncio.sleep(0.1)
    assert len(world.asked) == asked


async def test_who_is_not_watched_any_more_does_not_keep_others_from_their_answer(
    world: World, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question about a batch failed if one of its users was removed before it was asked."""
    socket, leaving = Socket(), Socket()
    start = supervision.start

    def leave_and_start(*args: Any, **options: Any) -> Any:
        watching.remove(ANN, leaving)
        return start(*args, **options)

    monkeypatch.setattr(module, "start", leave_and_start)
    watching.add(ANN, leaving)
    watching.add(BOB, socket)
    await until(lambda: socket.told == [("bob", False)])
    assert world.asked == [[BOB]]


async def test_a_gateway_that_vanishes_makes_everybody_doubtful(
    world: World, watching: Watching
) -> None:
    socket = Socket()
    world.online = {ANN: True, BOB: True}
    watching.add(ANN, socket)
    watching.add(BOB, socket)
    await until(lambda: len(socket.told) == 2)
    await asyncio.sleep(0.05)  # the roll call has seen both
    world.online[ANN] = False
    del world.gateways[0]
    await until(lambda: ("ann", False) in socket.told)
    assert ("bob", False) not in socket.told


async def test_a_gateway_that_is_back_makes_everybody_doubtful(
    world: World, watching: Watching
) -> None:
    """One that was frozen, or cut off, says nothing of the sockets that it had kept."""
    socket = Socket()
    world.online[ANN] = True
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", True)])
    await asyncio.sleep(0.05)
    world.online[ANN] = False
    frozen = world.gateways.pop(0)
    await until(lambda: socket.told[-1] == ("ann", False))
    await asyncio.sleep(0.05)
    world.online[ANN] = True
    world.gateways.append(frozen)
    await until(lambda: socket.told[-1] == ("ann", True))


async def test_silence_is_unknown_until_it_is_over(world: World, watching: Watching) -> None:
    socket = Socket()
    world.online[ANN] = True
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", True)])
    await asyncio.sleep(0.05)
    world.online[ANN] = None
    world.silent = ("g2",)
    await until(lambda: socket.told[-1] == ("ann", None))
    world.online[ANN] = True  # it is asked again and again
    await until(lambda: socket.told[-1] == ("ann", True))


async def test_an_answer_from_before_an_event_does_not_count(
    world: World, watching: Watching
) -> None:
    """An answer under way said "offline"; the event came first, and the answer overwrote it."""
    socket = Socket()
    world.pause = asyncio.Event()
    watching.add(ANN, socket)
    await until(lambda: world.asked)
    world.online[ANN] = True
    world.say(CONNECTED, ANN)
    await until(lambda: len(world.asked) == 2)
    world.pause.set()
    await until(lambda: socket.told)
    assert socket.told == [("ann", True)]


async def test_a_lost_event_is_made_up_for(
    world: World, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP", 0.05)
    socket = Socket()
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", False)])
    world.online[ANN] = True
    await until(lambda: socket.told[-1] == ("ann", True))


async def test_a_quick_return_is_not_told(world: World, watching: Watching) -> None:
    socket = Socket()
    world.online[ANN] = True
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", True)])
    world.online[ANN] = False
    world.say(DISCONNECTED, ANN)
    await asyncio.sleep(0.01)
    world.online[ANN] = True
    world.say(CONNECTED, ANN)
    await asyncio.sleep(0.15)
    assert socket.told == [("ann", True)]


async def test_a_broker_that_is_away_makes_it_unknown(world: World, watching: Watching) -> None:
    socket = Socket()
    watching.add(ANN, socket)
    await until(lambda: socket.told == [("ann", False)])
    world.fails = True
    world.say(DISCONNECTED, ANN)
    await until(lambda: socket.told[-1] == ("ann", None))
    world.fails = False
    await until(lambda: socket.told[-1] == ("ann", False))


@pytest.mark.parametrize("users", [3000])
async def test_many_users_are_asked_about_in_batches(
    world: World, watching: Watching, users: int
) -> None:
    socket = Socket()
    inboxes = [Inbox("orders", f"u{number}") for number in range(users)]
    for inbox in inboxes:
        watching.add(inbox, socket)
    await until(lambda: len(socket.told) == users)
    assert max(map(len, world.asked)) <= module.BATCH
    assert sum(map(len, world.asked)) == users
    heard: Callable[[], bool] = lambda: len(socket.told) == users + 1  # noqa: E731
    world.online[inboxes[7]] = True
    world.say(CONNECTED, inboxes[7])
    await until(heard)
    assert sum(map(len, world.asked)) == users + 1


async def test_a_topic_is_asked_about_when_somebody_joins_and_not_when_somebody_may_return(
    world: World, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Topic("room", "42")
    asked: list[Topic] = []
    told: list[frozenset[Inbox]] = []
    readers = {ANN: 1}

    async def find_readers(broker: Any, topic: Topic, after: None, limit: int) -> Readers:
        asked.append(topic)
        return Readers(dict(readers), 1, None)

    class Page(Socket):
        def tell(self, inbox: Any, online: Any) -> None:
            told.append(online.users)

    def say(kind: str, inbox: Inbox) -> None:
        event = SocketEvent(kind, *inbox, "default", "c", "g1", "", topic=str(room))
        world.broker.bus.publish(world.broker.subjects.event(room), encode_event(event))

    monkeypatch.setattr(module, "find_readers", find_readers)
    monkeypatch.setattr(module, "PAUSE", 0.02)
    watching.add(room, Page())
    await until(lambda: told == [{ANN}])
    for _ in range(20):
        say(LEFT, ANN)
    await asyncio.sleep(0.1)
    assert len(asked) == 1
    readers[BOB] = 1
    for _ in range(20):
        say(JOINED, BOB)
    await until(lambda: told == [{ANN}, {ANN, BOB}])
    await asyncio.sleep(0.05)
    assert len(asked) <= 3
