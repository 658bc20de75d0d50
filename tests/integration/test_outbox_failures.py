"""The relay when the broker refuses, or a row is junk: what is stored is stored once."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dj_database_url
import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction

from wsgateway.broker import memory
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.messages import MAX_TTL, Receipt
from wsgateway.broker.nats.jetstream import error_of
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerUnavailable, MessageTooBig, NameRefused, QueueFull
from wsgateway.outbox import enqueue, relay
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.relay import Relay
from wsgateway.protocol.subjects import Inbox


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    """Which database the outbox is in; it is the default one, and empty."""
    if request.param == "sqlite":
        yield "sqlite"
        return
    url, sqlite = request.getfixturevalue("postgresql"), connections["default"]
    before = connections.databases["default"]
    connections.databases["default"] = {**before, **dj_database_url.parse(url)}
    del connections["default"]
    try:
        call_command("migrate", "wsgateway_outbox", verbosity=0)
        yield "postgresql"
    finally:
        connections["default"].close()
        connections.databases["default"] = before
        connections["default"] = sqlite


class FailingBroker:
    """The shared memory broker, with a say in what each publish does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail: Callable[[Inbox, bytes], BaseException | None] = lambda inbox, payload: None
        self.stored: list[tuple[str, bytes]] = []
        original = MemoryBroker.publish

        async def publish(broker: Any, inbox: Inbox, payload: bytes, **options: Any) -> Receipt:
            error = self.fail(inbox, payload)
            if error is not None:
                raise error
            receipt = await original(broker, inbox, payload, **options)
            self.stored.append((inbox.user, payload))
            return receipt

        memory.reset_shared_store()
        monkeypatch.setattr(MemoryBroker, "publish", publish)

    def of(self, user: str) -> list[bytes]:
        return [payload for owner, payload in self.stored if owner == user]


@pytest.fixture
def broker(settings: Any, monkeypatch: pytest.MonkeyPatch) -> FailingBroker:
    settings.PUBSUB_BROKER = "memory"
    return FailingBroker(monkeypatch)


def write(user: str, *texts: str) -> None:
    for text in texts:
        enqueue("orders", user, text=text)


def left() -> list[tuple[str, bytes]]:
    rows = OutboxMessage.objects.filter(failed_at=None)
    return [(row.user, bytes(row.payload)) for row in rows]


def junk(user: str = "ann", **values: Any) -> OutboxMessage:
    """Write a row past `enqueue`, as another program or an earlier version may."""
    fields = {"service": "orders", "payload": b"x", "kind": "text", **values}
    return OutboxMessage.objects.create(user=user, **fields)


def test_broker_that_stops_in_the_middle_of_a_batch(database: str, broker: FailingBroker) -> None:
    """The error rolled back the deletion of what was stored: 155 of 800 came twice."""
    for user in range(8):
        write(f"u{user}", *map(str, range(10)))

    tries = itertools.count()

    def stops(inbox: Inbox, payload: bytes) -> BaseException | None:
        return BrokerUnavailable("gone") if next(tries) >= 30 else None

    broker.fail = stops
    assert Relay().step() == 30
    assert len(left()) == 50
    with pytest.raises(BrokerUnavailable):
        Relay().step()
    assert len(left()) == 50
    memory.shared_store(
        wsgateway_settings
    ).inboxes.received.ids.clear()  # past the duplicate window
    broker.fail = lambda inbox, payload: None
    assert Relay().step() == 50
    for user in range(8):
        assert broker.of(f"u{user}") == [b"%d" % number for number in range(10)]


WAITS = [
    BrokerUnavailable("no answer"),
    QueueFull("full"),
    *(
        error_of({"code": code, "err_code": err_code, "description": text})
        for code, err_code, text in (
            (400, 10002, "resource limits exceeded for account"),
            (503, 10023, "insufficient resources"),
            (500, 10028, "insufficient memory resources available"),
            (500, 10047, "insufficient storage resources available"),
            (503, 10077, "maximum messages exceeded"),
            (503, 10077, "maximum bytes exceeded"),
            (500, 10077, "no space left on device"),
            (503, 10008, "JetStream system temporarily unavailable"),
            (503, 10009, "JetStream cluster can not handle request"),
            (503, 10039, "JetStream not enabled for account"),
            (503, 10076, "JetStream not enabled"),
            (400, 10109, "invalid operation on sealed stream"),
            (400, 10166, "per-message TTL is disabled"),
            (404, 10059, "stream not found"),
            (400, 99999, "an error of a later server"),
        )
    ),
    RuntimeError("a bug"),
    TypeError("a bug"),
]


