"""What `wsgateway.presence` promises, with gateways on every kind of broker."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import wsgateway
from tests.support import until
from wsgateway import presence
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.inquiry import PATIENCE
from wsgateway.exceptions import BrokerUnavailable, NameRefused
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.v1.endpoint import V1Endpoint

ANN = Inbox("service1", "ann")
SCOPE = {
    "client": ["203.0.113.7", 55000],
    "headers": [(b"host", b"example.com"), (b"user-agent", b"Firefox \xfc")],
}
Codes = dict[str, list[int]]


class Sockets:
    """Opens sockets on gateways, and remembers with which codes they were closed."""

    def __init__(self) -> None:
        self.codes: Codes = {}
        self.reasons: list[str] = []
        self.texts: list[str] = []

    async def open(
        self,
        hub: Hub,
        user: str,
        *,
        service: str = "service1",
        device: str = "default",
        kind: type[Endpoint] = V1Endpoint,
    ) -> Session:
        codes = self.codes.setdefault(user, [])

        async def send(event: Any) -> None:
            if event["type"] == "websocket.close":
                codes.append(event["code"])
                self.reasons.append(event["reason"])
            elif event.get("text"):
                self.texts.append(event["text"])

        identity = Identity(service, user, device)
        session = Session(hub, identity, Socket(Transport(send), kind), SCOPE)
        await session.start(Resume())
        return session


@pytest.fixture(autouse=True)
def fresh(brokers: Any) -> None:
    """The connections that presence uses must share the store of *brokers*."""
    runtime.reset()


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


@pytest.fixture
async def hubs(brokers: Any) -> AsyncIterator[list[Hub]]:
    """Two gateways."""
    made = [Hub(Connection(asyncio.get_running_loop(), brokers.make())) for _ in range(2)]
    for hub in made:
        await hub.open()
        await hub.broker.wait_ready(20)
        await hub.presence.listed()
    yield made
    for hub in made:
        await hub.close()


@pytest.fixture
async def frozen(hubs: list[Hub], brokers: Any) -> AsyncIterator[str]:
    """The id of a gateway that is there, and answers nothing; it holds nobody."""
    broker = await brokers.open()
    broker.bus.subscribe(broker.subjects.member("gateway", "frozen"), lambda *_: None)
    await broker.in_effect()
    await broker.roster.join("gateway", "frozen")
    yield "frozen"
    await broker.close()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a function of presence: in a thread, or its asynchronous twin."""

    async def call(name: str, *args: Any, **options: Any) -> Any:
        if request.param == "sync":
            return await asyncio.to_thread(getattr(presence, name), *args, **options)
        return await getattr(presence, f"a{name}")(*args, **options)

    return call


def test_every_function_has_a_twin_with_the_same_arguments() -> None:
    names = [n for n in presence.__all__ if inspect.iscoroutinefunction(getattr(presence, n))]
    assert len(names) == 10
    for name in names:
        ours, twin = (inspect.signature(getattr(presence, n)) for n in (name, name[1:]))
        assert ours.return_annotation == twin.return_annotation
        if name != "adisconnect":  # which says that it takes the same
            assert ours == twin


