"""No message stops a service: whatever is in it, and whatever its handler raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.workers import answers, no_services, offer, serving
from tests.support import until
from wsgateway import Message, Reject, Retry, RetryPolicy, counters
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job
from wsgateway.exceptions import BrokerUnavailable, QueueFull
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import deadletters, handling, registry
from wsgateway.services.deadletters import DeadLetter

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")

FAST = RetryPolicy(attempts=2, initial=0.01, cap=0.01)


class Unshowable(Exception):
    """Cannot be shown, not even by ``repr``."""

    def __str__(self) -> str:
        raise SystemExit("from __str__")

    __repr__ = __str__


class Unlike(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise OSError("is it one?")


class Policied(Exception, metaclass=Unlike):
    """Even to ask whether an exception is one of these raises."""


def chain(length: int) -> Exception:
    error = ValueError("first")
    for _ in range(length):
        following = ValueError("next")
        following.__cause__ = error
        error = following
    return error


POISONS: dict[str, Callable[[], BaseException]] = {
    "lone surrogate": lambda: ValueError("\ud800"),
    "600 kB of text": lambda: ValueError("x" * 600_000),
    "600 kB that must be escaped": lambda: ValueError("\U0001f600" * 150_000),
    "line breaks": lambda: ValueError("a\r\nNats-Msg-Id: 7\r\n\r\n"),
    "str raises SystemExit": Unshowable,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": StopIteration,
    "group": lambda: BaseExceptionGroup("all", [SystemExit(1), ValueError("\udfff")]),
    "long chain": lambda: chain(3000),
    "retry never": lambda: Retry(after=float("nan")),
    "retry for ever": lambda: Retry("\ud800", after=-float("inf")),
    "retry after text": lambda: Retry(after="soon"),  # type: ignore[arg-type]
}


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log nothing: pytest-xdist cannot pass a captured log on that holds lone surrogates."""
    monkeypatch.setattr(logging.getLogger("wsgateway.services"), "disabled", True)


async def letters(broker: NatsBroker) -> list[DeadLetter]:
    return [letter async for letter in deadletters.letters(broker)]


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_whatever_a_handler_raises_ends_in_the_dead_letters(
    broker: NatsBroker, name: str, kind: str
) -> None:
    """Text that no header holds had the message run ten times a second for ever, and held its
    user's others back; SystemExit ended the worker; StopIteration left its handler's slot taken.
    """
    calls: list[str] = []

    def work(message: Any) -> None:
        calls.append(message.text)
        if message.text == "poison":
            raise POISONS[name]()

    async def work_async(message: Message) -> None:
        work(message)

    registry.service("orders", retry={BaseException: FAST})(work_async if kind == "async" else work)
    await offer(broker, "poison", Ws_Client_Id="p1")
    await offer(broker, "next")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert calls == ["poison", "poison", "next"]
    (letter,) = await letters(broker)
    assert (letter.payload, letter.attempts, letter.shortened) == (b"poison", 2, ())
    assert letter.error
    assert letter.traceback
    assert [(s.reply_to, s.error) for s in await answers(broker)] == [("p1", "failed")]


async def test_coroutine_that_nobody_awaits_is_a_failure(broker: NatsBroker) -> None:
    """The message was acknowledged although nothing had handled it."""

    async def work(message: Message) -> None:
        """Do nothing."""

    registry.service("orders", retry=FAST)(lambda message: work(message))
    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    assert worker.counts == {"retried": 1, "dead-lettered": 1}


async def test_generator_that_nobody_runs_is_a_failure(broker: NatsBroker) -> None:
    """The message was acknowledged although nothing had handled it."""

    def work(message: Message) -> Iterator[None]:
        yield

    registry.service("orders", retry=FAST)(lambda message: work(message))
    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    assert worker.counts == {"retried": 1, "dead-lettered": 1}


