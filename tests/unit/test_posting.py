"""Events that go to a webhook: signed, in order, tried again, and apart from Django's receivers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import override_settings

from tests.receiver import SECRET, Receiver, Request, answer, receiving
from tests.support import until
from tests.unit.test_signalling import Right
from wsgateway import counters
from wsgateway.conf import SETTINGS
from wsgateway.events.posting import Posting
from wsgateway.protocol.subjects import Inbox
from wsgateway.signals import socket_connected, user_offline, user_online
from wsgateway.webhooks.config import events_webhook_of

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
NOON = datetime(2026, 9, 21, 12, tzinfo=UTC)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@asynccontextmanager
async def posting(
    receiver: Receiver, right: Right | None = None, **options: Any
) -> AsyncIterator[Posting]:
    retry = {"initial": 0.01}
    given = {"url": receiver.url, "secret": SECRET, "allow_private": ["127.0.0.0/8"]}
    made = Posting(right or Right(), events_webhook_of({**given, "retry": retry, **options}))
    made.start()
    try:
        yield made
    finally:
        await made.stop(5.0)


async def test_event_is_posted_with_what_the_signal_says(receiver: Receiver) -> None:
    about = {"device": "d", "connection": "c", "gateway": "g", "protocol": "", "time": NOON}
    before = counters.events.posts["sent"]
    async with posting(receiver) as outlet:
        outlet.send(socket_connected, ANN, **about)
        await until(lambda: outlet.counts["sent"])
    (request,) = receiver.requests
    assert request.fields == {
        "type": "socket.connected",
        "service": "orders",
        "user": "ann",
        **about,
        "time": "2026-09-21T12:00:00.000+00:00",
    }
    assert request.headers["webhook-id"].startswith("evt_")
    assert counters.events.posts["sent"] == before + 1


async def test_only_events_of_the_listed_types_are_posted(receiver: Receiver) -> None:
    async with posting(receiver, events=["user.online"]) as outlet:
        outlet.send(user_offline, ANN, time=NOON)
        outlet.send(user_online, ANN, time=NOON)
    assert [request.fields["type"] for request in receiver.requests] == ["user.online"]


async def test_failed_event_is_tried_again_in_order_with_the_same_id(receiver: Receiver) -> None:
    pending = [answer(500), answer(404), answer(200, b"OK"), answer()]
    receiver.answers = lambda request: pending.pop(0)
    async with posting(receiver) as outlet:
        outlet.send(user_online, ANN, time=NOON)
        outlet.send(user_offline, ANN, time=NOON)
        await until(lambda: outlet.counts["sent"] == 2)
    types = [request.fields["type"] for request in receiver.requests]
    assert types == ["user.online"] * 3 + ["user.offline"]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 2


@pytest.mark.parametrize(
    ("reply", "tries", "text"),
    [
        (lambda: answer(500), 3, "it answered 500"),
        (lambda: answer(410), 1, "it answered 410"),
        (lambda: answer(422, {"code": "x"}), 1, "it answered 422"),
    ],
)
async def test_event_that_cannot_be_posted_is_logged(
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    reply: Callable[[], bytes],
    tries: int,
    text: str,
) -> None:
    receiver.answers = lambda request: reply()
    async with posting(receiver) as outlet:
        outlet.send(user_online, ANN, time=NOON)
        await until(lambda: outlet.counts["failed"])
    assert len(receiver.requests) == tries
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert text in record.getMessage()
    assert "/hook" not in record.getMessage()


async def test_event_is_not_tried_again_once_another_process_posts_them(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes posted, and an old "online" arrived after the other's "offline"."""
    right = Right()

    def reply(request: Request) -> bytes:
        right.term += 1  # lost, and taken again: in between, another had it
        return answer(500)

    receiver.answers = reply
    async with posting(receiver, right=right) as outlet:
        outlet.send(user_online, ANN, time=NOON)
        await until(lambda: outlet.counts["failed"])
    assert len(receiver.requests) == 1
    assert "after 1 tries: http://127.0.0.1:" in caplog.text


async def test_users_do_not_wait_for_each_other(receiver: Receiver) -> None:
    go = asyncio.Event()

    async def reply(request: Request) -> bytes:
        if request.fields["user"] == "ann":
            await go.wait()
        return answer()

    receiver.answers = reply
    async with posting(receiver) as outlet:
        outlet.send(user_online, ANN, time=NOON)
        others = [Inbox("orders", f"u{number}") for number in range(32)]
        for inbox in others:
            outlet.send(user_online, inbox, time=NOON)
        await until(lambda: outlet.counts["sent"] > 16)
        go.set()
        await until(lambda: outlet.counts["sent"] == 33)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"url": "https://a.example"}, "lacks 'secret'"),
        ({"url": "https://a.example", "secret": "hunter2"}, "does not begin with 'whsec_'"),
        ({"events": []}, "'events' must be a list of some of socket.connected, socket.disc"),
        ({"events": ["user.onlin"]}, "'events' has 'user.onlin', but may have socket.connected"),
        ({"concurrency": 5}, "'concurrency' is unknown"),
    ],
)
def test_wrong_setting_is_named(value: dict[str, Any], text: str) -> None:
    if "url" not in value:
        value = {"url": "https://a.example", "secret": SECRET, **value}
    with override_settings(WSGATEWAY_EVENTS_WEBHOOK=value):
        problem = SETTINGS["WSGATEWAY_EVENTS_WEBHOOK"].problem()
    assert problem is not None
    assert text in problem
    assert "hunter2" not in problem