@pytest.mark.parametrize("error", WAITS, ids=str)
@pytest.mark.django_db(transaction=True)
def test_errors_that_may_pass_wait(error: Exception, broker: FailingBroker) -> None:
    """A full account or stream (``insufficient resources``) failed rows for good."""
    write("ann", "1", "2", "3")
    write("bob", "1")
    broker.fail = lambda inbox, payload: error if payload == b"2" else None
    assert Relay().step() == 2
    assert broker.stored == [("ann", b"1"), ("bob", b"1")]
    with pytest.raises(type(error)):
        Relay().step()
    assert left() == [("ann", b"2"), ("ann", b"3")]
    broker.fail = lambda inbox, payload: None
    assert Relay().step() == 2
    assert broker.of("ann") == [b"1", b"2", b"3"]


REFUSED = [
    MessageTooBig(2, 1),
    error_of({"code": 400, "err_code": 10054, "description": "message size exceeds maximum"}),
    error_of({"code": 400, "err_code": 10097, "description": "header size exceeds maximum 64k"}),
    error_of({"code": 400, "err_code": 10165, "description": "invalid per-message TTL"}),
]


@pytest.mark.parametrize("error", REFUSED, ids=str)
@pytest.mark.django_db(transaction=True)
def test_errors_of_the_row_set_it_aside(error: Exception, broker: FailingBroker) -> None:
    write("ann", "1", "2", "3")
    broker.fail = lambda inbox, payload: error if payload == b"2" else None
    assert Relay().step() == 3
    assert broker.of("ann") == [b"1", b"3"]
    (row,) = OutboxMessage.objects.all()
    assert row.failed_at is not None
    assert row.error == str(error)


JUNK: list[dict[str, Any]] = [
    {"ttl": math.inf},
    {"ttl": -math.inf},
    {"ttl": math.nan},
    {"ttl": 1e300},
    {"ttl": 0.0},
    {"ttl": MAX_TTL + 1.0},
    {"headers": {"a": "line\nbreak"}},
    {"headers": {"a": "n\0ul"}},
    {"headers": {"Nats-Rollup": "sub"}},
    {"headers": {"a": {"b": "c"}}},
    {"headers": {"": "a"}},
    {"headers": {"a": "x" * 70_000}},
    {"headers": ["a"]},
    {"headers": "a"},
    {"headers": 7},
    {"kind": "junk"},
    {"kind": ""},
    {"kind": "event"},
    {"kind": "text", "payload": b"\xff"},
    {"payload": bytes(3_000_000), "kind": "binary"},
    {"service": ""},
    {"service": "\N{SNOWMAN}" * 100},
]


@pytest.mark.parametrize("values", JUNK, ids=lambda values: repr(values)[:40])
def test_row_that_can_never_be_sent_is_set_aside(
    database: str, values: dict[str, Any], broker: FailingBroker
) -> None:
    """``ttl=float("inf")`` raised OverflowError, and ended the relay at each start."""
    if database == "postgresql" and values.get("headers") == {"a": "n\0ul"}:
        pytest.skip("PostgreSQL does not store it")
    if database == "sqlite" and values.get("ttl") is not None and math.isnan(values["ttl"]):
        pytest.skip("SQLite stores NULL, which means no ttl")
    write("ann", "before")
    row = junk(**values)
    write("ann", "after")
    write("bob", "other")
    call_command("runoutbox", "--once")
    assert broker.of("ann") == [b"before", b"after"]
    assert broker.of("bob") == [b"other"]
    row.refresh_from_db()
    assert row.failed_at is not None
    assert row.error