async def test_handler_cannot_change_the_headers(broker: NatsBroker) -> None:
    """What it wrote there went into the dead letter; if no header can hold it, setting the message
    aside failed for ever, and its user's other messages waited."""
    handled: list[str] = []

    @registry.service("orders", retry=FAST)
    async def handle(message: Message) -> None:
        if message.text == "bad":
            message.headers["x-try"] = 7  # type: ignore[index]
        handled.append(message.text)

    await offer(broker, "bad")
    await offer(broker, "good")
    async with serving(broker):
        await until(lambda: handled == ["good"])
    (letter,) = await letters(broker)
    assert "TypeError" in letter.error


async def test_policy_that_cannot_be_applied_does_not_hold_the_message(broker: NatsBroker) -> None:
    @registry.service("orders", retry={Policied: FAST, OSError: FAST})
    async def handle(message: Message) -> None:
        raise ValueError("x")

    await offer(broker, "poison")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["retried"] == 1)


@pytest.mark.parametrize(
    ("reason", "code", "told"),
    [
        ("\ud800", "no", ("no", b"\\ud800")),
        ("why", "a\r\nb", ("a_b", b"why")),
        (None, "é", ("é", b"None")),
    ],
)
async def test_refusal_reaches_its_client_whatever_its_text(
    broker: NatsBroker, reason: Any, code: str, told: tuple[str, bytes]
) -> None:
    r"""A client could send the text itself, as JSON "\ud800"; each ran for ever."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        if message.text == "bad":
            raise Reject(reason, code=code)

    await offer(broker, "bad", Ws_Client_Id="r1")
    await offer(broker, "next")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert worker.counts == {"rejected": 1, "done": 1}
    assert [(s.error, s.payload) for s in await answers(broker)] == [told]


async def test_refusal_after_a_reply_is_told_too(broker: NatsBroker) -> None:
    """Both had the id of the message's first reply, so the refusal was taken for a duplicate."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(text="begun")
        raise Reject("no", code="no")

    await offer(broker, "x", Ws_Client_Id="r1")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["rejected"] == 1)
    assert [s.payload for s in await answers(broker)] == [b"begun", b"no"]


async def publish_raw(broker: NatsBroker, subject: str, payload: bytes, headers: bytes) -> None:
    """Publish as a program in any language can."""
    reply = await broker.connection.request(subject, payload, headers)
    assert b'"seq"' in reply.data


def broken(message: Any) -> None:
    if message.bytes != b"next":
        raise ValueError("broken")


async def after_poison(broker: NatsBroker, least: int = 1) -> DeadLetter:
    """Serve until the poison is set aside and the next message is done; return the letter."""
    registry.service("orders", retry=FAST)(broken)
    await offer(broker, "next")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1 and worker.counts["dead-lettered"] == 1)
    (letter,) = await letters(broker)
    return letter


@pytest.mark.parametrize(
    "headers",
    [
        b"NATS/1.0 503 No Responders\r\nX: y\r\n\r\n",
        b"NATS/1.0 404\r\nX: y\r\n\r\n",
        b"NATS/1.0\r\nX: y\r\nWs-Client-Id: a\nb\r\n: nameless\r\n\r\n",
        b"NATS/1.0\r\nX: y\r\nWs-Frame: nonsense\r\n\r\n",
        b"NATS/1.0\r\nX: y\r\nWs-Traceback: mine\r\n\xff: \xfe\r\n\r\n",
    ],
)
async def test_strange_headers_do_not_stop_the_queue(broker: NatsBroker, headers: bytes) -> None:
    """A status line was taken for the end of a pull, and the message came for ever."""
    await publish_raw(broker, broker.subjects.send(Inbox("orders", "ann")), b"poison", headers)
    letter = await after_poison(broker)
    assert letter.payload == b"poison"
    assert letter.headers["X"] == "y"
    assert letter.traceback != "mine"


async def test_message_on_a_subject_that_names_nobody_is_set_aside(broker: NatsBroker) -> None:
    """It was dropped, with a line in the log."""
    subject = f"{broker.subjects.prefix}.send.orders.an%"
    await publish_raw(broker, subject, b"poison", b"")
    letter = await after_poison(broker)
    assert (letter.payload, letter.inbox) == (b"poison", Inbox("orders", "an%"))
    assert "an%" in letter.error


