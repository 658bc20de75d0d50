"""Events of sockets, the signals of ``runevents``, and clients that watch users."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.receiver import SECRET, receiving
from tests.support import Gateway, until
from wsgateway import counters, presence, signals
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.client import Client, GatewayError, connect
from wsgateway.events.runner import EventRunner
from wsgateway.exceptions import MalformedMessage
from wsgateway.metrics.collector import LocalCollector
from wsgateway.protocol.events import CONNECTED, SocketEvent, encode_event
from wsgateway.protocol.subjects import Inbox

Gateways = Callable[..., Gateway]
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
RIGHTS = {"WSGATEWAY_MAY_WATCH": "tests.presence_app.rights.may_watch"}


@pytest.fixture
async def events(broker: NatsBroker) -> list[dict[str, Any]]:
    """What gateways say, as it comes."""
    heard: list[dict[str, Any]] = []

    def on_event(subject: bytes, _r: bytes, payload: bytes, _h: bytes | None) -> None:
        heard.append({**json.loads(payload), "subject": subject.decode().partition(".")[2]})

    broker.bus.subscribe(broker.subjects.all_of("event"), on_event)
    await broker.bus.confirm()
    return heard


async def test_a_socket_that_comes_and_goes_is_an_event_each(
    gateway: Gateway, events: list[dict[str, Any]]
) -> None:
    async with gateway.connect("orders", "ann", query="?device=phone", **V1) as socket:
        welcome = json.loads(await socket.recv())
        await until(lambda: events)
    await until(lambda: len(events) == 2)
    came, gone = events
    for event in events:
        assert event["subject"] == "event.orders.ann"
        assert (event["service"], event["user"], event["device"]) == ("orders", "ann", "phone")
        assert event["connection"] == welcome["connection"]
        assert event["protocol"] == "wsgateway.v1"
        age = datetime.now(UTC) - datetime.fromisoformat(event["time"])
        assert 0 <= age.total_seconds() < 30
    assert came["gateway"] == gone["gateway"]
    assert (came["event"], "code" in came) == ("connected", False)
    assert (gone["event"], gone["code"], "reconnect_after" in gone) == ("disconnected", 1000, False)


async def test_a_gateway_that_ends_says_when_its_clients_come_back(
    gateway: Gateway, events: list[dict[str, Any]]
) -> None:
    async with gateway.connect("orders", "ann", **V1), gateway.connect("orders", "bob"):
        await until(lambda: len(events) == 2)
        await asyncio.to_thread(gateway.stop)
        await until(lambda: len(events) == 4)
    gone = {event["user"]: event for event in events[2:]}
    assert gone["ann"]["code"] == gone["bob"]["code"] == 4001
    assert gone["ann"]["reconnect_after"] >= 0
    assert "reconnect_after" not in gone["bob"]
    assert gone["bob"]["protocol"] == ""


async def test_a_socket_that_is_refused_is_no_event(
    gateway: Gateway, events: list[dict[str, Any]]
) -> None:
    async with gateway.connect("orders", "ann", origin="http://evil.example", **V1) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    async with gateway.connect("orders", "carol", **V1) as socket:
        await socket.recv()
        await until(lambda: events)
    await until(lambda: len(events) == 2)
    assert {event["user"] for event in events} == {"carol"}


def counted(name: str) -> list[Any]:
    """Return the samples of a metric in this process."""
    return [
        sample
        for family in LocalCollector().collect()
        for sample in family.samples
        if sample.name == name
    ]


# -- signals -----------------------------------------------------------------------------


@asynccontextmanager
async def signals_of_runevents(
    service: str = "orders",
) -> AsyncIterator[tuple[list[tuple[str, str]], list[str]]]:
    """Run ``runevents`` in this loop; yield the signals that it sends and the lines it says."""
    got: list[tuple[str, str]] = []
    said: list[str] = []
    receivers = []
    for name in signals.__all__:

        def receive(name: str = name, **kwargs: Any) -> None:
            assert kwargs["service"] == service
            assert kwargs["time"].tzinfo is not None
            got.append((name, kwargs["user"]))

        receivers.append(receive)
        getattr(signals, name).connect(receive)

    def say(text: str, /, *, event: str, **fields: object) -> None:
        said.append(text)

    runner = EventRunner(None, say)
    task = asyncio.create_task(runner.run())
    try:
        await until(lambda: any("ready" in line for line in said) or task.done())
        await until(lambda: "events: active" in said or task.done())
        yield got, said
    finally:
        runner.end()
        await task
        for name, receive in zip(signals.__all__, receivers, strict=True):
            getattr(signals, name).disconnect(receive)


@pytest.fixture(autouse=True)
def counts_from_zero() -> None:
    counters.reset()


async def test_events_go_to_a_webhook_too(nats_settings: Any, broker: NatsBroker) -> None:
    inbox = Inbox("orders", "ann")
    time = datetime.now(UTC).isoformat()
    came = SocketEvent(CONNECTED, *inbox, "phone", "c1", "g1", time, "wsgateway.v1")
    async with receiving() as receiver:
        nats_settings.WSGATEWAY_EVENTS_WEBHOOK = {
            "url": receiver.url,
            "secret": SECRET,
            "allow_private": ["127.0.0.0/8"],
        }
        async with signals_of_runevents() as (got, _):
            broker.bus.publish(broker.subjects.event(inbox), encode_event(came))
            await until(lambda: len(receiver.requests) == 2)
            await until(lambda: len(got) == 2)
    types = [request.fields["type"] for request in receiver.requests]
    assert types == ["socket.connected", "user.online"]
    assert receiver.requests[0].fields["connection"] == "c1"


async def test_signals_name_sockets_and_the_first_and_last_of_a_user(
    nats_settings: Any, gateway_factory: Gateways
) -> None:
    nats_settings.WSGATEWAY_OFFLINE_GRACE = 0.5
    one, other = gateway_factory(), gateway_factory()
    async with signals_of_runevents() as (got, said):
        async with one.connect("orders", "ann", **V1) as first:
            await first.recv()
            await until(lambda: ("user_online", "ann") in got)
            async with other.connect("orders", "ann", **V1) as second:
                await second.recv()
                await until(lambda: got.count(("socket_connected", "ann")) == 2)
            await until(lambda: got.count(("socket_disconnected", "ann")) == 1)
            await asyncio.sleep(1.5)  # nothing may come: the first socket is still there
            assert ("user_offline", "ann") not in got
            [sample] = counted("wsgateway_events_online")
            assert sample.value == 1
        await until(lambda: ("user_offline", "ann") in got)
    # What gateways say of sockets and what they answer about users go separate ways
    assert [name for name, _ in got if name.startswith("socket")] == [
        "socket_connected",
        "socket_connected",
        "socket_disconnected",
        "socket_disconnected",
    ]
    assert [name for name, _ in got if name.startswith("user")] == ["user_online", "user_offline"]
    assert {user for _, user in got} == {"ann"}
    assert "events: ended (6 sent)" in said
    sent = {s.labels["outcome"]: s.value for s in counted("wsgateway_events_signals_total")}
    assert sent == {"sent": 6, "failed": 0, "dropped": 0}


async def test_who_is_online_before_it_starts_is_known(
    nats_settings: Any, gateway: Gateway
) -> None:
    nats_settings.WSGATEWAY_OFFLINE_GRACE = 0.0
    async with gateway.connect("orders", "ann", **V1) as socket:
        await socket.recv()
        async with signals_of_runevents() as (got, said):
            assert "events: ready (1 users are online)" in said
            await socket.close()
            await until(lambda: ("user_offline", "ann") in got)
            assert ("user_online", "ann") not in got


async def test_a_quick_return_is_no_edge(nats_settings: Any, gateway: Gateway) -> None:
    nats_settings.WSGATEWAY_OFFLINE_GRACE = 3.0
    async with signals_of_runevents() as (got, _):
        for number in range(1, 4):
            async with gateway.connect("orders", "ann", **V1) as socket:
                await socket.recv()
                await until(lambda count=number: got.count(("socket_connected", "ann")) == count)
        await until(lambda: ("user_offline", "ann") in got)
    assert got.count(("user_online", "ann")) == got.count(("user_offline", "ann")) == 1


def lose(payload: bytes) -> None:
    """Leave no trace of an event, as a gateway does that is killed."""
    raise MalformedMessage("lost")


async def test_a_lost_event_is_made_up_for(
    nats_settings: Any, gateway: Gateway, broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nats_settings.WSGATEWAY_OFFLINE_GRACE = 0.0
    monkeypatch.setattr("wsgateway.events.runner.RECONCILE", 0.5)
    async with signals_of_runevents() as (got, _):
        monkeypatch.setattr("wsgateway.events.runner.parse_event", lose)
        async with gateway.connect("orders", "ann", **V1) as socket:
            await socket.recv()
            await until(lambda: ("user_online", "ann") in got)
        await until(lambda: ("user_offline", "ann") in got)
    assert got == [("user_online", "ann"), ("user_offline", "ann")]


# -- watching ----------------------------------------------------------------------------


@asynccontextmanager
async def client_of(gateway: Gateway, user: str, **options: Any) -> AsyncIterator[Client]:
    options["additional_headers"] = {"Cookie": f"service=orders; user={user}"}
    async with connect(gateway.ws(f"/ws/orders/{user}/"), **options) as client:
        yield client


async def test_a_client_watches_who_is_allowed(gateway_factory: Gateways) -> None:
    one, other = gateway_factory(**RIGHTS, LOG_FORMAT="json"), gateway_factory(**RIGHTS)
    seen: list[tuple[str, bool | None]] = []

    def on_presence(presence: Any) -> None:
        assert presence.service == "orders"
        seen.append((presence.user, presence.online))

    async with client_of(one, "ann", on_presence=on_presence) as ann:
        assert await ann.watch("bob") is False
        async with client_of(other, "bob"):
            await until(lambda: seen[-1:] == [("bob", True)])
            assert await ann.watch("bob") is True
        await until(lambda: seen[-1:] == [("bob", False)])
        with pytest.raises(GatewayError, match="not allowed") as refused:
            await ann.watch("carol")
        assert (refused.value.code, refused.value.temporary) == ("forbidden", False)
        with pytest.raises(GatewayError) as failed:
            await ann.watch("broken")
        assert (failed.value.code, failed.value.temporary) == ("internal", True)
        lines = [json.loads(each) for each in one.output.splitlines() if each.startswith("{")]
        line = next(each for each in lines if each["message"] == "WSGATEWAY_MAY_WATCH failed")
        assert (line["service"], line["user"], len(line["connection"])) == ("orders", "ann", 32)
        ann.unwatch("bob")
        async with client_of(other, "bob2") as second:
            assert await ann.watch("bob2") is True
            assert await second.watch("bob") is False
    assert seen == [("bob", False), ("bob", True), ("bob", False), ("bob2", True)]


async def test_nobody_may_watch_by_default(gateway: Gateway) -> None:
    async with client_of(gateway, "ann") as ann:
        with pytest.raises(GatewayError) as refused:
            await ann.watch("ann")
    assert refused.value.code == "forbidden"


async def test_an_asynchronous_function_decides_too(gateway_factory: Gateways) -> None:
    path = "tests.presence_app.rights.may_watch_async"
    async with client_of(gateway_factory(WSGATEWAY_MAY_WATCH=path), "ann") as ann:
        assert await ann.watch("bob") is False
        with pytest.raises(GatewayError):
            await ann.watch("carol")


async def test_a_socket_watches_no_more_users_than_it_may(gateway_factory: Gateways) -> None:
    async with client_of(gateway_factory(**RIGHTS, WSGATEWAY_MAX_WATCHES="2"), "ann") as ann:
        assert [await ann.watch("u1"), await ann.watch("u2")] == [False, False]
        with pytest.raises(GatewayError) as refused:
            await ann.watch("u3")
        assert refused.value.code == "too_many"
        ann.unwatch("u1")
        assert await ann.watch("u3") is False


async def test_watches_are_there_again_after_a_reconnect(gateway_factory: Gateways) -> None:
    gateway, other = gateway_factory(**RIGHTS), gateway_factory(**RIGHTS)
    seen: list[bool | None] = []
    async with client_of(gateway, "ann", on_presence=lambda p: seen.append(p.online)) as ann:
        assert await ann.watch("bob") is False
        await asyncio.to_thread(gateway.stop)
        async with client_of(other, "bob"):
            await asyncio.to_thread(gateway.start)
            await until(lambda: seen[-1:] == [True])
        await until(lambda: seen[-1:] == [False])
    assert [state for state in seen if state is not None] == [False, True, False]


async def test_a_right_that_has_ended_ends_the_watch_wherever_it_is(
    nats_settings: Any, gateway_factory: Gateways, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    rights = {**RIGHTS, "BLOCKED": str(blocked)}
    gateways = [gateway_factory(**rights) for _ in range(2)]
    seen: list[tuple[str, str, bool | None]] = []
    errors: list[str] = []
    async with AsyncExitStack() as stack:
        for user, gateway in zip(["bob-a", "bob-b"], gateways, strict=True):
            client = await stack.enter_async_context(
                client_of(
                    gateway,
                    user,
                    on_presence=lambda p, me=user: seen.append((me, p.user, p.online)),
                    on_error=lambda error: errors.append(error.code),
                )
            )
            for other in ("bob-a", "u1"):
                await client.watch(other)
        before = len(seen)
        blocked.write_text("bob-a")
        await presence.arecheck_watches("orders", "bob-a")
        # bob-a watches nobody any more, and nobody watches bob-a
        await until(lambda: len(errors) == 3)
        assert errors == ["forbidden"] * 3
        told = sorted((me, user) for me, user, online in seen[before:] if online is None)
        assert told == [("bob-a", "bob-a"), ("bob-a", "u1"), ("bob-b", "bob-a")]
        async with gateways[0].connect("orders", "u1"):
            await until(lambda: seen[-1] == ("bob-b", "u1", True))


async def test_each_state_is_another_one_than_the_last(gateway_factory: Gateways) -> None:
    gateway = gateway_factory(**RIGHTS)
    async with gateway.connect("orders", "ann", **V1) as socket:
        await socket.recv()
        await socket.send('{"type":"watch","id":"w","user":"bob"}')
        assert json.loads(await socket.recv())["online"] is False
        for _ in range(5):
            async with gateway.connect("orders", "bob", **V1) as other:
                await other.recv()
        await socket.send('{"type":"watch","id":"v","user":"bob"}')
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1]["type"] != "watching":
            frames.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
        told = [frame["online"] for frame in frames if frame["type"] == "presence"]
        assert told == [online for online in told if isinstance(online, bool)]
        assert all(a is not b for a, b in zip([False, *told], told, strict=False))
