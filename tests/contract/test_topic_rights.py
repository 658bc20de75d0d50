"""Who may read and write topics, on every kind of broker, and rights that end everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core import signing
from django.db import InterfaceError, OperationalError

import wsgateway
from tests.support import until, within
from tests.troubleshooting import Symptom
from wsgateway import declared, topics
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import BrokerUnavailable, NameRefused, TopicsUnknown
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.topics import marks
from wsgateway.topics.marks import INBOX
from wsgateway.topics.rights import Rights

ANN, BOB = Identity("chat", "ann"), Identity("chat", "bob")
ROOM = Topic("room", "42")
NAN = b'["room", null, null, null, NaN, false]'
SECRET = Topic("room", "of mice & men.*")


class Subscription:
    """What a gateway has for each topic that a socket reads."""

    def __init__(self, identity: Identity, topic: Topic) -> None:
        self.identity = identity
        self.topic = topic
        self.changes: list[str | None] = []

    is_reading = True

    def change_access(self, access: str | None) -> None:
        self.changes.append(access)


class Rules:
    """What `allow` says, and what it was asked."""

    def __init__(self) -> None:
        self.says: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[str, str]] = []
        self.while_asked: Callable[[], Any] | None = None

    async def allow(self, identity: Identity, name: str) -> Any:
        self.asked.append((identity.user, name))
        answer = self.says.get((identity.user, name))
        if self.while_asked is not None:
            before, self.while_asked = self.while_asked, None
            await before()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Rules:
    """Declares the topics of ``room``, which nobody may read."""
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    monkeypatch.setattr(marks, "LEEWAY", 0.0)
    found = Rules()
    wsgateway.topic("room")(found.allow)
    return found


@pytest.fixture
async def rights(rules: Rules, brokers: Any, broker: Broker) -> AsyncIterator[Rights]:
    """Those of one gateway."""
    found = Rights(broker)
    yield found
    found.close()


@pytest.fixture
async def others(rules: Rules, brokers: Any, other: Broker) -> AsyncIterator[Rights]:
    """Those of another gateway."""
    found = Rights(other)
    yield found
    found.close()


async def test_allow_decides(rights: Rights, rules: Rules) -> None:
    rules.says = {("ann", "42"): "read", ("bob", "42"): "write", ("ann", SECRET.name): "read"}
    assert await rights.access(ANN, ROOM) == "read"
    assert await rights.access(BOB, ROOM) == "write"
    assert await rights.access(ANN, SECRET) == "read"
    assert await rights.access(BOB, SECRET) is None


async def test_topic_that_nobody_declares_is_refused_unasked(rights: Rights, rules: Rules) -> None:
    given = topics.token("other", "42", user="ann")
    assert await rights.access(ANN, Topic("other", "42"), given) is None
    assert rules.asked == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (RuntimeError("database is away"), "refused topic 'room.42': its allow failed"),
        (asyncio.CancelledError(), "refused topic 'room.42': its allow failed"),
        (SystemExit(1), "refused topic 'room.42': its allow failed"),
        (True, "returned True. Return 'read', 'write' or None"),
        ("admin", "returned 'admin'"),
        (["write"], "returned a value of type list"),
    ],
)
async def test_wrong_answer_refuses_and_is_logged(
    answer: Any, text: str, rights: Rights, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    rules.says = {("ann", "42"): answer}
    assert await rights.access(ANN, ROOM) is None
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert text in record.getMessage()
    assert (record.topic, record.user) == ("room.42", "ann")  # type: ignore[attr-defined]


@pytest.mark.troubleshooting("refused topic … to …: … returned None")
async def test_log_says_which_function_refused(
    symptom: Symptom, rights: Rights, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """The client reads the same as for a topic that does not exist, and the log had nothing."""
    with caplog.at_level(logging.INFO, "wsgateway"):
        assert await rights.access(ANN, ROOM) is None
    symptom.must_show_in(caplog.text)
    assert f"refused topic 'room.42' to 'ann': {__name__}.Rules.allow returned" in caplog.text


async def test_database_that_is_away_decides_nothing(
    rights: Rights, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a refusal, after which no client asks again."""
    rules.says = {("ann", "42"): OperationalError("could not connect")}
    with pytest.raises(OperationalError):
        await rights.access(ANN, ROOM)
    assert "refused topic 'room.42': its allow failed" in caplog.text


