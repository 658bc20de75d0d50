"""Services that have a webhook, on every broker: what becomes of clients' messages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils.dateparse import parse_datetime

import wsgateway
from tests.commands import called, documented
from tests.contract.conftest import Brokers
from tests.integration.workers import answers, no_services, offer
from tests.receiver import SECRET, Receiver, Request, answer, receiving
from tests.support import until
from wsgateway import declared
from wsgateway.broker.base import Broker
from wsgateway.management.exits import Exit
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.services import deadletters
from wsgateway.services.registry import get_service
from wsgateway.services.runner import services_to_run
from wsgateway.services.worker import Worker

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")
ANN = Inbox("orders", "ann")


def webhook(url: str, **options: Any) -> dict[str, Any]:
    retry = {"initial": 0.01, "attempts": 3}
    given = {"url": url, "secret": SECRET, "allow_private": ["127.0.0.0/8"], "retry": retry}
    return {**given, **options}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@asynccontextmanager
async def running(*names: str, broker: Broker) -> AsyncIterator[list[Worker]]:
    """Run the webhooks of these services, as `runservice` does."""
    workers = [Worker(service, broker) for service in services_to_run(list(names))]
    async with AsyncExitStack() as stack:
        for worker in workers:
            worker.start()
            stack.push_async_callback(worker.stop, 5.0)
            await worker.ready()
        yield workers


@pytest.fixture
async def broker(brokers: Brokers, receiver: Receiver, settings: Any) -> Broker:
    """A broker of a project whose only service is a webhook."""
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_WEBHOOKS = {"orders": webhook(receiver.url)}
    return await brokers.open()


async def test_answer_of_the_endpoint_is_the_reply(broker: Broker, receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(200, b'{"price": 9.10}')
    headers = {"Ws_Client_Id": "c1", "Ws_Request": "c1", "Ws_Connection": "s1"}
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, '{"item": "tea", "price": 9.10}', Ws_Device="my=20phone", **headers)
        await until(lambda: worker.counts["done"])
    (request,) = receiver.requests
    fields = request.fields
    sent = parse_datetime(fields.pop("time"))
    assert sent is not None
    assert abs(datetime.now(UTC) - sent) < timedelta(seconds=60)
    assert fields == {
        "type": "message",
        "service": "orders",
        "user": "ann",
        "user_service": "orders",
        "topic": None,
        "device": "my phone",
        "connection": "s1",
        "offset": 1,
        "attempt": 1,
        "wants_reply": True,
        "data": {"json": {"item": "tea", "price": 9.1}},
    }
    assert b'{"item": "tea", "price": 9.10}' in request.body
    (reply,) = await answers(broker)
    assert (reply.payload, reply.kind, reply.reply_to) == (b'{"price": 9.10}', "text", "c1")


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        ("hello", {"text": "hello"}),
        ("", {"text": ""}),
        ("\ufeff[1]", {"json": [1]}),
        ("NaN", {"text": "NaN"}),
        ('"\\ud800"', {"text": '"\\ud800"'}),
        (b"\x00\xff", {"base64": "AP8="}),
    ],
)
async def test_payload_of_each_kind(
    broker: Broker, receiver: Receiver, frame: str | bytes, data: object
) -> None:
    async with running("orders", broker=broker):
        await offer(broker, frame)
        await until(lambda: receiver.requests)
    assert receiver.requests[0].fields["data"] == data
    assert await answers(broker) == []


async def test_refusal_is_told_to_the_client(broker: Broker, receiver: Receiver) -> None:
    problem = {"title": "Out of stock", "detail": "no tea left", "code": "out_of_stock"}
    receiver.answers = lambda request: answer(422, problem)
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "tea", Ws_Client_Id="c1")
        await until(lambda: worker.counts["rejected"])
    (told,) = await answers(broker)
    assert (told.error, told.payload, told.reply_to) == ("out_of_stock", b"no tea left", "c1")
    assert len(receiver.requests) == 1


async def test_failure_is_tried_again_with_the_same_id(broker: Broker, receiver: Receiver) -> None:
    pending = [answer(500), answer(404, {"code": "x"}), answer(200, {"ok": True})]
    receiver.answers = lambda request: pending.pop(0)
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "tea")
        await until(lambda: worker.counts["done"])
    assert [request.fields["attempt"] for request in receiver.requests] == [1, 2, 3]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert "." not in receiver.requests[0].headers["webhook-id"]
    assert json.loads((await answers(broker))[0].payload) == {"ok": True}


def test_backend_may_be_away_for_minutes(settings: Any) -> None:
    """With the tries of a handler, a deploy of ten seconds made dead letters."""
    settings.WSGATEWAY_WEBHOOKS = {"orders": webhook("https://a.example", retry={"cap": 60})}
    (policy,) = get_service("orders").policies.values()
    assert policy.attempts == 20
    assert 300 < sum(policy.pause(attempt, lambda: 1.0) for attempt in range(1, 20)) < 600


async def hang_up() -> AsyncIterator[bytes]:
    yield b""


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (lambda: answer(301, Location="/"), "it answered 301, a redirect, which is not followed"),
        (lambda: answer(200, b"OK"), "it answered 200, but the body is not JSON"),
        (hang_up, "disconnected"),
    ],
)
async def test_what_never_works_becomes_a_dead_letter(
    broker: Broker, receiver: Receiver, reply: Callable[[], Any], text: str
) -> None:
    receiver.answers = lambda request: reply()
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "tea", Ws_Client_Id="c1")
        await until(lambda: worker.counts["dead-lettered"])
    (letter,) = [letter async for letter in deadletters.letters(broker)]
    assert (letter.payload, letter.attempts) == (b"tea", 3)
    assert "WebhookFailed: http://127.0.0.1:" in letter.error
    assert text in letter.error
    assert "/hook" not in letter.error  # a path may hold a token
    assert [told.error for told in await answers(broker)] == ["failed"]


async def test_retry_after_is_waited_for(broker: Broker, receiver: Receiver) -> None:
    pending = [answer(503, Retry_After="1"), answer()]
    receiver.answers = lambda request: pending.pop(0)
    times: list[float] = []
    loop = asyncio.get_running_loop()
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "tea")
        await until(lambda: receiver.requests)
        times.append(loop.time())
        await until(lambda: worker.counts["done"])
        times.append(loop.time())
    assert 0.8 < times[1] - times[0] < 10


async def test_one_user_in_order_and_others_at_the_same_time(
    broker: Broker, receiver: Receiver
) -> None:
    """The first of ann's fails once, and her second waits for it; bob does not."""
    failed: list[str] = []
    open_ = asyncio.Event()

    async def reply(request: Request) -> bytes:
        if request.text == "ann 1" and not failed:
            failed.append(request.text)
            await open_.wait()
            return answer(500)
        return answer()

    receiver.answers = reply
    async with running("orders", broker=broker) as (worker,):
        for text in ("ann 1", "ann 2", "bob 1", "bob 2"):
            await offer(broker, text, user=text[:3])
        await until(lambda: worker.counts["done"] == 2)
        open_.set()
        await until(lambda: worker.counts["done"] == 4)
    texts = [request.text for request in receiver.requests]
    assert [text for text in texts if "ann" in text] == ["ann 1", "ann 1", "ann 2"]
    assert texts.index("bob 2") < texts.index("ann 2")


