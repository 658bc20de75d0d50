"""Streams: created and changed idempotently; what cannot work is named, with the cure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.faults.traffic import broker_at
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.jetstream import ApiError, JetStream
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured

FAMILIES = ("RECV", "DEAD", "SEND_orders", "SEND_=4Frders")


@pytest.fixture
async def plain(nats_server: EmbeddedServer, prefix: str) -> AsyncIterator[NatsBroker]:
    """A broker that wants no streams."""
    async with broker_at([nats_server.url], prefix) as broker:
        await broker.wait_ready()
        yield broker


def set_up(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    runtime.reset()
    call_command("setup_streams")
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines)


async def ready() -> NatsBroker:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
    finally:
        await broker.close()
    return broker


async def ready_open() -> NatsBroker:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    return broker


async def config(plain: NatsBroker, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await plain.jetstream.api(f"STREAM.INFO.{name}"))["config"]
    return found


async def test_set_up_creates_changes_and_then_does_nothing(
    nats_settings: Any, plain: NatsBroker, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nats_settings.WSGATEWAY_SERVICES = ["orders", "Orders"]
    upper = prefix.upper()
    done = await asyncio.to_thread(set_up, capsys)
    assert set(done) == {
        *(f"{upper}_{f}" for f in FAMILIES),
        f"KV_{upper}_CURSORS",
        f"KV_{upper}_TRIES",
        f"KV_{upper}_ROSTER",
        f"{upper}_TOPIC_demo-room",
    }
    assert set(done.values()) == {"created"}
    assert set((await asyncio.to_thread(set_up, capsys)).values()) == {"up to date"}
    nats_settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    nats_settings.WSGATEWAY_INBOX_MAX_MESSAGES = 7
    done = await asyncio.to_thread(set_up, capsys)
    assert done[f"{upper}_RECV"] == "changed max_age, max_msgs_per_subject"
    real = await config(plain, f"{upper}_RECV")
    assert (real["max_age"], real["max_msgs_per_subject"]) == (3600 * 10**9, 7)


async def test_each_stream_has_a_duplicate_window_of_its_own(
    nats_settings: Any,
    plain: NatsBroker,
    prefix: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A short WSGATEWAY_SEND_MAX_AGE also shortened the inbox's window, and setup_streams failed
    where it met the bucket of tries, whose window it left alone."""
    nats_settings.WSGATEWAY_SERVICES = ["orders"]
    upper = prefix.upper()
    await asyncio.to_thread(set_up, capsys)
    nats_settings.WSGATEWAY_SEND_MAX_AGE = 60.0
    await ready()
    assert "has duplicate_window 120 s, settings want 60 s; run" in caplog.text
    done = await asyncio.to_thread(set_up, capsys)
    for name in (f"{upper}_SEND_orders", f"KV_{upper}_TRIES"):
        assert done.pop(name) == "changed max_age, duplicate_window"
        assert (await config(plain, name))["duplicate_window"] == 60 * 10**9
    assert set(done.values()) == {"up to date"}
    nats_settings.WSGATEWAY_DUPLICATE_WINDOW = 300.0
    await asyncio.to_thread(set_up, capsys)
    windows = {name: (await config(plain, name))["duplicate_window"] for name in done}
    assert windows.pop(f"KV_{upper}_ROSTER") == 15 * 10**9  # it keeps nothing for longer
    assert windows == dict.fromkeys(windows, 300 * 10**9)
    caplog.clear()
    await ready()
    assert "duplicate_window" not in caplog.text


async def test_first_use_creates_and_never_changes(
    nats_settings: Any, plain: NatsBroker, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await ready()
    nats_settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    await ready()
    assert (await config(plain, f"{prefix.upper()}_RECV"))["max_age"] == 7 * 86400 * 10**9
    text = next(r.getMessage() for r in caplog.records if "max_age" in r.getMessage())
    assert "has max_age 604800 s, settings want 3600 s" in text
    assert "setup_streams" in text
    assert "WSGATEWAY_INBOX_MAX_AGE" in text


async def test_layers_streams_are_checked_and_brought_in_line(
    nats_settings: Any,
    plain: NatsBroker,
    prefix: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They kept what they were made with: nobody said so, and no command changed it."""
    name = f"{prefix.upper()}_CHAN"
    first, second, third = [await ready_open() for _ in range(3)]
    await first.channels.ensure(7)
    changed = {**await config(plain, name), "discard_new_per_subject": False}
    await plain.jetstream.api(f"STREAM.UPDATE.{name}", changed)
    await second.channels.ensure(3)
    assert f"stream {name!r} has discard_new_per_subject" in caplog.text
    assert 'run "manage.py setup_streams"' in caplog.text
    done = await asyncio.to_thread(set_up, capsys)
    assert done[name] == "changed discard_new_per_subject"
    caplog.clear()
    await third.channels.ensure(3)
    assert name not in caplog.text
    assert (await config(plain, name))["max_msgs_per_subject"] == 7
    for broker in (first, second, third):
        await broker.close()


async def test_limit_that_cannot_grow_is_named_with_the_cure(
    nats_settings: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error was the server's: neither stream nor limit were in it."""
    name = f"{prefix.upper()}_CHAN"
    broker = await ready_open()
    await broker.channels.ensure(7)
    api = JetStream.api

    async def refuse(self: JetStream, subject: str, *args: Any) -> dict[str, Any]:
        if subject.startswith("STREAM.UPDATE."):
            raise ApiError(500, 10052, "not that way")
        return await api(self, subject, *args)

    monkeypatch.setattr(JetStream, "api", refuse)
    with pytest.raises(BrokerMisconfigured) as error:
        await broker.channels.ensure(9)
    text = str(error.value)
    assert f"stream {name!r} has max_msgs_per_subject 7, settings want 9" in text
    assert "lower the layer's capacity" in text
    assert "not that way" in text
    await broker.close()


async def test_stream_that_cannot_work_is_refused_with_field_and_cure(
    nats_settings: Any, plain: NatsBroker, prefix: str
) -> None:
    name = f"{prefix.upper()}_RECV"
    theirs = {"name": name, "subjects": [f"{prefix}.recv.*.*"], "retention": "workqueue"}
    await plain.jetstream.api(f"STREAM.CREATE.{name}", theirs)
    with pytest.raises(BrokerMisconfigured) as error:
        await ready()
    text = str(error.value)
    assert f"stream '{name}' has retention 'workqueue', settings want 'limits'" in text
    assert "republish" in text
    assert "WSGATEWAY_PREFIX" in text
    runtime.reset()
    with pytest.raises(CommandError, match="retention"):
        await asyncio.to_thread(call_command, "setup_streams")
    assert (await config(plain, name))["retention"] == "workqueue"


async def test_more_replicas_than_servers(nats_settings: Any) -> None:
    nats_settings.WSGATEWAY_REPLICAS = 3
    nats_settings.WSGATEWAY_BROKER_TIMEOUT = 2.0
    with pytest.raises(BrokerMisconfigured, match="replicas"):
        await ready()


async def test_gateway_says_what_is_wrong_and_goes_on_once_it_is_right(
    gateway_factory: Any, plain: NatsBroker, prefix: str
) -> None:
    name = f"{prefix.upper()}_RECV"
    theirs = {"name": name, "subjects": [f"{prefix}.recv.*.*"]}  # no republish
    await plain.jetstream.api(f"STREAM.CREATE.{name}", theirs)
    gateway = gateway_factory()
    async with gateway.connect("service1", "ann") as socket:
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert socket.close_code == 1013
    assert "has republish None" in gateway.output
    assert "Traceback" not in gateway.output