async def test_user_is_online_while_a_gateway_holds_an_open_socket(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    assert await call("is_online", *ANN) is False
    first = await sockets.open(hubs[0], "ann")
    assert await call("is_online", *ANN) is True
    assert await call("is_online", "service1", "bob") is False
    assert await call("is_online", "service", "ann") is False
    second = await sockets.open(hubs[1], "ann", kind=RawEndpoint)
    await first.stop()
    assert await call("is_online", *ANN) is True
    await second.stop()
    assert await call("is_online", *ANN) is False


async def test_many_users_at_once(hubs: list[Hub], sockets: Sockets, call: Any) -> None:
    names = [f"user {n} ü.*>" for n in range(40)]
    for n, name in enumerate(names[::2]):
        await sockets.open(hubs[n % 2], name)
    too_long = "x" * 300
    found = await call("are_online", "service1", [*names, too_long])
    assert found == {**{name: n % 2 == 0 for n, name in enumerate(names)}, too_long: False}
    pairs = [("service1", name) for name in [*names, too_long]]
    connections = await call("connections_of", pairs)
    assert {pair: len(found) for pair, found in connections.items()} == {
        **{("service1", name): int(n % 2 == 0) for n, name in enumerate(names)},
        ("service1", too_long): 0,
    }
    assert all(each.complete for each in connections.values())
    assert await call("are_online", "service1", []) == {}


async def test_connections_say_what_a_socket_is_and_how_far(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    before = dt.datetime.now(dt.UTC)
    v1 = await sockets.open(hubs[0], "ann", device="phone")
    raw = await sockets.open(hubs[1], "ann", kind=RawEndpoint)
    offsets = [(await hubs[0].broker.publish(ANN, b"x")).offset for _ in range(3)]
    await until(lambda: v1.inbox_subscription.window.sent == offsets[-1], what="v1 got them")
    await until(lambda: raw.inbox_subscription.window.confirmed == offsets[-1], what="so did raw")
    ack = {"type": "ack", "offset": offsets[0], "epoch": hubs[0].broker.inboxes.epoch}
    await v1.receive(json.dumps(ack))
    found = await call("connections", *ANN)
    assert found[1].bytes_sent == 3
    assert found[0].bytes_sent > 3 * len('{"type":"message"}')
    assert found[0].bytes_received == len(json.dumps(ack))
    assert found.complete
    assert found.silent == ()
    assert [each.id for each in found] == [v1.connection, raw.connection]  # the oldest first
    one, two = found
    assert one.gateway == hubs[0].gateway_id
    assert two.gateway == hubs[1].gateway_id
    assert (one.service, one.user, one.device) == ("service1", "ann", "phone")
    assert (one.address, one.user_agent) == ("203.0.113.7", "Firefox ü")
    assert before <= one.since <= two.since <= dt.datetime.now(dt.UTC)
    assert (one.protocol, two.protocol) == ("wsgateway.v1", "")
    assert (one.sent, one.acknowledged, one.unacknowledged) == (offsets[2], offsets[0], 2)
    assert (two.sent, two.acknowledged, two.unacknowledged) == (offsets[2], offsets[2], 0)
    assert await call("connections", "service1", "nobody") == ()


async def test_no_answer_is_larger_than_the_broker_takes(
    hubs: list[Hub], sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 sockets were an answer: with a small max_payload, long user agents hid all of them."""
    monkeypatch.setattr(hubs[0].broker.bus, "max_payload", 32 * 1024)
    agent = (b"user-agent", b"\x01" * 500)
    monkeypatch.setitem(SCOPE, "headers", [agent])
    for _ in range(40):
        await sockets.open(hubs[0], "ann")
    found = await presence.aconnections(*ANN)
    assert len({each.id for each in found}) == 40
    assert found.complete


async def test_user_with_very_many_sockets(hubs: list[Hub], sockets: Sockets) -> None:
    """They do not fit into one message."""
    for _ in range(130):
        await sockets.open(hubs[0], "ann")
    assert len(await presence.aconnections(*ANN)) == 130
    assert await presence.aonline("service1") == presence.Page({"ann": 130}, None)


async def test_pages_are_complete_and_in_order_across_gateways(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    expected: dict[str, int] = {}
    for n in range(60):
        name = f"user{n * 7 % 60:02}" if n % 10 else f"Ü{n}"
        expected[name] = expected.get(name, 0) + 1 + (n % 3 == 0)
        await sockets.open(hubs[n % 2], name)
        if n % 3 == 0:
            await sockets.open(hubs[(n + 1) % 2], name)
    await sockets.open(hubs[0], "other", service="service")
    for limit in (1, 7, 60, 1000):
        found: dict[str, int] = {}
        after, pages = None, 0
        while after is not None or not pages:
            page = await call("online", "service1", after=after, limit=limit)
            assert page.complete
            assert list(page.users) == sorted(page.users)
            assert 0 < len(page.users) <= limit
            assert not found.keys() & page.users.keys()
            found |= page.users
            after, pages = page.after, pages + 1
        assert found == expected
        assert list(found) == sorted(expected)
        assert pages == -(-len(expected) // limit)
    page = await call("online", "service1", after="zzz", limit=3)
    assert page == presence.Page({"Ü0": 2, "Ü10": 1, "Ü20": 1}, "Ü20")
    assert await call("online", "nothing") == presence.Page({}, None)


async def test_counts_know_a_user_of_two_gateways_once(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    assert await call("counts") == presence.Counts({}, {}, 2)
    for n in range(10):
        await sockets.open(hubs[0], f"u{n}")
        await sockets.open(hubs[0], f"u{n}")
    for n in range(5, 20):
        await sockets.open(hubs[1], f"u{n}", kind=RawEndpoint)
    await sockets.open(hubs[1], "u1", service="service")
    found = await call("counts")
    assert found == presence.Counts(
        {"service1": 35, "service": 1}, {"service1": 20, "service": 1}, 2
    )
    assert found.complete


async def test_counts_of_more_users_than_one_answer_holds(
    hubs: list[Hub], sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgateway.presence.overview.PART", 7)
    for n in range(50):
        await sockets.open(hubs[0], f"u{n}")
        await sockets.open(hubs[1], f"u{n + 25}")
    assert (await presence.acounts()).users == {"service1": 75}


async def test_gateways_say_what_they_are(hubs: list[Hub], sockets: Sockets, call: Any) -> None:
    for n in range(3):
        await sockets.open(hubs[0], f"u{n}")
    await sockets.open(hubs[0], "u1", service="service")
    found = await call("gateways")
    assert found.complete
    assert [each.id for each in found] == sorted(hub.gateway_id for hub in hubs)
    by_id = {each.id: each for each in found}
    one, two = (by_id[hub.gateway_id] for hub in hubs)
    assert (one.sockets, one.services) == (4, {"service1": 3, "service": 1})
    assert (two.sockets, two.services) == (0, {})
    assert (one.version, one.pid) == (wsgateway.__version__, os.getpid())
    assert dt.timedelta(0) <= dt.datetime.now(dt.UTC) - one.started < dt.timedelta(minutes=1)
    assert 10_000_000 < one.memory < 10_000_000_000
    assert not one.draining
    assert one.rates.keys() == {"messages_in", "messages_out", "connects"}
    assert one.rates["connects"] > 0


# -- acting ------------------------------------------------------------------------------


async def test_disconnect_closes_a_users_sockets_on_every_gateway_for_good(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    assert await call("disconnect", *ANN) == presence.Disconnected(0)
    opened = [await sockets.open(hubs[n % 2], "ann") for n in range(4)]
    opened.append(await sockets.open(hubs[0], "ann", kind=RawEndpoint))
    await sockets.open(hubs[0], "bob")
    done = await call("disconnect", *ANN, reason="go away")
    assert done == presence.Disconnected(5)
    assert done.complete
    # At once, though no client has answered yet
    assert await call("is_online", *ANN) is False
    assert await call("connections", *ANN) == ()
    assert (await call("counts")).sockets == {"service1": 1}
    assert await call("disconnect", *ANN) == presence.Disconnected(0)
    code = CloseCode.DISCONNECTED_BY_OPERATOR
    assert not code.reconnect
    assert sorted(sockets.codes["ann"]) == sorted([*[code] * 4, code.raw])
    assert sockets.codes["bob"] == []
    assert set(sockets.reasons) == {"go away"}
    for session in opened:
        await session.stop()
    assert await call("is_online", "service1", "bob") is True


async def test_disconnect_one_device_or_one_socket(
    hubs: list[Hub], sockets: Sockets, call: Any
) -> None:
    phone = await sockets.open(hubs[0], "ann", device="phone")
    await sockets.open(hubs[1], "ann", device="phone")
    laptop = await sockets.open(hubs[1], "ann", device="laptop")
    assert await call("disconnect", *ANN, connection="unknown") == presence.Disconnected(0)
    assert await call("disconnect", *ANN, connection=phone.connection) == presence.Disconnected(1)
    assert len(await call("connections", *ANN)) == 2
    assert await call("disconnect", *ANN, device="phone") == presence.Disconnected(1)
    assert [each.id for each in await call("connections", *ANN)] == [laptop.connection]
    assert set(sockets.reasons) == {CloseCode.DISCONNECTED_BY_OPERATOR.reason}


async def test_drained_gateway_lets_its_sockets_go_over_a_time(
    hubs: list[Hub], sockets: Sockets, call: Any, settings: Any
) -> None:
    settings.WSGATEWAY_DRAIN_RATE = 20.0
    for n in range(10):
        await sockets.open(hubs[0], f"u{n}", kind=RawEndpoint if n % 2 else V1Endpoint)
    stays = await sockets.open(hubs[1], "stays")
    began = time.monotonic()
    assert await call("drain", hubs[0].gateway_id) is True
    assert await call("drain", hubs[0].gateway_id) is True
    left = 10
    while left:
        [gateway] = [g for g in await call("gateways") if g.id == hubs[0].gateway_id]
        assert gateway.draining
        assert gateway.sockets <= left
        left = gateway.sockets
        assert time.monotonic() - began < 20
    assert time.monotonic() - began > 8 / 20
    assert {name: len(codes) for name, codes in sockets.codes.items()} == {
        **{f"u{n}": 1 for n in range(10)},
        "stays": 0,
    }
    assert {code for codes in sockets.codes.values() for code in codes} == {4001, 1012}
    assert [g.draining for g in await call("gateways") if g.id == hubs[1].gateway_id] == [False]
    assert await call("is_online", "service1", "stays") is True
    await stays.stop()


async def test_drain_of_a_gateway_that_is_not_there(hubs: list[Hub], call: Any) -> None:
    assert await call("drain", "nobody-1-abcd") is False
    with pytest.raises(NameRefused):
        await call("drain", "not.one")
    assert [hub.draining for hub in hubs] == [False, False]


# -- who does not answer -----------------------------------------------------------------


async def test_silent_gateway_is_named_and_nothing_it_may_hold_is_claimed(
    hubs: list[Hub], sockets: Sockets, frozen: str, call: Any, brokers: Any
) -> None:
    await sockets.open(hubs[0], "ann")
    broker = await brokers.open()
    broker.bus.subscribe(broker.subjects.conn(Inbox("service1", "eve")), lambda *_: None)
    await broker.in_effect()
    began = time.monotonic()
    assert await call("is_online", *ANN) is True  # whatever the silent one holds
    assert await call("is_online", "service1", "nobody") is False  # it would listen
    assert time.monotonic() - began < PATIENCE
    assert await call("is_online", "service1", "eve") is None
    names = ["ann", "eve", "nobody"]
    found = await call("are_online", "service1", names)
    assert found == {"ann": True, "eve": None, "nobody": False}
    connections = await call("connections_of", [("service1", name) for name in names])
    assert [len(each) for each in connections.values()] == [1, 0, 0]
    assert [each.silent for each in connections.values()] == [(frozen,), (frozen,), ()]
    assert (await call("connections", "service1", "nobody")).complete
    for result in (
        await call("online", "service1"),
        await call("counts"),
        await call("gateways"),
        await call("disconnect", "service1", "eve"),
    ):
        assert result.silent == (frozen,)
        assert not result.complete
    assert (await call("online", "service1")).users == {"ann": 1}
    with pytest.raises(BrokerUnavailable, match="gateway frozen did not answer"):
        await call("drain", frozen)


async def test_answers_come_within_the_time_that_silence_takes(
    hubs: list[Hub], frozen: str, call: Any
) -> None:
    for name, *args in (("counts",), ("gateways",), ("online", "service1")):
        began = time.monotonic()
        await call(name, *args)
        assert PATIENCE <= time.monotonic() - began < PATIENCE + 1.0


async def test_gateway_that_has_gone_counts_no_longer_at_once(
    hubs: list[Hub], sockets: Sockets, brokers: Any, call: Any
) -> None:
    """Its entry in the roster lasts longer, but nobody listens any more."""
    broker = await brokers.open()
    await broker.roster.join("gateway", "killed")
    await broker.close()
    assert "killed" in await hubs[0].broker.roster.members("gateway")
    began = time.monotonic()
    assert (await call("gateways")).complete
    assert (await call("counts")).gateways == 2
    assert await call("drain", "killed") is False
    assert time.monotonic() - began < PATIENCE


async def test_gateway_that_is_there_counts_though_its_entry_is_gone(
    hubs: list[Hub], sockets: Sockets, broker: Broker, settings: Any
) -> None:
    """While JetStream stores nothing, entries expire: then nobody was waited for, and a user's
    sockets, and all gateways, were missing from answers that said they were complete."""
    await sockets.open(hubs[0], "ann")
    assert (await presence.acounts()).gateways == 2
    for hub in hubs:
        hub.broker.roster.leave("gateway", hub.gateway_id)
    while await hubs[0].broker.roster.members("gateway"):
        await asyncio.sleep(0.05)
    assert await presence.acounts() == presence.Counts({"service1": 1}, {"service1": 1}, 2)
    assert len(await presence.aconnections(*ANN)) == 1
    assert len(await presence.agateways()) == 2
    assert await presence.adisconnect(*ANN) == presence.Disconnected(1)
    await hubs[0].close()
    began = time.monotonic()
    while not (await presence.agateways()).complete:  # the server may be about to notice
        assert time.monotonic() - began < 2.0
    settings.WSGATEWAY_ROSTER_TTL = 1.0
    await asyncio.sleep(1.1)
    assert await presence.agateways() == ()  # nothing has listed it for so long


async def test_gateway_that_ended_left_the_roster(hubs: list[Hub], sockets: Sockets) -> None:
    session = await sockets.open(hubs[0], "ann")
    await hubs[0].close()
    assert sockets.codes["ann"] == [4001]
    found = await presence.agateways()
    assert [each.id for each in found] == [hubs[1].gateway_id]
    assert await presence.ais_online(*ANN) is False
    await session.stop()


# -- what means nothing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"junk",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"7",
        b"{}}",
        b'{"ask": "nothing"}',
        b'{"ask": ["count"]}',
        b'{"ask": {}}',
        b'{"ask": "online", "service": 7}',
        b'{"ask": "online", "service": "service1", "limit": "x"}',
        b'{"ask": "online", "service": "service1", "limit": -1}',
        b'{"ask": "online", "service": "service1", "limit": 1e9}',
        b'{"ask": "online", "service": "service1", "after": []}',
        b'{"ask": "digests", "service": "service1", "parts": 0, "part": true}',
        b'{"ask": "disconnect", "device": 1}',
        b'{"ask": "disconnect", "connection": {}}',
        b'{"ask": "disconnect", "reason": 5}',
        b'{"ask": "disconnect", "reason": "\\ud800"}',
        b'{"ask": "connections", "ask": "disconnect"}',
        b'{"ask": "online", "service": "service1", "limit": NaN}',
        b'{"ask": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda junk: junk[:60].decode("latin-1"),
)
async def test_request_that_means_nothing_is_skipped_and_logged(
    hubs: list[Hub],
    sockets: Sockets,
    broker: Broker,
    junk: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await sockets.open(hubs[0], "ann")
    subjects = broker.subjects
    with caplog.at_level(logging.DEBUG, "wsgateway.broker"):
        for subject in (subjects.conn(ANN), subjects.member("gateway", hubs[0].gateway_id)):
            caplog.clear()
            broker.bus.publish(subject, junk)
            answers: list[bytes] = []
            broker.bus.request_many(subject, junk, answers.append, lambda _: None)
            await until(lambda answers=answers: answers, what="an answer")
            said = [r for r in caplog.records if "skipped a request" in r.getMessage()]
            assert bool(said) == (b'"error"' in answers[0])
            assert len([r for r in said if r.levelname == "WARNING"]) <= 1
    assert "Traceback" not in caplog.text
    assert await presence.ais_online(*ANN) is True
    assert sockets.codes == {"ann": []}


async def test_empty_request_is_answered_for_people(
    hubs: list[Hub], sockets: Sockets, broker: Broker
) -> None:
    """``nats request ws.conn.orders.ann ''``"""
    await sockets.open(hubs[0], "ann")
    answer = await broker.bus.request(broker.subjects.conn(ANN), b"")
    assert b'"user_agent":"Firefox' in answer.data
    member = broker.subjects.member("gateway", hubs[1].gateway_id)
    answer = await broker.bus.request(member, b"")
    assert b'"sockets":0' in answer.data


async def test_answer_goes_to_no_subject_of_ours(
    hubs: list[Hub], sockets: Sockets, broker: Broker
) -> None:
    """Who may not publish to a user could have had the gateway do it, as an answer."""
    session = await sockets.open(hubs[0], "ann")
    subject = broker.subjects.conn(ANN)
    for reply in (broker.subjects.recv(ANN), "$KV.x", ">"):
        broker.bus.publish(subject, b"", reply=reply)
    await broker.bus.request(subject, b"")
    assert await broker.inboxes.count(ANN) == 0
    assert not session.socket.closed


async def test_junk_in_the_roster_and_in_answers_is_skipped(
    hubs: list[Hub], sockets: Sockets, broker: Broker
) -> None:
    await sockets.open(hubs[0], "ann")
    answers = {
        "text": b"junk",
        "list": b"[]",
        "empty": b"{}",
        "wrong": b'{"sockets": {"s": -1}, "users": 7, "connections": [7, {}], "rates": 1}',
        "error": b'{"error": "no"}',
        "large": json.dumps(
            {
                **{"version": "1", "host": "h", "started": "2026-01-01T00:00:00Z", "services": {}},
                **{"pid": 1, "sockets": 0, "memory": 0, "rates": {"connects": 10**400}},
            }
        ).encode(),
    }

    def answer(data: bytes) -> Callable[..., None]:
        return lambda _s, reply, _p, _h: broker.bus.publish(reply.decode(), data)

    for id, data in answers.items():
        await broker.roster.join("gateway", id)
        broker.bus.subscribe(broker.subjects.member("gateway", id), answer(data))
        broker.bus.subscribe(broker.subjects.conn(ANN), answer(data))
    await broker.in_effect()
    assert await presence.ais_online(*ANN) is True
    assert len(await presence.aconnections(*ANN)) == 1
    assert (await presence.acounts()).sockets == {"service1": 1}
    assert (await presence.aonline("service1")).users == {"ann": 1}
    found = await presence.agateways()
    assert sorted(each.id for each in found) == sorted(hub.gateway_id for hub in hubs)
    assert found.silent == tuple(sorted(answers))
    assert await presence.adisconnect(*ANN) == presence.Disconnected(1, ("error", "list", "text"))


# -- arguments -----------------------------------------------------------------------------


async def test_impossible_arguments(hubs: list[Hub], call: Any) -> None:
    for name in ("is_online", "connections", "disconnect"):
        for wrong in ("", "x" * 256, "\ud800", 7):
            with pytest.raises(NameRefused):
                await call(name, "service1", wrong)
            with pytest.raises(NameRefused):
                await call(name, wrong, "ann")
    for name in ("device", "connection", "reason"):
        with pytest.raises(TypeError, match=f"{name} must be str"):
            await call("disconnect", *ANN, **{name: 7})
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="limit"):
            await call("online", "service1", limit=limit)


async def test_synchronous_call_would_block_a_loop() -> None:
    """It did not say which function would not."""
    twin = re.escape("is_online() would block the event loop; use `await ais_online(...)`")
    with pytest.raises(RuntimeError, match=twin):
        presence.is_online(*ANN)


# -- watching ------------------------------------------------------------------------------


class Rights:
    """What the project's function says, once it may."""

    allowed = True
    asked = 0
    release = asyncio.Event()


async def may_watch(identity: Identity, service: str, user: str) -> bool:
    allowed = Rights.allowed
    Rights.asked += 1
    await Rights.release.wait()
    return allowed


@pytest.mark.parametrize("concerned", ["ann", "bob"])
async def test_right_that_ends_while_it_is_looked_up_is_not_granted(
    hubs: list[Hub],
    sockets: Sockets,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    concerned: str,
) -> None:
    """Who was being asked about when a right ended got it until the next connection."""
    settings.WSGATEWAY_MAY_WATCH = f"{__name__}.may_watch"
    for name, value in (("asked", 0), ("allowed", True), ("release", asyncio.Event())):
        monkeypatch.setattr(Rights, name, value)
    session = await sockets.open(hubs[0], "ann")
    await session.receive('{"type":"watch","id":"w","user":"bob"}')
    await until(lambda: Rights.asked == 1, what="a question")
    Rights.allowed = False
    await presence.arecheck_watches("service1", "carol")  # whom this does not concern
    await presence.arecheck_watches("service1", concerned)
    await until(lambda: Rights.asked == 2, what="another question")
    Rights.release.set()
    await until(lambda: "w" in [json.loads(text).get("id") for text in sockets.texts])
    [answer] = [frame for frame in map(json.loads, sockets.texts) if frame.get("id") == "w"]
    assert (answer["type"], answer["code"]) == ("error", "forbidden")
    assert hubs[0].watching.targets == 0
    assert not hubs[0].watching.asking
    await session.stop()
