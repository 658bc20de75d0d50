"""Services: handlers get what clients send, and clients get their answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.workers import answers, no_services, offer, serving
from tests.support import Gateway, forget_connections, until
from wsgateway import JsonHandler, Message, Reject, Retry, RetryPolicy
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.services import deadletters, registry
from wsgateway.services import worker as worker_module

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")

FAST = RetryPolicy(initial=0.05, cap=0.1)


async def test_async_handler_gets_everything_about_a_message(broker: NatsBroker) -> None:
    got: list[Message] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        got.append(message)
        await message.reply(json={"ok": True, "was": message.json()})

    await offer(broker, '{"n":1}', Ws_Connection="c0", Ws_Device="my=20phone", Ws_Client_Id="i1")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    message = got[0]
    assert (message.service, message.user_name, message.attempt) == ("orders", "ann", 1)
    assert (message.connection, message.device, message.client_id) == ("c0", "my phone", "i1")
    assert message.offset == 1
    assert not message.wants_reply
    stored = await answers(broker)
    assert [json.loads(s.payload) for s in stored] == [{"ok": True, "was": {"n": 1}}]
    assert stored[0].reply_to is None
    info = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.queue('orders')}")
    assert info["state"]["messages"] == 0


@pytest.mark.django_db(transaction=True)
async def test_sync_handler_runs_in_a_thread_with_the_database(broker: NatsBroker) -> None:
    import threading

    from django.contrib.auth import get_user_model

    await get_user_model().objects.acreate(username="ann", email="ann@example.com")
    threads: list[Any] = []

    @registry.service("orders")
    def handle(message: Any) -> None:
        threads.append(threading.current_thread())
        message.reply(text=f"{message.user.email} said {message.text}")
        forget_connections()  # of a thread that ends with the worker; Python 3.13 would complain

    await offer(broker, "hello")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert threads[0] is not threading.main_thread()
    assert [s.payload for s in await answers(broker)] == [b"ann@example.com said hello"]


async def test_request_gets_its_reply_and_refusal_its_reason(broker: NatsBroker) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        if message.text == "bad":
            raise Reject("no such thing", code="missing")
        await message.reply(text="good")

    await offer(broker, "fine", Ws_Client_Id="r1", Ws_Request="r1")
    await offer(broker, "bad", Ws_Client_Id="r2", Ws_Request="r2")
    await offer(broker, "bad", user="raw")  # cannot be told
    async with serving(broker) as worker:
        await until(lambda: worker.counts.total() == 3)
    found = [(s.reply_to, s.error, s.payload) for s in await answers(broker)]
    assert found == [("r1", None, b"good"), ("r2", "missing", b"no such thing")]
    assert await answers(broker, "raw") == []
    assert worker.counts == {"done": 1, "rejected": 2}


async def test_payload_that_is_no_json_is_refused_not_retried(broker: NatsBroker) -> None:
    """Python reads NaN, 1e999 and ``"\\ud800"``; a reply that quoted them failed at every try."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(json=message.json())

    payloads: list[str | bytes] = ["{", b"\xff", "NaN", '{"n":1e999}', '{"a":1,"a":2}', '"\\ud800"']
    for number, payload in enumerate(payloads):
        await offer(broker, payload, Ws_Client_Id=f"i{number}")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["rejected"] == len(payloads))
    assert [(s.reply_to, s.error) for s in await answers(broker)] == [
        (f"i{number}", "bad_request") for number in range(len(payloads))
    ]


async def test_class_based_service_dispatches_by_type(broker: NatsBroker) -> None:
    calls: list[tuple[str, Any]] = []

    @registry.service("orders")
    class Orders(JsonHandler):
        async def cart_add(self, message: Message, data: Any) -> None:
            calls.append(("cart_add", data["item"]))

        async def _secret(self, message: Message, data: Any) -> None:
            calls.append(("secret", data))

        def not_async(self) -> None:
            calls.append(("not_async", None))

    assert Orders.__name__ == "Orders"
    bad = ['{"type":"_secret"}', '{"type":"__call__"}', '{"type":"not.async"}', '{"type":1}', "[]"]
    for number, text in enumerate(['{"type":"cart.add","item":7}', *bad]):
        await offer(broker, text, Ws_Client_Id=f"i{number}")
    async with serving(broker) as worker:
        await until(lambda: worker.counts.total() == 6)
    assert calls == [("cart_add", 7)]
    assert worker.counts == {"done": 1, "rejected": 5}