async def test_worker_that_ends_in_the_middle_has_it_posted_again_with_the_same_id(
    broker: Broker, brokers: Brokers, receiver: Receiver
) -> None:
    receiver.answers = lambda request: asyncio.Event().wait()
    (service,) = services_to_run(["orders"])
    worker = Worker(service, broker)
    worker.start()
    await worker.ready()
    await offer(broker, "tea")
    await until(lambda: receiver.requests)
    await worker.stop(0.0)
    receiver.answers = lambda request: answer(200, ["done"])
    async with running("orders", broker=await brokers.open()) as (other,):
        await until(lambda: other.counts["done"])
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert [request.text for request in receiver.requests] == ["tea", "tea"]
    assert [reply.payload for reply in await answers(broker)] == [b'["done"]']


async def test_slow_endpoint_does_not_touch_another_service(
    brokers: Brokers, receiver: Receiver, settings: Any
) -> None:
    """More of its users wait than one worker posts for at once."""
    settings.WSGATEWAY_SERVICES = None
    async with receiving() as slow:
        slow.answers = lambda request: asyncio.Event().wait()
        slow_options = webhook(slow.url, concurrency=2, timeout=2.0, retry={"initial": 0.1})
        settings.WSGATEWAY_WEBHOOKS = {"slow": slow_options, "orders": webhook(receiver.url)}
        broker = await brokers.open()
        async with running("slow", "orders", broker=broker) as (late, worker):
            for number in range(6):
                await broker.offer(Inbox("slow", f"u{number}"), Frame.of("x"), f"s{number}", {})
            await until(lambda: len(slow.requests) == 2)
            for number in range(20):
                await offer(broker, "x", user=f"u{number}")
            await until(lambda: worker.counts["done"] == 20)
            assert len(slow.requests) == 2
            await until(lambda: late.counts["retried"] >= 2)
            assert late.concurrency == 2


async def test_messages_to_topics_have_a_webhook_too(
    brokers: Brokers, receiver: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "topics", {})
    wsgateway.topic("room", queue=True)(lambda identity, name: "write")
    settings.WSGATEWAY_SERVICES = ["orders"]
    settings.WSGATEWAY_WEBHOOKS = {"room": webhook(receiver.url)}
    receiver.answers = lambda request: answer(200, ["seen"])
    broker = await brokers.open()
    async with running("room", broker=broker) as (worker,):
        await broker.offer_topic(Topic("room", "42"), ANN, Frame.of("hi"), "m1", {})
        await until(lambda: worker.counts["done"])
    fields = receiver.requests[0].fields
    assert (fields["service"], fields["topic"]) == ("room", "room.42")
    assert (fields["user_service"], fields["user"]) == ("orders", "ann")
    assert [reply.payload for reply in await answers(broker)] == [b'["seen"]']


