"""What readers of server-sent events are promised, on every kind of broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import wsgateway
from tests.event_streams import Reader
from tests.support import until
from wsgateway import counters, declared, presence, topics
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.gateway.hub import STARTS_AT_ONCE, Hub, get_hub
from wsgateway.identity import Identity, make_token
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.event_ids import mark, parse_id
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.routing import sse_router

ANN = Inbox("orders", "ann")
ROOM, LOBBY = Topic("room", "42"), Topic("room", "lobby")
ANNS = {"cookie": "user=ann"}


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch, brokers: Any) -> dict[str, str | None]:
    """What the function that declares rooms returns, by name; else everybody may read."""
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    exceptions: dict[str, str | None] = {}

    @wsgateway.topic("room")
    async def allow(identity: Identity, name: str) -> str | None:
        return exceptions.get(name, "read")

    wsgateway.topic("cursor", durable=False)(allow)

    @wsgateway.topic("public")
    async def let_strangers_in(identity: Identity, name: str) -> str | None:
        return "read" if identity.is_anonymous else None

    return exceptions


@pytest.fixture
def decided(allowed: Any) -> asyncio.Event:
    """Set it to let a function return that says who may read the topics of ``slow``."""
    decided = asyncio.Event()

    @wsgateway.topic("slow")
    async def decide(identity: Identity, name: str) -> str:
        await decided.wait()
        return "read"

    return decided


@pytest.fixture
async def hub(allowed: Any) -> AsyncIterator[Hub]:
    hub = get_hub()
    await hub.open()
    await hub.broker.wait_ready(20)
    await hub.broker.set_up()
    yield hub
    await hub.close()


def read(query: str = "", path: str = "/orders/", **headers: str) -> Reader:
    return Reader(sse_router, path, query, **(headers or ANNS))


async def publish(broker: Broker, to: Address, *data: str | bytes) -> int:
    offset = 0
    for each in data:
        payload = each.encode() if isinstance(each, str) else each
        offset = (await broker.publish(to, payload)).offset
    return offset


async def test_inbox_and_topics_come_in_one_response(hub: Hub) -> None:
    async with read("topic=room.42&topic=room.lobby") as ann:
        assert ann.status == 200
        assert ann.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in ann.headers["cache-control"]
        assert ann.headers["x-accel-buffering"] == "no"
        assert ann.headers["x-content-type-options"] == "nosniff"
        await until(lambda: len(ann.named("welcome")) == 3)
        assert ann.parser.retry is not None
        await publish(hub.broker, ROOM, "<p>a</p>", "b")
        await publish(hub.broker, ANN, "mail")
        await publish(hub.broker, Topic("room", "other"), "not for ann")
        await publish(hub.broker, ANN, b"\xff\0")
        await ann.has("<p>a</p>", "b", name="room.42")
        await ann.has("mail")
        await ann.has("/wA=", name="binary")
        assert not ann.named("room.lobby")


async def test_reader_resumes_exactly(hub: Hub) -> None:
    query = "topic=room.42"
    async with read(query) as ann:
        await publish(hub.broker, ROOM, "1")
        await publish(hub.broker, ANN, "a")
        await ann.has("1", name="room.42")
        last = (await ann.has("a"))[-1].id
    await publish(hub.broker, ROOM, "2")
    await publish(hub.broker, ANN, "b")
    for again in (read(query, **ANNS, last_event_id=last), read(f"{query}&last_event_id={last}")):
        async with again as ann:
            await ann.has("2", name="room.42")
            await ann.has("b")
            assert len(ann.named("recovered")) == 2
            assert not ann.named("gap")


async def test_reader_that_has_seen_nothing_resumes_where_it_began(hub: Hub) -> None:
    """Without an id at the beginning, a browser reconnects without one, and begins again."""
    async with read("topic=room.42") as ann:
        await until(lambda: len(ann.named("welcome")) == 2)
        last = ann.events[-1].id
    await publish(hub.broker, ROOM, "1")
    await publish(hub.broker, ANN, "a")
    async with read("topic=room.42", **ANNS, last_event_id=last) as ann:
        await ann.has("1", name="room.42")
        await ann.has("a")


async def test_reader_is_told_that_messages_are_missing(brokers: Any, hub: Hub) -> None:
    async with read() as ann:
        await publish(hub.broker, ANN, "1")
        last = (await ann.has("1"))[-1].id
    await brokers.keep(hub.broker, 2)
    await publish(hub.broker, ANN, "2", "3", "4")
    async with read(**ANNS, last_event_id=last) as ann:
        await ann.has("3", "4")
        (gap,) = ann.named("gap")
        assert gap.fields["reason"] == "trimmed"


async def test_position_of_another_stream_or_user_is_a_gap(brokers: Any, hub: Hub) -> None:
    async with read() as ann:
        await publish(hub.broker, ANN, "1")
        last = (await ann.has("1"))[-1].id
    bobs = {"cookie": "user=bob", "last_event_id": last}
    async with read("since=all", **bobs) as bob:
        await publish(hub.broker, Inbox("orders", "bob"), "for bob")
        await bob.has("for bob")
        assert bob.named("gap")[0].fields["reason"] == "epoch"
    await brokers.renew(hub.broker)
    await publish(hub.broker, ANN, "2")
    async with read(**ANNS, last_event_id=last) as ann:
        await ann.has("2")
        assert ann.named("gap")[0].fields["reason"] == "epoch"


async def test_gap_of_a_topic_is_told_however_early_the_connection_ends(
    brokers: Any, hub: Hub
) -> None:
    """The welcome's id held the topic's new position, though its gap was told after that."""
    query = "topic=room.42"
    async with read(query) as ann:
        await publish(hub.broker, ROOM, "1")
        last = (await ann.has("1", name="room.42"))[-1].id
    await brokers.renew(hub.broker, "room")
    await publish(hub.broker, ROOM, "2")
    for _ in range(2):
        async with read(query, **ANNS, last_event_id=last) as ann:
            await ann.has("2", name="room.42")
            first, gap, message = ann.events
            assert (first.name, gap.name) == ("recovered", "gap")
            assert gap.fields["topic"] == "room.42"
            last = first.id  # as if nothing more had come
    async with read(query, **ANNS, last_event_id=gap.id) as ann:
        await ann.has("2", name="room.42")
        assert len(ann.named("recovered")) == 2
    assert parse_id(message.id)[mark(ROOM)] > parse_id(gap.id)[mark(ROOM)]


@pytest.mark.parametrize(
    ("since", "expected"), [("new", []), ("all", ["0", "1", "2"]), ("2", ["1", "2"])]
)
async def test_since_holds_for_inbox_and_topics(hub: Hub, since: str, expected: list[str]) -> None:
    for address in (ANN, ROOM):
        await publish(hub.broker, address, "0", "1", "2")
    async with read(f"topic=room.42&since={since}") as ann:
        for address in (ANN, ROOM):
            await publish(hub.broker, address, "live")
        await ann.has(*expected, "live")
        await ann.has(*expected, "live", name="room.42")


async def test_cursor_of_the_device_is_read_and_never_moved(hub: Hub) -> None:
    """Readers acknowledge nothing, so what was written may be lost on the way."""
    first = await publish(hub.broker, ANN, "0", "1")
    await hub.broker.save_cursor(ANN, "phone", first - 1, epoch=hub.broker.inboxes.epoch)
    for _ in range(2):
        async with read("device=phone") as ann:
            event = (await ann.has("1"))[-1]
            assert ann.named("recovered")
        await hub.cursors.flush()
        assert await hub.broker.load_cursor(ANN, "phone") == first - 1
    async with read("device=phone", **ANNS, last_event_id=event.id):
        await hub.cursors.flush()
        assert await hub.broker.load_cursor(ANN, "phone") == first - 1
    async with read() as ann:  # no device is named, so no cursor counts
        await publish(hub.broker, ANN, "new")
        await ann.has("new")


async def test_slow_reader_waits_in_the_stream(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_WINDOW = settings.WSGATEWAY_SOCKET_WINDOW = 4
    async with read("topic=room.42") as ann:
        await until(lambda: len(ann.named("welcome")) == 2)
        ann.reads.clear()
        texts = [str(number) for number in range(50)]
        await publish(hub.broker, ROOM, *texts)
        (session,) = hub.sessions_of(ANN)
        window = session.subscriptions[ROOM].window
        assert window.in_flight + window.held <= 8
        ann.reads.set()
        await ann.has(*texts, name="room.42")


async def test_ephemeral_topic_comes_without_an_id(hub: Hub) -> None:
    async with read("topic=cursor.1") as ann:
        await until(lambda: len(ann.named("welcome")) == 2)
        before = ann.events[-1].id
        await publish(hub.broker, Topic("cursor", "1"), "x")
        (event,) = await ann.has("x", name="cursor.1")
        assert event.id == before
        assert parse_id(before).keys() == {mark(ANN)}


async def test_json_format_says_everything(hub: Hub) -> None:
    async with read("topic=room.42&format=json") as ann:
        offset = await publish(hub.broker, ROOM, "a\r\nb")
        await until(lambda: ann.named("message"))
        fields = ann.named("message")[0].fields
        assert (fields["topic"], fields["data"], fields["offset"]) == ("room.42", "a\r\nb", offset)


# -- who may -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "path", "headers", "status", "detail"),
    [
        ("", "/orders/", {}, 401, "not logged in"),
        ("", "/orders/bob/", {"authorization": "Bearer {token}"}, 403, "the path names another"),
        (
            "topic=room.42&topic=room.secret",
            "/orders/",
            ANNS,
            403,
            "there is no such topic, or this",
        ),
        ("topic=nothing.1", "/orders/", ANNS, 403, "there is no such topic, or this"),
        ("", "/unknown/", ANNS, 403, "'unknown'"),
        ("since=x", "/orders/", ANNS, 400, "since must be"),
        ("last_event_id=x", "/orders/", ANNS, 400, "id"),
        ("", "/orders", ANNS, 404, "with the slash at its end"),
        ("", "/orders/", {**ANNS, "origin": "https://evil.example"}, 403, "https://evil.example"),
    ],
)
async def test_request_that_is_refused_says_why(
    hub: Hub, allowed: Any, query: str, path: str, headers: dict[str, str], status: int, detail: str
) -> None:
    allowed["secret"] = None
    token = make_token("orders", "ann")
    headers = {name: value.format(token=token) for name, value in headers.items()} or {"x": "y"}
    async with read(query, path, **headers) as client:
        assert client.status == status, client.body
        assert detail in client.problem["detail"]
        assert client.ended
    assert hub.sockets == 0
    assert not hub.rights.holders_of(ROOM)


async def test_token_of_a_topic_lets_its_user_read(hub: Hub, allowed: Any) -> None:
    allowed["42"] = allowed["lobby"] = None
    tokens = [topics.token("room", name, user="ann") for name in ("lobby", "42")]
    query = "topic=room.42&topic=room.lobby&" + "&".join(f"topic_token={each}" for each in tokens)
    async with read(query) as ann:
        await publish(hub.broker, ROOM, "a")
        await ann.has("a", name="room.42")
    async with read(query, cookie="user=bob") as bob:
        assert bob.status == 403


async def test_reader_does_not_wait_for_the_rights_of_others(
    decided: asyncio.Event, hub: Hub
) -> None:
    waiting = [
        asyncio.create_task(read_once(f"topic=slow.{number}"))
        for number in range(STARTS_AT_ONCE + 1)
    ]
    async with read() as ann:
        assert ann.status == 200
    assert not any(task.done() for task in waiting)
    decided.set()
    assert set(await asyncio.gather(*waiting)) == {200}


async def read_once(query: str) -> int:
    async with read(query) as ann:
        return ann.status


async def test_reader_that_takes_nothing_holds_up_no_other(hub: Hub) -> None:
    """As many as may start at once kept everybody else out, sockets too."""
    deaf = [read(cookie=f"user=deaf{number}") for number in range(STARTS_AT_ONCE)]
    async with contextlib.AsyncExitStack() as stack:
        for each in deaf:
            each.reads.clear()
        opening = [asyncio.create_task(stack.enter_async_context(each)) for each in deaf]
        await until(lambda: hub.sockets == STARTS_AT_ONCE)
        async with read() as ann:
            await until(lambda: ann.named("welcome"), 5)
        assert not any(each.status for each in deaf)
        for each in deaf:
            each.reads.set()
        await asyncio.gather(*opening)


async def test_token_comes_in_the_query_or_as_bearer(hub: Hub) -> None:
    token = make_token("orders", "ann")
    for client in (read(f"token={token}", x="y"), read(authorization=f"Bearer {token}")):
        async with client as ann:
            await publish(hub.broker, ANN, "x")
            await ann.has("x")


async def test_reader_without_a_login_reads_what_topics_allow(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = [
        "wsgateway.identity.CookieIdentity",
        "wsgateway.identity.AnonymousIdentity",
    ]
    settings.WSGATEWAY_MAX_CONNECTIONS_PER_USER = 1
    news = Topic("public", "news")
    query = "topic=public.news"
    async with read(query, x="y") as one, read(query, x="y") as two:
        await until(lambda: len(one.named("welcome")) == len(two.named("welcome")) == 2)
        last = one.events[-1].id
        await publish(hub.broker, news, "a")
        for each in (one, two):
            await each.has("a", name="public.news")
    async with read(query, x="y", last_event_id=last) as one:
        await one.has("a", name="public.news")
    for path, wanted in (("/orders/", query), ("/orders/ann/", "")):
        cookies = ANNS if wanted else {"x": "y"}
        async with read(wanted, path, **cookies) as client:
            assert client.status == (403 if wanted else 401)
    async with read(x="y") as client:
        assert "only topics can be read" in client.problem["detail"]


async def test_page_of_an_allowed_origin_may_read(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = ["https://shop.example"]
    origin = "https://shop.example"
    async with read(**ANNS, origin=origin) as ann:
        assert ann.headers["access-control-allow-origin"] == origin
        assert ann.headers["access-control-allow-credentials"] == "true"
        assert ann.headers["vary"] == "Origin"
    async with read(x="y", origin=origin) as ann:  # so that the page can read why
        assert (ann.status, ann.headers["access-control-allow-origin"]) == (401, origin)
    preflight = read(origin=origin)
    preflight.method = "OPTIONS"
    async with preflight as answer:
        assert answer.status == 204
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert answer.headers["access-control-allow-origin"] == origin
    settings.WSGATEWAY_ALLOWED_ORIGINS = ["*"]
    async with read(**ANNS, origin="https://anybody.example") as ann:
        assert ann.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in ann.headers


async def test_image_of_another_sites_page_opens_nothing(hub: Hub) -> None:
    """Browsers send no Origin with it, but the reader's cookies."""
    for site, status in (
        ("same-site", 403),
        ("cross-site", 403),
        ("same-origin", 200),
        ("none", 200),
    ):
        async with read(**ANNS, sec_fetch_site=site) as ann:
            assert ann.status == status