async def test_headers_near_the_servers_limit_make_room_for_ours(broker: NatsBroker) -> None:
    """NATS stores 64 kB of headers: the original ones and the traceback exceeded it for ever."""
    inbox = Inbox("orders", "ann")
    big = {"X-Big": "b" * 58_000, "X-Small": "s" * 6_000}
    await broker.jetstream.publish(broker.subjects.send(inbox), b"poison", big)
    letter = await after_poison(broker)
    assert letter.headers == {"X-Small": "s" * 6_000}
    assert letter.shortened == ("headers",)
    assert "ValueError: broken" in letter.error
    assert "in broken" in letter.traceback


@pytest.mark.parametrize(("spare", "shortened"), [(1_000, ()), (100, ("payload",))])
async def test_payload_near_the_servers_limit_makes_room_for_headers(
    broker: NatsBroker,
    spare: int,
    shortened: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A part of the payload was gone, and neither the log nor a metric said so."""
    before = counters.service("orders").shortened
    payload = b"p" * (broker.connection.max_payload - spare)
    await broker.jetstream.publish(broker.subjects.send(Inbox("orders", "ann")), payload)
    letter = await after_poison(broker)
    assert letter.shortened == shortened
    assert payload.startswith(letter.payload)
    assert len(payload) - len(letter.payload) < 1_000
    assert letter.error.startswith("ValueError")
    assert counters.service("orders").shortened == before + len(shortened)
    said = [each for each in caplog.records if "lacks a part of its message" in each.getMessage()]
    assert [each.levelname for each in said] == ["ERROR"] * len(shortened)
    if shortened:
        with pytest.raises(deadletters.DeadLetterShortened, match=r"first \d+ bytes"):
            await deadletters.retry(broker, letter)
    else:
        assert letter.payload == payload
        await deadletters.retry(broker, letter)


async def test_dead_letter_stream_with_a_smaller_limit_gets_what_it_takes(
    broker: NatsBroker,
) -> None:
    await change_stream(broker, "dead", max_msg_size=20_000)
    payload = b"p" * 100_000
    await broker.jetstream.publish(broker.subjects.send(Inbox("orders", "ann")), payload)
    letter = await after_poison(broker)
    assert letter.shortened == ("payload",)
    assert len(letter.payload) > 8_000


async def change_stream(broker: NatsBroker, kind: str, **changes: Any) -> None:
    name = broker.subjects.stream(kind)
    info = await broker.jetstream.api(f"STREAM.INFO.{name}")
    await broker.jetstream.api(f"STREAM.UPDATE.{name}", {**info["config"], **changes})


async def test_full_dead_letter_stream_holds_back_that_user_only(
    broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler ran again and again, once a second, until there was room."""
    calls: list[str] = []

    @registry.service("orders", retry=RetryPolicy(attempts=1))
    async def handle(message: Message) -> None:
        calls.append(message.text)
        if message.text == "poison":
            raise ValueError("no")

    await broker.jetstream.publish(broker.subjects.dead(Inbox("other", "x")), b"fills it")
    await change_stream(broker, "dead", discard="new", max_msgs=1)
    await offer(broker, "poison")
    await offer(broker, "ann waits")
    async with serving(broker) as worker:
        await until(lambda: "waits for the broker (" in caplog.text)
        for number in range(20):
            await offer(broker, str(number), user="bob")
        await until(lambda: worker.counts["done"] == 20)
        assert calls.count("poison") == 1
        assert worker.counts["dead-lettered"] == 0
        await change_stream(broker, "dead", max_msgs=-1)
        await until(lambda: worker.counts["done"] == 21)
    assert calls.count("poison") == 1
    assert [letter.payload for letter in await letters(broker)] == [b"fills it", b"poison"]


async def test_dead_letter_is_stored_once_while_its_client_cannot_be_told(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt to tell the client stored it again; after the duplicate window, twice."""
    stored: list[int] = []
    failing = [QueueFull("full"), QueueFull("full")]
    set_aside, publish = deadletters.set_aside, broker.publish

    async def counting(broker: NatsBroker, job: Job, error: BaseException) -> None:
        stored.append(job.sequence)
        await set_aside(broker, job, error)

    async def unwilling(*args: Any, **options: Any) -> Any:
        if failing:
            raise failing.pop()
        return await publish(*args, **options)

    monkeypatch.setattr(handling, "set_aside", counting)
    monkeypatch.setattr(broker, "publish", unwilling)

    @registry.service("orders", retry=RetryPolicy(attempts=1))
    async def handle(message: Message) -> None:
        raise ValueError("no")

    await offer(broker, "poison", Ws_Client_Id="c1")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    assert not failing
    assert stored == [1]


@pytest.mark.parametrize("error", [QueueFull("full"), BrokerUnavailable("away")])
async def test_trouble_of_the_broker_costs_no_try(broker: NatsBroker, error: Exception) -> None:
    """A full inbox stream sent every client's message to the dead letters."""
    calls: list[int] = []

    @registry.service("orders", retry=RetryPolicy(attempts=2, initial=0.01, cap=0.01))
    async def handle(message: Message) -> None:
        calls.append(message.attempt)
        if len(calls) < 6:
            raise error

    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert len(calls) == 6
    assert await letters(broker) == []


async def test_traceback_is_logged_at_the_first_try_and_the_last(
    broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """It came with the last only: minutes later, or never where a later try succeeded."""
    caplog.set_level(logging.WARNING, "wsgateway.services")

    @registry.service("orders", retry=RetryPolicy(attempts=4, initial=0.01, cap=0.01))
    async def handle(message: Message) -> None:
        raise ValueError("why")

    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    found = [(r.levelname, r.exc_info is not None) for r in caplog.records if "try" in r.message]
    assert found == [
        ("WARNING", True),
        ("WARNING", False),
        ("WARNING", False),
        ("ERROR", True),
    ]


async def test_another_error_at_a_later_try_is_logged_with_its_traceback(
    broker: NatsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """It was one line, which did not say where a second fault was."""
    caplog.set_level(logging.WARNING, "wsgateway.services")

    @registry.service("orders", retry=RetryPolicy(attempts=5, initial=0.01, cap=0.01))
    async def handle(message: Message) -> None:
        if message.attempt < 3:
            raise ValueError("why")
        raise KeyError("missing")

    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
    found = [r.exc_info is not None for r in caplog.records if "try" in r.message]
    assert found == [True, False, True, False, True]


async def make_again(broker: NatsBroker, kind: str) -> None:
    name = broker.subjects.queue("orders") if kind == "send" else broker.subjects.stream(kind)
    config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
    await broker.jetstream.api(f"STREAM.DELETE.{name}")
    await broker.jetstream.api(f"STREAM.CREATE.{name}", config)


async def test_replies_survive_that_the_queue_is_made_again(broker: NatsBroker) -> None:
    """Ids of replies came from offsets, which a new stream begins again: the reply to its first
    message was taken for a duplicate of an earlier one, and was lost.
    """

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(text=message.text)

    for number in (1, 2):
        await offer(broker, str(number))
        async with serving(broker) as worker:
            await until(lambda w=worker: w.counts["done"] == 1)
        await make_again(broker, "send")
    assert [s.payload for s in await answers(broker)] == [b"1", b"2"]


@pytest.mark.parametrize("kind", ["send", "dead"])
async def test_dead_letters_and_their_retries_survive_new_streams(
    broker: NatsBroker, kind: str
) -> None:
    """Their ids came from offsets, too: one set aside, or put back, after a stream was recreated
    was a duplicate of another message.
    """
    registry.service("orders", retry=RetryPolicy(attempts=1))(broken)
    for payload in (b"poison 1", b"poison 2"):
        await offer(broker, payload)
        for _ in ("first", "put back"):
            async with serving(broker) as worker:
                await until(lambda w=worker: w.counts["dead-lettered"] == 1)
            (letter,) = await letters(broker)
            assert letter.payload == payload
            await deadletters.retry(broker, letter)
        await broker.jetstream.api(f"STREAM.PURGE.{broker.subjects.queue('orders')}")
        await make_again(broker, kind)