MISTAKES: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"ttl": math.inf}, ValueError),
    ({"ttl": math.nan}, ValueError),
    ({"ttl": 0.5}, ValueError),
    ({"ttl": "60"}, TypeError),
    ({"headers": {"a": "line\nbreak"}}, ValueError),
    ({"headers": {"Nats-TTL": "1s"}}, ValueError),
    ({"headers": {"a": "\0"}}, ValueError),
    ({"headers": {"a": "\ud800"}}, ValueError),
    ({"headers": ["a"]}, ValueError),
    ({"text": "\ud800"}, ValueError),
    ({"text": None, "json": math.nan}, ValueError),
    ({"service": "a\0b"}, NameRefused),
    ({"user": "a\0b"}, NameRefused),
    ({"user": "\ud800"}, NameRefused),
    ({"user": 7}, NameRefused),
    ({"service": ""}, NameRefused),
    ({"text": "x" * 1_000_001}, MessageTooBig),
]


@pytest.mark.parametrize(("options", "error"), MISTAKES, ids=lambda v: repr(v)[:30])
def test_mistakes_are_refused_when_written(
    database: str, options: dict[str, Any], error: type[Exception]
) -> None:
    arguments = {"service": "orders", "user": "ann", "text": "a", **options}
    with transaction.atomic():
        with pytest.raises(error):
            enqueue(**arguments)
        enqueue("orders", "ann", text="the transaction goes on")
    assert len(left()) == 1


def test_users_who_wait_keep_nobody_out(database: str, broker: FailingBroker) -> None:
    """The relay took the oldest users only; once as many waited, it served nobody else."""
    for user in ("full1", "full2", "full3", "full4", "ann", "bob", "full5"):
        write(user, "1", "2")
    broker.fail = lambda inbox, payload: QueueFull("full") if "full" in inbox.user else None
    turns = Relay(users=2)
    assert turns.step() == 4
    with pytest.raises(QueueFull):
        turns.step()
    assert [user for user, _ in broker.stored] == ["ann", "bob"] * 2
    broker.fail = lambda inbox, payload: None
    total = 0
    while done := turns.step():
        total += done
    assert total == 10
    assert not left()


@pytest.mark.django_db(transaction=True)
def test_once_says_what_waits(broker: FailingBroker) -> None:
    write("full", "1")
    write("ann", "1")
    broker.fail = lambda inbox, payload: QueueFull("no room") if inbox.user == "full" else None
    with pytest.raises(CommandError, match="1 relayed, the others wait: no room"):
        call_command("runoutbox", "--once")
    assert broker.stored == [("ann", b"1")]


@pytest.mark.django_db(transaction=True)
def test_turn_reads_so_many_bytes_and_takes_so_long(
    broker: FailingBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of a thousand large rows filled the memory, and outlasted the duplicate window."""
    monkeypatch.setattr(relay, "TURN_BYTES", 5)
    monkeypatch.setattr(relay, "FETCH", 2)
    write("ann", *map(str, range(10)))
    assert Relay().step() == 5
    monkeypatch.setattr(relay, "TURN_TIME", -1.0)
    assert Relay().step() == 0
    assert broker.of("ann") == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("option", ["--batch=0", "--interval=nan", "--interval=-1"])
@pytest.mark.django_db(transaction=True)
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(CommandError, match="must be positive"):
        call_command("runoutbox", "--once", option)


@pytest.mark.django_db(transaction=True)
def test_relay_goes_on_after_the_broker_came_back(broker: FailingBroker) -> None:
    """Errors pause its loop, and never end it."""
    write("ann", "1", "2")
    errors = [BrokerUnavailable("gone"), QueueFull("full"), RuntimeError("a bug")]
    broker.fail = lambda inbox, payload: errors.pop() if errors else None
    end = threading.Event()

    class Watching(Relay):
        def step(self) -> int:
            done = super().step()
            if self.done == 2:
                end.set()
            return done

    Watching().run(end, 0.01)
    assert broker.of("ann") == [b"1", b"2"]


@pytest.mark.django_db(transaction=True)
def test_relay_says_why_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    """A time-out has no text: the line ended at its colon."""
    end = threading.Event()

    class Late(Relay):
        def step(self) -> int:
            end.set()
            raise TimeoutError

    Late().run(end, 0.01)
    assert caplog.messages == ["the outbox waits 0.0 s: TimeoutError"]