async def test_recheck_ends_a_right_if_the_database_is_away(rights: Rights, rules: Rules) -> None:
    rules.says = {("ann", "42"): "read"}
    holder = Subscription(ANN, ROOM)
    assert await rights.acquire(holder) == "read"
    rules.says = {("ann", "42"): InterfaceError("connection already closed")}
    await topics.arecheck("room", "42")
    await until(lambda: holder.changes == [None], what="the right has ended")


@pytest.mark.parametrize("answer", [None, False, "", 0])
async def test_nothing_refuses_and_is_not_a_mistake(
    answer: Any, rights: Rights, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    rules.says = {("ann", "42"): answer}
    assert await rights.access(ANN, ROOM) is None
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


async def test_right_to_topics_that_nobody_declares_cannot_end(rights: Rights) -> None:
    """A misspelt name ended nothing, and the caller believed that the right was gone."""
    for ends in (topics.arevoke, topics.arecheck):
        with pytest.raises(TopicsUnknown, match="'rom' has no topics; did you mean 'room'"):
            await ends("rom", "42", user="ann")


async def test_name_that_no_database_takes_is_refused_unasked(rights: Rights, rules: Rules) -> None:
    assert await rights.access(ANN, Topic("room", "4\x002")) is None
    assert rules.asked == []


async def test_synchronous_allow_runs_in_a_thread(rights: Rights, rules: Rules) -> None:
    def allow(identity: Identity, name: str) -> str | None:
        return "read" if threading.current_thread() is not threading.main_thread() else None

    wsgateway.topic("dashboard")(allow)
    assert await rights.access(ANN, Topic("dashboard", "sales")) == "read"


# -- tokens ------------------------------------------------------------------------------


async def test_token_gives_a_right_and_nobody_is_asked(rights: Rights, rules: Rules) -> None:
    given = topics.token("room", "42", user="ann", access="write")
    assert await rights.access(ANN, ROOM, given) == "write"
    assert await rights.access(Identity("orders", "ann"), ROOM, given) == "write"
    assert rules.asked == []


async def test_token_is_good_for_one_user_and_topic(rights: Rights, rules: Rules) -> None:
    given = topics.token("room", "42", user=("orders", "ann"))
    assert await rights.access(ANN, ROOM, given) is None
    assert await rights.access(Identity("orders", "bob"), ROOM, given) is None
    assert await rights.access(Identity("orders", "ann"), Topic("room", "43"), given) is None
    assert await rights.access(Identity("orders", "ann"), ROOM, given) == "read"


async def test_without_a_valid_token_allow_decides(
    rights: Rights, rules: Rules, settings: Any
) -> None:
    given = topics.token("room", "42", user="ann", access="write")
    late = topics.token("room", "42", user="ann", access="write", max_age=0.001)
    await asyncio.sleep(0.002)
    forged = signing.dumps(["room", "42", "ann", None, "write", time.time(), 9e9], salt="other")
    rules.says = {("ann", "42"): "read"}
    for bad in ("", "x", given[:-1], f"{given}x", given.upper(), forged, late):
        assert await rights.access(ANN, ROOM, bad) == "read"
    settings.WSGATEWAY_TOPIC_TOKEN_MAX_AGE = 0.001  # lowered since the token was made
    assert await rights.access(ANN, ROOM, given) == "read"


def test_token_that_cannot_be_meant_is_refused(rules: Rules) -> None:
    with pytest.raises(ValueError, match=r"max_age is 301 s, but must be .* at most 300"):
        topics.token("room", "42", user="ann", max_age=301)
    with pytest.raises(ValueError, match="access is 'admin'"):
        topics.token("room", "42", user="ann", access="admin")  # type: ignore[arg-type]
    with pytest.raises(NameRefused):
        topics.token("room", "", user="ann")
    with pytest.raises(TypeError, match=r"user is int; give a name, a Django user"):
        topics.token("room", "42", user=7)
    with pytest.raises(TypeError, match="a visitor who is not logged in"):
        topics.token("room", "42", user=AnonymousUser())
    with pytest.raises(NameRefused, match=r"name 42 is a number, not text; pass str\(42\)"):
        topics.token("room", 42, user="ann")  # type: ignore[arg-type]


async def test_synchronous_call_in_a_loop_names_its_twin(rules: Rules) -> None:
    for call in (topics.revoke, topics.recheck, topics.history, topics.readers):
        with pytest.raises(RuntimeError, match=f"use `await a{call.__name__}"):
            call("room", "42")


async def test_token_never_outlives_the_memory_of_what_is_revoked(
    rights: Rights, rules: Rules, settings: Any
) -> None:
    given = topics.token("room", "42", user="ann")
    settings.WSGATEWAY_INBOX_MAX_AGE = 60.0
    with pytest.raises(ValueError, match=r"max_age is 31 s, but must be .* at most 30"):
        topics.token("room", "42", user="ann", max_age=31)
    assert await rights.access(ANN, ROOM, given) == "read"


# -- rights that end ---------------------------------------------------------------------


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a function of `wsgateway.topics`: in a thread, or its asynchronous twin."""

    async def call(name: str, *args: Any, **options: Any) -> None:
        if request.param == "sync":
            await asyncio.to_thread(getattr(topics, name), *args, **options)
        else:
            await getattr(topics, f"a{name}")(*args, **options)

    return call


async def test_revoked_right_ends_on_every_gateway_within_a_second(
    rights: Rights, others: Rights, rules: Rules, call: Any
) -> None:
    numbers = iter("123")

    async def attempt() -> float:
        topic = Topic("room", next(numbers))
        rules.says = {("ann", topic.name): "read"}
        here, there = Subscription(ANN, topic), Subscription(ANN, topic)
        assert await rights.acquire(here) == await others.acquire(there) == "read"
        begin = time.monotonic()
        await call("revoke", topic.service, topic.name, user="ann")
        await until(lambda: here.changes == there.changes == [None], what="both have ended")
        return time.monotonic() - begin

    await within(1.0, attempt)


async def test_revoked_rights_of_a_user_and_of_everybody(
    rights: Rights, others: Rights, rules: Rules, call: Any
) -> None:
    rules.says = {("ann", "42"): "write", ("bob", "42"): "read"}
    here, there = Subscription(ANN, ROOM), Subscription(Identity("orders", "ann"), ROOM)
    bob = Subscription(BOB, ROOM)
    by_token = Subscription(ANN, SECRET)
    given = topics.token("room", SECRET.name, user="ann")
    assert await rights.acquire(here) == "write"
    assert await others.acquire(there) == "write"
    assert await others.acquire(bob) == "read"
    assert await others.acquire(by_token, given) == "read"
    await call("revoke", "room", "42", user="ann")
    await until(lambda: here.changes == there.changes == [None], what="ann's subscriptions ended")
    await call("revoke", "room", None, user=get_user_model()(username="ann"))
    await until(lambda: by_token.changes == [None], what="all of ann's have")
    assert bob.changes == []
    await call("revoke", "room", "42")
    await until(lambda: bob.changes == [None], what="everybody's have")
    assert here.changes == there.changes == [None]


async def test_pair_names_the_sockets_of_one_service(rights: Rights, rules: Rules) -> None:
    rules.says = {("ann", "42"): "write"}
    chat, orders = Subscription(ANN, ROOM), Subscription(Identity("orders", "ann"), ROOM)
    await rights.acquire(chat)
    await rights.acquire(orders)
    await topics.arevoke("room", "42", user=Inbox("chat", "ann"))
    await until(lambda: chat.changes == [None], what="it has ended")
    await topics.arevoke("room", "42", user=("orders", "ann"))
    await until(lambda: orders.changes == [None], what="so has the other")


async def test_recheck_ends_and_changes_what_allow_does_not_say_any_more(
    rights: Rights, others: Rights, rules: Rules, call: Any
) -> None:
    rules.says = {("ann", "42"): "write", ("bob", "42"): "write", ("eve", "42"): "write"}
    ann, bob = Subscription(ANN, ROOM), Subscription(BOB, ROOM)
    eve = Subscription(Identity("chat", "eve"), ROOM)
    for each in (ann, bob, eve):
        await others.acquire(each)
    rules.says = {("bob", "42"): "read", ("eve", "42"): "write"}
    rules.asked.clear()
    await call("recheck", "room", "42")
    await until(lambda: (ann.changes, bob.changes) == ([None], ["read"]), what="both were told")
    await until(lambda: len(rules.asked) == 3, what="everybody was asked about")
    assert eve.changes == []


async def test_released_subscription_hears_nothing(rights: Rights, rules: Rules) -> None:
    rules.says = {("ann", "42"): "write", ("bob", "42"): "write"}
    gone, there = Subscription(ANN, ROOM), Subscription(BOB, ROOM)
    await rights.acquire(gone)
    await rights.acquire(there)
    rights.release(gone)
    rights.release(gone)
    await topics.arevoke("room", "42")
    await until(lambda: there.changes == [None], what="the other has ended")
    assert gone.changes == []


async def test_revoke_beats_tokens_on_gateways_that_start_later(
    rights: Rights, rules: Rules, brokers: Any
) -> None:
    given = topics.token("room", "42", user="ann")
    assert await rights.access(ANN, ROOM, given) == "read"
    await topics.arevoke("room", "42", user="ann")
    later = Rights(await brokers.open())
    assert await later.access(ANN, ROOM, given) is None
    new = topics.token("room", "42", user="ann")
    assert await later.access(ANN, ROOM, new) == "read"
    later.close()


async def test_revoked_while_allow_is_asked(rights: Rights, rules: Rules, broker: Broker) -> None:
    """Its answer may be from before the right ended, and nothing would end the subscription."""
    rules.says = {("ann", "42"): "read"}
    watched = Subscription(BOB, ROOM)
    rules.says["bob", "42"] = "read"
    await rights.acquire(watched)

    async def revoke() -> None:
        rules.says = {}
        await topics.arevoke("room", "42")
        await until(lambda: watched.changes == [None], what="it came here")

    rules.while_asked = revoke
    assert await rights.acquire(Subscription(ANN, ROOM)) is None
    assert rules.asked[-2:] == [("ann", "42")] * 2


@pytest.mark.parametrize("outcome", ["write", RuntimeError("away")])
async def test_allow_that_swallows_its_cancellation_gives_nothing(
    rights: Rights, rules: Rules, outcome: Any
) -> None:
    """A client that unsubscribed while it was asked kept its right until the gateway stopped."""
    asked = asyncio.Event()

    async def wait() -> None:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    rules.says["ann", "42"] = outcome
    rules.while_asked = wait
    asking = asyncio.create_task(rights.acquire(Subscription(ANN, ROOM)))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not rights.holders_of(ROOM)


async def test_replaced_stream_voids_tokens_and_asks_about_everybody(
    rights: Rights, rules: Rules, brokers: Any, broker: Broker
) -> None:
    """What was revoked is gone with it."""
    rules.says = {("ann", "42"): "write"}
    ann = Subscription(ANN, ROOM)
    await rights.acquire(ann)
    await topics.arevoke("room", "43")
    given = topics.token("room", "42", user="ann")
    rules.says = {}
    await brokers.renew(broker)
    await topics.arevoke("room", "43")  # so that it is noticed at once
    await until(lambda: ann.changes == [None], 20, what="it was asked about")
    assert await rights.access(ANN, ROOM, given) is None


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_stream_that_has_lost_its_end_hides_nothing_that_is_revoked(
    rights: Rights, rules: Rules, brokers: Any, broker: Broker
) -> None:
    """Marks had offsets that had been read before, so the gateway never looked at them.

    On NATS, that is after a server has lost power, so gateways reconnect.
    """
    rules.says = {("ann", "42"): "read", ("bob", "42"): "read"}
    bob, again, ann = Subscription(BOB, ROOM), Subscription(BOB, ROOM), Subscription(ANN, ROOM)
    await rights.acquire(bob)
    backup = await brokers.back_up(broker)
    await topics.arevoke("room", "42", user="bob")
    await until(lambda: bob.changes == [None], what="it has read this one")
    await rights.acquire(again)
    await rights.acquire(ann)
    await brokers.restore(broker, backup)
    await topics.arevoke("room", "42", user="ann")
    rights.reread()
    await until(lambda: ann.changes == [None], what="it has read the new one, too")
    assert again.changes == []


async def test_full_inbox_voids_tokens_older_than_what_is_kept(
    rules: Rules, brokers: Any, settings: Any
) -> None:
    """The mark that would void it had to go for others."""
    settings.WSGATEWAY_INBOX_MAX_MESSAGES = 2
    broker = await brokers.open()
    given = topics.token("room", "42", user="ann")
    for name in ("42", "43", "44"):
        await topics.arevoke("room", name)
    rights = Rights(broker)
    assert await rights.access(ANN, ROOM, given) is None
    assert await rights.access(ANN, ROOM, topics.token("room", "42", user="ann")) == "read"
    rights.close()


async def test_more_marks_than_are_kept_while_a_gateway_is_away_ask_about_everybody(
    rules: Rules, brokers: Any, settings: Any
) -> None:
    """Those that had to go before it was connected again revoked nothing there."""
    settings.WSGATEWAY_INBOX_MAX_MESSAGES = 2
    broker = await brokers.open()
    rules.says = {("ann", "42"): "read"}
    rights, ann = Rights(broker), Subscription(ANN, ROOM)
    await rights.acquire(ann)
    given = topics.token("room", "42", user="ann")
    rights.close()  # it hears nothing, as while it is not connected
    rules.says = {}
    for name in ("42", "43", "44"):
        await topics.arevoke("room", name)
    rights.open()
    await until(lambda: ann.changes == [None], what="its right ends")
    assert await rights.access(ANN, ROOM, given) is None
    rights.close()


async def test_what_is_no_mark_is_skipped(rights: Rights, rules: Rules, broker: Broker) -> None:
    rules.says = {("ann", "42"): "read"}
    ann = Subscription(ANN, ROOM)
    await rights.acquire(ann)
    for payload in (
        b"",
        b"\xff",
        b"[]",
        b"7",
        b'["room", 1, null, null, 0, false]',
        NAN,
        b"[" * 9000,
    ):
        await broker.publish(INBOX, payload)
    await topics.arevoke("room", "42")
    await until(lambda: ann.changes == [None], what="the right has ended")


async def test_nobody_gets_a_right_before_it_is_known_what_is_revoked(
    rules: Rules, brokers: Any, settings: Any
) -> None:
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.1
    rules.says = {("ann", "42"): "read"}
    rights = Rights(brokers.new())  # not open
    with pytest.raises(BrokerUnavailable, match="which rights to topics are revoked"):
        await rights.access(ANN, ROOM)
    rights.close()
