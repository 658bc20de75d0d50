"""Publishing from Django: from loops, threads, transactions; one message or very many."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from wsgateway import Outgoing, asend, asend_many, send, send_many, send_on_commit
from wsgateway.broker.base import Receipt
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import MessageTooBig, NameRefused
from wsgateway.subjects import Inbox


async def read(service: str, user: str) -> list[Any]:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        return (await broker.read_after(Inbox(service, user), 0, limit=1000)).messages
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
    with pytest.raises(RuntimeError, match="await"):
        send("orders", "ann", text="b")
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
    ],
)
def test_mistakes_are_refused(nats_settings: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        send("orders", "ann", **options)
    assert payloads("orders", "ann") == []


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
