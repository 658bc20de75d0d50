"""The outbox: sent if and only if the transaction commits; once, in order, whatever dies."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands
from django.db import transaction

from tests.integration.test_publish import read
from tests.support import ROOT, Process, running, site_env, wait_for
from wsgateway import declared, send_topic_on_commit, topic, topics
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import (
    BrokerUnavailable,
    MessageTooBig,
    NameRefused,
    QueueFull,
)
from wsgateway.outbox import enqueue, enqueue_topic
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.relay import Relay


def got(user: str) -> list[str | bytes]:
    return [stored.frame.data for stored in asyncio.run(read("orders", user))]


@pytest.mark.django_db(transaction=True)
def test_rows_of_committed_transactions_are_relayed_in_order(nats_settings: Any) -> None:
    for number in range(5):
        with transaction.atomic():
            enqueue("orders", "ann", text=f"a{number}")
            enqueue("orders", "bob", json={"n": number})
    enqueue("orders", "ann", bytes=b"\xff", headers={"traceparent": "00-1"}, ttl=60)
    with transaction.atomic():
        enqueue("orders", "ann", text="never")
        transaction.set_rollback(True)
    call_command("runoutbox", "--once")
    assert got("ann") == ["a0", "a1", "a2", "a3", "a4", b"\xff"]
    assert got("bob") == [f'{{"n":{number}}}' for number in range(5)]
    assert not OutboxMessage.objects.exists()


def declare_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare the topics of `room`, and no others."""
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(lambda identity, name: None)


