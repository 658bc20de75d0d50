"""Publishing from Django: from loops, threads, transactions; one message or very many."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import transaction

from wsgateway import Outgoing, asend, asend_many, send, send_many, send_on_commit
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import Receipt
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import (
    BrokerUnavailable,
    MessageTooBig,
    NameRefused,
    PartlySent,
    WsGatewayError,
)
from wsgateway.protocol.subjects import Inbox
from wsgateway.publish import CHUNK, CHUNK_BYTES


async def read(service: str, user: str) -> list[Any]:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        return (await broker.inboxes.read_after(Inbox(service, user), 0, limit=1000)).messages
    finally:
        await broker.close()


def payloads(service: str, user: str) -> list[bytes]:
    return [stored.payload for stored in asyncio.run(read(service, user))]


def test_send_from_a_plain_thread(nats_settings: Any) -> None:
    receipt = send("orders", "ann", text="hello", headers={"traceparent": "00-1"})
    assert receipt == Receipt(1, False)
    assert send("orders", "ann", bytes=b"\xff") == Receipt(2, False)
    assert send("orders", "ann", json={"n": None}) == Receipt(3, False)
    assert send("orders", "ann", json=None) == Receipt(4, False)
    found = asyncio.run(read("orders", "ann"))
    assert [s.frame.data for s in found] == ["hello", b"\xff", '{"n":null}', "null"]


def test_same_id_is_stored_once(nats_settings: Any) -> None:
    first = send("orders", "ann", text="x", msg_id="ann.1")
    again = send("orders", "ann", text="x", msg_id="ann.1")
    assert (again.offset, again.duplicate) == (first.offset, True)


async def test_asend_and_send_in_a_loop(nats_settings: Any) -> None:
    assert (await asend("orders", "ann", text="a")).offset == 1
    with pytest.raises(RuntimeError) as error:
        send("orders", "ann", text="b")
    assert str(error.value) == "send() would block the event loop; use `await asend(...)`"
    with pytest.raises(RuntimeError, match=r"^send_many\(\) .* use `await asend_many\(\.\.\.\)`"):
        send_many([Outgoing("orders", "ann", text="b")])
    receipt = await asyncio.to_thread(send, "orders", "ann", text="c")
    assert receipt.offset == 2


def test_async_to_sync_many_times_shares_one_connection(nats_settings: Any) -> None:
    before = threading.active_count()
    for number in range(50):
        async_to_sync(asend)("orders", "ann", text=str(number))
    assert threading.active_count() <= before + 2
    assert payloads("orders", "ann") == [str(number).encode() for number in range(50)]


def test_ttl_expires(nats_settings: Any) -> None:
    import time

    send("orders", "ann", text="short", ttl=1)
    send("orders", "ann", text="long")
    time.sleep(2.5)
    assert payloads("orders", "ann") == [b"long"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, TypeError),
        ({"text": "a", "json": 1}, TypeError),
        ({"text": b"a"}, TypeError),
        ({"bytes": "a"}, TypeError),
        ({"json": object()}, TypeError),
        ({"text": "x" * 1_000_001}, MessageTooBig),
        ({"text": "a", "ttl": 0.5}, ValueError),
        ({"text": "a", "ttl": float("inf")}, ValueError),
        ({"text": "a", "ttl": float("nan")}, ValueError),
        ({"text": "a", "ttl": "60"}, TypeError),
        ({"text": "a", "headers": {"Nats-TTL": "1s"}}, ValueError),
        ({"text": "a", "msg_id": "a\nb"}, ValueError),
        ({"text": "\ud800"}, ValueError),
        ({"json": float("nan")}, ValueError),
        ({"json": [float("-inf")]}, ValueError),
        ({"json": {"\ud800": 1}}, ValueError),
        ({"json": ["half \ud83d"]}, ValueError),
    ],
)
def test_mistakes_are_refused(nats_settings: Any, options: Any, error: type[Exception]) -> None:
    """Each way of sending checks the same; NaN went out as JSON that no browser parses."""
    ways: list[Callable[[], Any]] = [
        lambda: send("orders", "ann", **options),
        lambda: async_to_sync(asend)("orders", "ann", **options),
        lambda: raise_it(*send_many([Outgoing("orders", "ann", **options)])),
        lambda: raise_it(*async_to_sync(asend_many)([Outgoing("orders", "ann", **options)])),
        lambda: send_on_commit("orders", "ann", **options),
    ]
    for way in ways:
        with pytest.raises(error):
            way()
    assert payloads("orders", "ann") == []


def raise_it(outcome: Any) -> None:
    raise outcome


@pytest.mark.parametrize("option", ["--ttl=inf", "--ttl=nan", "--ttl=0", "--id=a\nb"])
def test_publish_command_refuses_mistakes(nats_settings: Any, option: str) -> None:
    with pytest.raises(CommandError):
        call_command("publish", "orders", "ann", "a", option)
    with pytest.raises(CommandError):
        call_command("publish", "orders", "", "a")
    assert payloads("orders", "ann") == []


def test_publish_command(nats_settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("publish", "orders", "ann", "a", "--ttl=60", "--id=1")
    call_command("publish", "orders", "ann", "a", "--id=1")
    assert capsys.readouterr().out.splitlines() == [
        "stored at offset 1",
        "stored at offset 1 (was stored before)",
    ]
    assert payloads("orders", "ann") == [b"a"]


def test_unusable_names_are_refused(nats_settings: Any) -> None:
    for service, user in (("", "ann"), ("orders", ""), ("orders", "x" * 300)):
        with pytest.raises(NameRefused):
            send(service, user, text="a")


def test_send_many_reports_each(nats_settings: Any) -> None:
    messages = [Outgoing("orders", f"u{number % 7}", text=str(number)) for number in range(2000)]
    messages[5] = Outgoing("orders", "u5", text="x" * 1_000_001)
    messages[9] = Outgoing("", "u5", text="x")
    outcomes = send_many(iter(messages))
    assert len(outcomes) == 2000
    assert isinstance(outcomes[5], MessageTooBig)
    assert isinstance(outcomes[9], NameRefused)
    assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 1998
    assert payloads("orders", "u0") == [str(number).encode() for number in range(0, 2000, 7)]


async def test_asend_many(nats_settings: Any) -> None:
    outcomes = await asend_many(Outgoing("orders", "ann", text=str(n)) for n in range(10))
    assert [outcome.offset for outcome in outcomes] == list(range(1, 11))  # type: ignore[union-attr]


async def several(count: int) -> AsyncIterator[Outgoing]:
    for number in range(count):
        await asyncio.sleep(0)
        yield Outgoing("orders", "ann", text=str(number))


async def test_asend_many_reads_an_asynchronous_iterable(nats_settings: Any) -> None:
    outcomes = await asend_many(several(10))
    assert [outcome.offset for outcome in outcomes] == list(range(1, 11))  # type: ignore[union-attr]


@pytest.mark.django_db(transaction=True)
def test_send_many_reads_a_queryset_in_the_callers_thread(nats_settings: Any) -> None:
    """The background loop read it, where Django refuses: nobody knew what was sent before."""
    users = get_user_model().objects
    users.bulk_create(get_user_model()(username=f"u{number}") for number in range(3000))
    threads = set()

    def messages() -> Iterator[Outgoing]:
        for user in users.order_by("pk").iterator(chunk_size=100):
            threads.add(threading.current_thread())
            yield Outgoing("orders", "ann", text=Lazy(user.username))

    outcomes = send_many(messages())
    assert [outcome.offset for outcome in outcomes] == list(range(1, 3001))  # type: ignore[union-attr]
    assert threads == {threading.current_thread()}
    assert Lazy.threads == {threading.current_thread()}


class Lazy(str):
    """Text that is made when it is encoded, as a translation is."""

    __slots__ = ()
    threads: ClassVar[set[threading.Thread]] = set()

    def encode(self, *args: Any) -> bytes:
        self.threads.add(threading.current_thread())
        return super().encode(*args)


class Broken(Exception):
    pass


def breaks_after(count: int) -> Iterator[Outgoing]:
    for number in range(count):
        yield Outgoing("orders", "ann", text=str(number))
    raise Broken


def test_send_many_says_what_is_stored_when_the_iterable_raises(nats_settings: Any) -> None:
    with pytest.raises(PartlySent, match="Broken after 1500 messages, of which 1024") as raised:
        send_many(breaks_after(1500))
    assert isinstance(raised.value.__cause__, Broken)
    assert raised.value.stored == 1024
    outcomes = raised.value.outcomes
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 1024 + [WsGatewayError] * 476
    assert len(payloads("orders", "ann")) == 1000  # as many as one read returns
    with pytest.raises(PartlySent):
        async_to_sync(asend_many)(breaks_after(1500))
    with pytest.raises(Broken):  # nothing is stored
        send_many(breaks_after(5))


def test_send_many_says_what_is_stored_when_the_broker_is_lost(
    settings: Any, own_server: EmbeddedServer
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.5

    def messages() -> Iterator[Outgoing]:
        for number in range(3000):
            if number == 1500:
                own_server.stop()
            yield Outgoing("orders", "ann", text=str(number))

    with pytest.raises(PartlySent) as raised:
        send_many(messages())
    assert isinstance(raised.value.__cause__, BrokerUnavailable)
    assert raised.value.stored == 1024
    with pytest.raises(BrokerUnavailable):
        send_many(messages())


def test_send_many_holds_a_bounded_number_of_messages(nats_settings: Any) -> None:
    """It is read a chunk at a time, by count and by bytes."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Counted(Outgoing):
        pass

    def messages(count: int, size: int) -> Iterator[Outgoing]:
        nonlocal most
        for _ in range(count):
            message = Counted("orders", "ann", bytes=bytes(size))
            alive.add(message)
            most = max(most, len(alive))
            yield message

    send_many(messages(5000, 1))
    assert most <= CHUNK + 2
    most = 0
    send_many(messages(200, 100_000))
    assert most <= CHUNK_BYTES // 100_000 + 3