@pytest.mark.parametrize(
    ("hosts", "debug", "host", "status"),
    [
        (["shop.example"], False, "shop.example:8000", 200),
        (["shop.example"], False, "evil.example", 400),
        (["shop.example"], True, "evil.example", 400),
        (["shop.example"], False, "shop.example/evil", 400),
        ([], False, "localhost", 400),
        ([], True, "localhost:8000", 200),
        ([], True, "evil.example", 400),
        (["*"], False, "evil.example", 200),
    ],
)
async def test_only_hosts_of_the_site_are_answered(
    hub: Hub, settings: Any, hosts: list[str], debug: bool, host: str, status: int
) -> None:
    """A foreign page whose own name led here was its own site, and read public topics."""
    settings.ALLOWED_HOSTS, settings.DEBUG = hosts, debug
    async with read(**ANNS, host=host) as ann:
        assert ann.status == status
        if status == 400:
            assert f"host '{host}' may not be used here" in ann.problem["detail"]
            assert "ALLOWED_HOSTS" in ann.problem["detail"]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("topic=" + "x" * 70_000, ANNS, 414),
        ("", {"cookie": "x=" + "y" * 70_000}, 431),
        ("", ANNS | {f"x-{number}": "" for number in range(20_000)}, 431),
        ("&".join(["topic=room.42"] * 200), ANNS, 400),
    ],
    ids=["query", "cookie", "headers", "parameters"],
)
async def test_request_that_is_too_large_is_not_read(
    hub: Hub, query: str, headers: dict[str, str], status: int
) -> None:
    """Uvicorn on httptools has no limits, and each look into megabytes holds up the loop."""
    async with read(query, **headers) as ann:
        assert (ann.status, ann.problem["status"]) == (status, status)
        assert "more than" in ann.problem["detail"]
    assert hub.sockets == 0