@pytest.mark.django_db(transaction=True)
def test_topics_are_relayed_in_order_beside_users(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_room(monkeypatch)
    for number in range(3):
        enqueue_topic("room", "42", json=number)
        enqueue("orders", "42", text=f"u{number}")
    call_command("runoutbox", "--once")
    with transaction.atomic():
        send_topic_on_commit("room", "42", json=3)
    with transaction.atomic():
        send_topic_on_commit("room", "42", json="never")
        transaction.set_rollback(True)
    assert [message.json() for message in topics.history("room", "42").messages] == [0, 1, 2, 3]
    assert got("42") == ["u0", "u1", "u2"]
    assert not OutboxMessage.objects.exists()
    with pytest.raises(TypeError):
        enqueue_topic("room", "42", text="a", msg_id="x")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broker", ["memory", "nats"])
def test_row_for_the_other_kind_of_service_waits_until_there_is_one(
    broker: str, request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If clients may name any service, a topic that nobody had declared yet became a user, and its
    messages went to an inbox that nobody reads."""
    if broker == "nats":
        request.getfixturevalue("nats_settings")
    settings.WSGATEWAY_SERVICES = ["*"]
    monkeypatch.setattr(declared, "topics", {})
    enqueue_topic("room", "42", text="a")
    with pytest.raises(CommandError, match="'room' has no topics; declare them with @topic"):
        call_command("runoutbox", "--once")
    runtime.reset()
    declare_room(monkeypatch)
    enqueue("room", "43", text="nobody is called 43")
    with pytest.raises(CommandError, match="'room' has topics, not users"):
        call_command("runoutbox", "--once")
    assert [message.data for message in topics.history("room", "42").messages] == ["a"]
    assert topics.history("room", "43").messages == []
    assert OutboxMessage.objects.get().user == "43"


@pytest.mark.django_db(transaction=True)
def test_row_that_does_not_say_what_it_names_goes_where_the_service_says(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such rows come from an earlier version, or from another program."""
    declare_room(monkeypatch)
    for service in ("room", "orders"):
        OutboxMessage.objects.create(service=service, user="42", payload=b"x", kind="text")
    call_command("runoutbox", "--once")
    assert [message.data for message in topics.history("room", "42").messages] == ["x"]
    assert got("42") == ["x"]


@pytest.mark.django_db(transaction=True)
def test_mistakes_are_refused_when_written(nats_settings: Any) -> None:
    with pytest.raises(TypeError):
        enqueue("orders", "ann", text="a", msg_id="x")
    with pytest.raises(NameRefused):
        enqueue("orders", "", text="a")
    with pytest.raises(MessageTooBig):
        enqueue("orders", "ann", text="x" * 1_000_001)
    assert not OutboxMessage.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_row_that_can_never_be_sent_does_not_hold_up_the_others(nats_settings: Any) -> None:
    enqueue("orders", "ann", text="before")
    bad = enqueue("orders", "ann", text="bad")
    OutboxMessage.objects.filter(pk=bad.pk).update(headers={"a": "line\nbreak"})
    enqueue("orders", "ann", text="after")
    call_command("runoutbox", "--once")
    assert got("ann") == ["before", "after"]
    bad.refresh_from_db()
    assert bad.failed_at is not None
    assert "line break" in bad.error


@pytest.mark.django_db(transaction=True)
def test_broker_that_is_away_loses_nothing(settings: Any, own_server: EmbeddedServer) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_BROKER_TIMEOUT = 1.0
    enqueue("orders", "ann", text="one")
    Relay().step()
    own_server.stop()
    enqueue("orders", "ann", text="two")
    with pytest.raises(BrokerUnavailable):
        Relay().step()
    assert OutboxMessage.objects.count() == 1
    own_server.start()
    wait_for(lambda: not _fails(Relay().step), 10)
    assert got("ann") == ["one", "two"]


def _fails(action: Any) -> bool:
    try:
        action()
    except (BrokerUnavailable, QueueFull):
        return True
    return False


def test_command_is_listed_only_where_the_app_is_installed(settings: Any) -> None:
    """Every project's ``manage.py help`` listed it; it said what to install."""
    commands: Any = inspect.unwrap(get_commands)  # which is cached for the life of the process
    assert commands()["runoutbox"] == "wsgateway.outbox"
    settings.INSTALLED_APPS = [a for a in settings.INSTALLED_APPS if a != "wsgateway.outbox"]
    assert "runoutbox" not in commands()


def manage(folder: Path, name: str, env: dict[str, str], *arguments: str) -> Process:
    command = [sys.executable, "manage.py", *arguments]
    return Process(command, folder / f"{name}.log", env, ROOT)


USERS, EACH = 10, 100


def test_relay_killed_again_and_again(
    nats_settings: Any, nats_server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """Every row is in the stream once, in order per user, though relays die in the middle."""
    database = tmp_path / "db.sqlite3"
    env = site_env(
        DEBUG="1",
        SECRET_KEY="tests",
        DATABASE_URL=f"sqlite:///{database}",
        NATS_BROKER_URL=nats_server.url,
        WSGATEWAY_SERVICES="orders",
        WSGATEWAY_PREFIX=prefix,
    )
    migrate = manage(tmp_path, "migrate", env, "migrate", "wsgateway_outbox")
    migrate.spawn()
    assert migrate.wait(60) == 0, migrate.output
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO wsgateway_outbox_outboxmessage (key, service, user, payload, kind,"
            " headers, created_at, error) VALUES (?, 'orders', ?, ?, 'text', '{}',"
            " '2026-01-01 00:00:00', '')",
            [
                (f"{number * USERS + user:032x}", f"u{user}", str(number).encode())
                for number in range(EACH)
                for user in range(USERS)
            ],
        )
    connection.close()

    def left() -> int:
        with sqlite3.connect(database, timeout=20) as reader:
            count = reader.execute("SELECT COUNT(*) FROM wsgateway_outbox_outboxmessage")
            number = int(count.fetchone()[0])
        reader.close()
        return number

    total = USERS * EACH
    for number in range(3):
        relay = manage(tmp_path, f"relay{number}", env, "runoutbox", "--batch", "50")
        with running(relay):
            relay.spawn()
            goal = total - (number + 1) * 200
            wait_for(lambda goal=goal: left() <= goal, 30, "some rows")
            if number == 0:
                second = manage(tmp_path, "second", env, "runoutbox", "--once")
                second.spawn()
                assert second.wait(30) == 1
                assert "another relay uses" in second.output
            relay.kill()
    relay = manage(tmp_path, "last", env, "runoutbox")
    with running(relay):
        relay.spawn()
        relay.wait_for_line("outbox: ready", 30)
        wait_for(lambda: left() == 0, 30, "all rows")
        relay.stop()
        assert "outbox: ended" in relay.output
        assert "Traceback" not in relay.output
    for user in range(USERS):
        assert got(f"u{user}") == [str(number) for number in range(EACH)]


@pytest.mark.django_db(transaction=True)
def test_full_stream_makes_rows_wait_until_there_is_room(
    settings: Any, nats_settings: Any, prefix: str
) -> None:
    """A real server at its limit: nothing is set aside, and all goes on in order."""
    settings.WSGATEWAY_INBOX_MAX_BYTES = 200_000
    settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = 2.0
    for number in range(40):
        enqueue("orders", "ann", text=f"{number}".ljust(10_000))
    relay = Relay()
    steps: list[int] = []
    while not _fails(lambda: steps.append(relay.step())):
        assert steps[-1] > 0
    relayed = sum(steps)
    assert 10 <= relayed < 40
    assert OutboxMessage.objects.filter(failed_at=None).count() == 40 - relayed
    before = got("ann")

    async def empty() -> None:
        broker = broker_from_settings(wsgateway_settings)
        await broker.open()
        await broker.wait_ready()
        await broker.jetstream.api(f"STREAM.PURGE.{broker.subjects.stream('recv')}")
        await broker.close()

    asyncio.run(empty())
    wait_for(lambda: not _fails(relay.step), 20, "room")
    after = got("ann")
    assert [int(text) for text in (*before, *after)] == list(range(len(before) + len(after)))
    assert after
    assert not OutboxMessage.objects.exclude(failed_at=None).exists()