def test_send_many_refuses_what_is_not_a_message(nats_settings: Any) -> None:
    outcomes = send_many([{"text": "a"}, Outgoing("orders", "ann", text="b")])  # type: ignore[list-item]
    assert isinstance(outcomes[0], TypeError)
    assert isinstance(outcomes[1], Receipt)


@pytest.mark.django_db(transaction=True)
def test_send_on_commit_that_fails_is_logged_and_later_hooks_run(
    nats_settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It raised after the commit: the view failed, and the hooks behind it never ran."""
    nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    nats_settings.WSGATEWAY_BROKER_TIMEOUT = 0.2
    ran = []
    with transaction.atomic():
        send_on_commit("orders", "ann", text="secret")
        transaction.on_commit(lambda: ran.append("later"))
    assert ran == ["later"]
    send_on_commit("orders", "ann", text="secret")  # no transaction: the same
    records = [r for r in caplog.records if r.levelname == "ERROR" and r.name == "wsgateway"]
    assert len(records) == 2
    assert "did not send a message for service orders after the commit" in records[0].getMessage()
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "pass exactly one of text, bytes or json (got none)"),
        (
            {"text": "a", "json": None},
            "pass exactly one of text, bytes or json (got text and json)",
        ),
    ],
)
def test_payload_that_is_none_or_several(given: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as error:
        Outgoing("orders", "ann", **given).prepare()
    assert str(error.value) == text


async def test_send_on_commit_in_a_loop_is_refused(nats_settings: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^send_on_commit\(\) .* with `sync_to_async`"):
        send_on_commit("orders", "ann", text="a")


@pytest.mark.django_db(transaction=True)
def test_send_on_commit(nats_settings: Any) -> None:
    with transaction.atomic():
        send_on_commit("orders", "ann", text="kept")
        assert payloads("orders", "ann") == []
    assert payloads("orders", "ann") == [b"kept"]
    with transaction.atomic():
        send_on_commit("orders", "ann", text="rolled back")
        transaction.set_rollback(True)
    send_on_commit("orders", "ann", text="no transaction")
    assert payloads("orders", "ann") == [b"kept", b"no transaction"]
    with transaction.atomic(), pytest.raises(TypeError):
        send_on_commit("orders", "ann")


@pytest.mark.django_db
def test_send_on_commit_in_a_test_case(
    nats_settings: Any, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        send_on_commit("orders", "ann", json={"n": 1})
    assert len(callbacks) == 1
    assert payloads("orders", "ann") == [b'{"n":1}']