async def test_reader_may_read_as_many_topics_as_a_socket(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_MAX_SUBSCRIPTIONS = 1
    async with read("topic=room.42", "/orders/ann/") as ann:
        assert ann.status == 200
    async with read("topic=room.42&topic=room.lobby") as ann:
        assert ann.status == 400
        assert "more than 1 topics (WSGATEWAY_MAX_SUBSCRIPTIONS)" in ann.problem["detail"]


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE"])
async def test_other_methods_are_not_allowed(hub: Hub, method: str) -> None:
    client = read()
    client.method = method
    async with client:
        assert (client.status, client.headers["allow"]) == (405, "GET, OPTIONS")


async def test_user_with_too_many_connections_is_told_to_wait(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_MAX_CONNECTIONS_PER_USER = 1
    async with read(), read("topic=room.42") as second:
        assert second.status == 429
        assert int(second.headers["retry-after"]) > 0
        assert "maximum number of connections" in second.problem["detail"]
    assert not hub.rights.holders_of(ROOM)


async def test_draining_gateway_sends_readers_elsewhere(hub: Hub) -> None:
    async with read() as ann:
        ann.parser.retry = 0  # as if it had not begun with one
        hub.drain()
        await until(lambda: ann.ended)
        assert ann.parser.retry > 0
        assert ann.named("closed")[0].fields == {"code": 4001, "reason": "shutting down"}
        async with read() as late:
            assert (late.status, late.problem["code"]) == (503, 4001)
            assert int(late.headers["retry-after"]) > 0


# -- its end -----------------------------------------------------------------------------


async def test_right_that_is_withdrawn_ends_the_response(hub: Hub, allowed: Any) -> None:
    async with read("topic=room.42") as ann:
        await until(lambda: len(ann.named("welcome")) == 2)
        allowed["42"] = None
        await topics.arevoke("room", "42")
        await until(lambda: ann.ended)
        assert ann.named("closed")[0].fields["code"] == CloseCode.FORBIDDEN
    async with read("topic=room.42") as ann:
        assert ann.status == 403


async def test_login_that_ends_ends_the_response(hub: Hub) -> None:
    async with read() as ann:
        await until(lambda: ann.named("welcome"))
        (session,) = hub.sessions_of(ANN)
        session.close_soon(CloseCode.NOT_AUTHENTICATED)
        await until(lambda: ann.ended)
        assert ann.named("closed")[0].fields == {"code": 4501, "reason": "not authenticated"}
    assert hub.sockets == 0


async def test_reader_counts_as_a_socket(hub: Hub) -> None:
    before = counters.gateway.sockets_of("orders", "sse").opened
    async with read("topic=room.42") as ann:
        await until(lambda: ann.named("welcome"))
        assert await presence.ais_online("orders", "ann") is True
        (session,) = hub.sessions_of(ANN)
        assert session.subscriptions.keys() == {ANN, ROOM}
        assert counters.gateway.sockets_of("orders", "sse").opened == before + 1
    assert await presence.ais_online("orders", "ann") is False
    assert not hub.rights.holders_of(ROOM)


async def test_heartbeats_come_while_there_is_nothing_to_say(hub: Hub, settings: Any) -> None:
    settings.WSGATEWAY_PING_INTERVAL = 0.05
    async with read() as ann:
        await until(lambda: ann.parser.comments >= 2)


async def test_position_is_exact_whenever_the_reader_leaves(hub: Hub) -> None:
    """Each id is that of the message before it, whatever else is on its way."""
    async with read("topic=room.42&topic=room.lobby") as ann:
        await until(lambda: len(ann.named("welcome")) == 3)

        async def talk(address: Address) -> None:
            for number in range(5):
                await publish(hub.broker, address, f"{address} {number}")

        await asyncio.gather(talk(ANN), talk(ROOM), talk(LOBBY))
        await until(lambda: len(ann.events) == 3 + 15)
        events = list(ann.events)
    for index in (4, 9, 14):
        rest = sorted(event.data for event in events[index + 1 :])
        query = f"topic=room.42&topic=room.lobby&last_event_id={events[index].id}"
        async with read(query) as again:

            def got(again: Reader = again) -> list[str]:
                return sorted(each.data for each in again.events if each.name != "recovered")

            await until(lambda got=got, rest=rest: got() == rest)