async def test_endpoint_that_is_gone_pauses_the_service_until_it_is_resumed(
    broker: Broker, brokers: Brokers, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Also on workers that start later; and no message uses a try."""
    receiver.answers = lambda request: answer(410)
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "ann 1", user="ann")
        await until(lambda: "service orders is paused" in caplog.text)
        await until(lambda: worker.counts["retried"])
        await offer(broker, "ann 2", user="ann")
    assert 'run "manage.py gateway resume orders"' in caplog.text
    seen = len(receiver.requests)
    receiver.answers = lambda request: answer()
    other = await brokers.open()
    async with running("orders", broker=other) as (worker,):
        await offer(other, "bob 1", user="bob")
        (queue,) = [each for each in await other.operations.queues() if each.service == "orders"]
        assert (queue.paused, queue.waiting) == (True, 3)
        await asyncio.sleep(0.7)  # longer than the message would take to come again
        assert len(receiver.requests) == seen
        assert await other.operations.resume("orders")
        await until(lambda: worker.counts["done"] == 3)
        assert not await other.operations.resume("orders")
    later = receiver.requests[seen:]
    assert sorted(request.text for request in later) == ["ann 1", "ann 2", "bob 1"]
    assert {request.fields["attempt"] for request in later} == {1}
    assert [text for each in later if "ann" in (text := each.text)] == ["ann 1", "ann 2"]


async def test_what_is_in_hand_is_not_posted_after_a_410(
    broker: Broker, brokers: Brokers, receiver: Receiver, settings: Any
) -> None:
    """Each worker posted all that it had taken before, up to 8 x concurrency messages."""
    settings.WSGATEWAY_WEBHOOKS = {"orders": webhook(receiver.url, concurrency=1)}
    first, second = asyncio.Event(), asyncio.Event()

    async def reply(request: Request) -> bytes:
        event, status = (first, 410) if len(receiver.requests) == 1 else (second, 204)
        await event.wait()
        return answer(status)

    receiver.answers = reply
    async with (
        running("orders", broker=broker) as (one,),
        running("orders", broker=await brokers.open()) as (two,),
    ):
        for number in range(12):
            await offer(broker, "x", user=f"user-{number}")
        await until(lambda: len(receiver.requests) == 2)
        await until(lambda: one.in_hand + two.in_hand == 12)
        first.set()
        await until(lambda: 0 in (one.in_hand, two.in_hand), what="the rest is given back")
        second.set()
        await until(lambda: one.counts["done"] + two.counts["done"] == 1)
        await until(lambda: one.in_hand + two.in_hand == 0)
        assert len(receiver.requests) == 2
        receiver.answers = lambda request: answer()
        await broker.operations.resume("orders")
        await until(lambda: one.counts["done"] + two.counts["done"] == 12)
    assert len(receiver.requests) == 13
    assert {request.fields["attempt"] for request in receiver.requests} == {1}


async def test_resume_wins_over_a_410_to_a_request_that_began_before(
    broker: Broker, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The late answer paused the service once more, and nobody looked."""
    late = asyncio.Event()

    async def reply(request: Request) -> bytes:
        await late.wait()
        return answer(410)

    receiver.answers = reply
    async with running("orders", broker=broker) as (worker,):
        await offer(broker, "late")
        await until(lambda: receiver.requests)
        assert await broker.operations.pause("orders")
        assert await broker.operations.resume("orders")
        receiver.answers = lambda request: answer()
        late.set()
        await until(lambda: worker.counts["done"])
        assert "is paused" not in caplog.text
        receiver.answers = lambda request: answer(410)
        await offer(broker, "new")
        await until(lambda: "service orders is paused" in caplog.text)
        assert [each.paused for each in await broker.operations.queues()] == [True]
    assert [request.fields["attempt"] for request in receiver.requests] == [1, 1, 1]


async def test_command_resumes_a_service(broker: Broker) -> None:
    async with running("orders", broker=broker):
        await broker.operations.pause("orders")
        shown = await asyncio.to_thread(called, "status")
        assert re.search(r"^orders\s.*\bpaused\b", shown.out, re.M)
        assert "orders is paused because its webhook answered 410" in shown.out
        resumed = await asyncio.to_thread(called, "resume", "orders", "--json")
        assert resumed.json == {"service": "orders", "was_paused": True}
        assert resumed.json.keys() <= documented("gateway resume")
        again = await asyncio.to_thread(called, "resume", "orders")
        assert again.out == "orders was not paused\n"
        unknown = await asyncio.to_thread(called, "resume", "order")
        assert (unknown.code, unknown.out) == (Exit.UNKNOWN, "")
        assert "did you mean 'orders'" in unknown.err