async def test_retries_then_success_in_order(broker: NatsBroker) -> None:
    calls: list[tuple[str, int]] = []

    @registry.service("orders", retry=FAST)
    async def handle(message: Message) -> None:
        calls.append((message.text, message.attempt))
        if message.text == "one" and message.attempt < 3:
            raise OSError("not yet")

    for text in ("one", "two"):
        await offer(broker, text)
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 2)
    assert calls == [("one", 1), ("one", 2), ("one", 3), ("two", 1)]


async def test_poison_is_set_aside_and_the_queue_goes_on(
    broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @registry.service("orders", retry={ValueError: RetryPolicy(attempts=2, initial=0.01)})
    async def handle(message: Message) -> None:
        if message.text == "poison":
            raise ValueError("cannot: ünïcode\nand lines")

    await offer(broker, "poison", Ws_Client_Id="p1", Ws_Request="p1", traceparent="00-1")
    await offer(broker, "next")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    letters = [letter async for letter in deadletters.letters(broker, "orders")]
    assert len(letters) == 1
    letter = letters[0]
    assert (letter.payload, letter.attempts, letter.inbox.user) == (b"poison", 2, "ann")
    assert letter.headers["traceparent"] == "00-1"
    assert letter.error.startswith("ValueError: cannot: ünïcode")
    assert "test_services.py" in letter.traceback
    assert [(s.reply_to, s.error) for s in await answers(broker)] == [("p1", "failed")]
    await deadletters.retry(broker, letter)
    with pytest.raises(deadletters.DeadLetterMissing):
        await deadletters.find(broker, letter.offset)
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    async for again in deadletters.letters(broker):
        await deadletters.purge(broker, again)
    assert [letter async for letter in deadletters.letters(broker)] == []


async def test_retry_after_and_cancellation_by_the_handler(broker: NatsBroker) -> None:
    calls: list[int] = []

    @registry.service("orders", retry=FAST)
    async def handle(message: Message) -> None:
        calls.append(message.attempt)
        if message.attempt == 1:
            raise Retry("later", after=0.05)
        if message.attempt == 2:
            raise asyncio.CancelledError

    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert calls == [1, 2, 3]


async def test_long_handler_keeps_its_message(broker: NatsBroker, nats_settings: Any) -> None:
    nats_settings.WSGATEWAY_ACK_WAIT = 1.2
    calls: list[int] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        calls.append(message.attempt)
        await asyncio.sleep(3.0)

    await offer(broker, "slow")
    async with serving(broker) as worker, serving(broker):
        await until(lambda: worker.counts["done"] == 1 or len(calls) > 1)
        await asyncio.sleep(1.3)
    assert calls == [1]


async def test_users_side_by_side_one_user_in_order(broker: NatsBroker) -> None:
    """Two workers share the users; no user is ever handled twice at a time."""
    active: set[str] = set()
    most = 0
    order: dict[str, list[str]] = {}

    @registry.service("orders")
    async def handle(message: Message) -> None:
        nonlocal most
        assert message.user_name not in active, "one user's messages at the same time"
        active.add(message.user_name)
        most = max(most, len(active))
        await asyncio.sleep(0.005)
        order.setdefault(message.user_name, []).append(message.text)
        active.discard(message.user_name)

    users, each = 200, 4  # more users than one worker takes at once
    for number in range(each):
        for user in range(users):
            await offer(broker, f"{number}", user=f"u{user}")
    async with serving(broker) as one, serving(broker) as two:
        await until(lambda: one.counts.total() + two.counts.total() >= users * each, 30)
    assert order == {f"u{user}": [str(n) for n in range(each)] for user in range(users)}
    assert most > 1
    assert one.counts["done"] > 0
    assert two.counts["done"] > 0
    assert one.counts["retried"] == two.counts["retried"] == 0


async def test_user_who_sends_much_keeps_nobody_out(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a worker's hands could be full of one user's messages, handled one by one.

    Twice, because the second time there is less room if the first one's was not given back.
    """
    room = 110 * worker_module.OVERHEAD  # enough for one time
    monkeypatch.setattr(worker_module, "MAX_WAITING", room)
    release = asyncio.Event()
    order: dict[str, list[int]] = {"ann": [], "bob": []}

    @registry.service("orders", concurrency=2)
    async def handle(message: Message) -> None:
        if message.user_name == "ann":
            await release.wait()
        order[message.user_name].append(int(message.text))

    async with serving(broker) as worker:
        for begin in (0, 100):
            release.clear()
            for number in range(begin, begin + 100):
                await offer(broker, str(number))
            await offer(broker, str(begin), user="bob")
            await until(lambda begin=begin: order["bob"][-1:] == [begin])
            await until(lambda: worker.in_hand == 100)
            release.set()
            await until(lambda: worker.in_hand == 0)
    assert order["ann"] == list(range(200))


async def test_backlog_of_a_user_is_not_told_of_message_by_message(
    broker: NatsBroker, nats_settings: Any
) -> None:
    """Each message of a backlog got a heartbeat. With more than 1,024 messages in hand the server
    then found no moment to redeliver what a killed worker had."""
    nats_settings.WSGATEWAY_ACK_WAIT = 0.9
    release = asyncio.Event()
    attempts: list[int] = []

    @registry.service("orders", concurrency=2)
    async def handle(message: Message) -> None:
        await release.wait()
        attempts.append(message.attempt)

    said: Counter[bytes] = Counter()

    def count(_subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None) -> None:
        said[data[:4]] += 1

    for number in range(100):
        await offer(broker, str(number))
    listening = broker.connection.subscribe("$JS.ACK.>", count)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 100)
        await asyncio.sleep(3 * nats_settings.WSGATEWAY_ACK_WAIT)  # nine heartbeats
        assert said[b"+WPI"] <= 12
        assert said[b"-NAK"] <= 4 * 99  # one as each comes, and one every four heartbeats
        release.set()
        await until(lambda: len(attempts) == 100)
    listening.close()
    assert attempts == [1] * 100


async def test_graceful_stop_finishes_and_gives_back(broker: NatsBroker) -> None:
    finished: list[str] = []
    release = asyncio.Event()

    @registry.service("orders", concurrency=1)
    async def handle(message: Message) -> None:
        await release.wait()
        finished.append(message.text)

    for number in range(4):
        await offer(broker, str(number))
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 4)
        asyncio.get_running_loop().call_later(0.2, release.set)
    assert len(finished) == worker.counts["done"] < 4
    async with serving(broker) as worker:  # what was given back comes at once
        await until(lambda: len(finished) == 4)
    assert finished == ["0", "1", "2", "3"]


async def test_through_a_gateway_and_a_client(
    broker: NatsBroker, gateway_factory: Callable[..., Gateway]
) -> None:
    gateway = gateway_factory()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        if message.wants_reply:
            resolver = message.headers["Ws-Resolver"].rpartition(".")[2]
            answer = {"device": message.device, "by": resolver, "echo": message.json()}
            await message.reply(json=answer)
        else:
            raise Reject("only requests", code="no")

    async with (
        serving(broker),
        gateway.connect("orders", "ann", subprotocols=["wsgateway.v1"], query="?device=d") as v1,
        gateway.connect("orders", "ann") as raw,
    ):
        await v1.recv()
        await v1.send('{"type":"message","id":"q1","data":{"n":1},"request":true}')
        await v1.send('{"type":"message","id":"q2","data":{"n":2}}')
        got = [json.loads(await asyncio.wait_for(v1.recv(), 10)) for _ in range(4)]
        assert [m["id"] for m in got if m["type"] == "ack"] == ["q1", "q2"]
        reply, refusal = (m for m in got if m["type"] == "message")
        assert (reply["reply_to"], reply.get("error")) == ("q1", None)
        assert json.loads(reply["data"]) == {
            "device": "d",
            "by": "CookieIdentity",
            "echo": {"n": 1},
        }
        assert (refusal["reply_to"], refusal["error"]) == ("q2", "no")
        assert refusal["data"] == "only requests"
        with pytest.raises(TimeoutError):  # answers are not for raw sockets
            await asyncio.wait_for(raw.recv(), 0.3)


async def test_message_that_leaves_the_queue_unhandled_keeps_nobody_waiting(
    broker: NatsBroker,
) -> None:
    """One that expired, or that another worker had handled by then, waited for its turn for
    ever, and all later messages of its user behind it.
    """
    calls: list[str] = []
    go_on = asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        calls.append(message.text)
        await go_on.wait()

    for text in ("first", "gone", "last"):
        await offer(broker, text)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 3)
        stream = broker.subjects.queue("orders")
        await broker.jetstream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": 2})
        go_on.set()
        await until(lambda: worker.counts["done"] == 2)
        assert worker.in_hand == 0
        await broker.jetstream.api(f"STREAM.PURGE.{stream}")
    assert calls == ["first", "last"]


async def test_last_message_in_hand_that_leaves_the_queue_is_forgotten(broker: NatsBroker) -> None:
    go_on = asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await go_on.wait()

    for text in ("first", "gone"):
        await offer(broker, text)
    async with serving(broker) as worker:
        await until(lambda: worker.in_hand == 2)
        stream = broker.subjects.queue("orders")
        await broker.jetstream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": 2})
        go_on.set()
        await until(lambda: worker.in_hand == 0)
        assert worker.counts["done"] == 1
