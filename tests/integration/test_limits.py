"""Limits in bytes: shares of what the server offers, reserves, warnings, and what they refuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import LIMITS
from tests.integration.layers import nats_of
from tests.support import until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured, QueueFull
from wsgateway.layer import NatsChannelLayer
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import letters, set_aside

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
GIB, MIB = 2**30, 2**20


@pytest.fixture
def automatic(settings: Any, prefix: str) -> Any:
    """Settings that leave every limit to us."""
    for name in LIMITS:
        setattr(settings, name, 0)
    settings.PUBSUB_BROKER = "nats"
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_SERVICES = ["orders", "s"]
    return settings


@pytest.fixture
def small_disk(automatic: Any, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that offers 1 GiB."""
    store = {"store_dir": str(tmp_path / "js"), "max_file_store": GIB, "max_memory_store": GIB}
    with EmbeddedServer(
        tmp_path, max_payload=MIB, sync_interval="10s", config={"jetstream": store}
    ) as server:
        automatic.NATS_BROKER_URL = server.url
        yield server


@asynccontextmanager
async def opened() -> AsyncIterator[NatsBroker]:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    try:
        yield broker
    finally:
        await broker.close()


async def sizes(broker: NatsBroker) -> dict[str, int]:
    """Return the limit in bytes of each stream of the server."""
    streams = (await broker.jetstream.api("STREAM.LIST"))["streams"]
    upper = broker.subjects.upper
    return {s["config"]["name"].replace(upper, ""): s["config"]["max_bytes"] for s in streams}


async def test_every_stream_has_a_share_of_what_a_small_disk_offers(
    small_disk: EmbeddedServer, automatic: Any
) -> None:
    async with opened() as broker:
        layer = NatsChannelLayer()
        await layer.send("normal", {"type": "x", "data": os.urandom(2_000_000)})
        await layer.close()
        found = await sizes(broker)
        assert min(found.values()) >= MIB
        assert sum(found.values()) <= GIB
        assert found["_RECV"] >= 0.4 * GIB / 2
        assert found["_SEND_orders"] == found["_SEND_s"] >= 0.05 * GIB / 2
        assert {"_DEAD", "KV__CURSORS", "KV__TRIES", "_CHAN", "_BLOB"} < set(found)
        lines = await broker.set_up()
        assert all(line.endswith(": up to date") for line in lines), lines
        assert len(lines) == len(found)
        # Another installation gets its shares of what is left, and the first keeps its own
        automatic.WSGATEWAY_PREFIX += "b"
        async with opened() as other:
            assert min((await sizes(other)).values()) >= MIB


async def test_account_limit_counts(automatic: Any, tmp_path: Path) -> None:
    account = {
        "users": [{"user": "u", "password": "p"}],
        "jetstream": {"max_store": 100 * MIB, "max_mem": 100 * MIB, "max_streams": 20},
    }
    config = {"accounts": {"A": account}, "no_auth_user": "u"}
    with EmbeddedServer(tmp_path, max_payload=MIB, sync_interval="10s", config=config) as server:
        automatic.NATS_BROKER_URL = server.url
        async with opened() as broker:
            found = await sizes(broker)
            assert 30 * MIB < found["_RECV"] < 50 * MIB
            assert sum(found.values()) < 100 * MIB


async def test_account_that_demands_limits(automatic: Any, tmp_path: Path) -> None:
    account = {
        "users": [{"user": "u", "password": "p"}],
        "jetstream": {"max_store": 100 * MIB, "max_mem": 100 * MIB, "max_bytes_required": True},
    }
    config = {"accounts": {"A": account}, "no_auth_user": "u"}
    with EmbeddedServer(tmp_path, sync_interval="10s", config=config) as server:
        automatic.NATS_BROKER_URL = server.url
        for name in LIMITS:
            setattr(automatic, name, 2 * MIB)
        async with opened() as broker:
            layer = NatsChannelLayer()
            await layer.send("normal", {"type": "x", "data": os.urandom(1_500_000)})
            await layer.close()
            found = await sizes(broker)
            assert found.pop("KV__ROSTER") == MIB  # whatever the settings say
            assert set(found.values()) == {2 * MIB}


async def test_probe_that_was_left_behind_does_not_matter(small_disk: EmbeddedServer) -> None:
    """By a process that was killed between making it and removing it."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.connection.open()
    name = broker.subjects.stream("probe")
    config = {"name": name, "subjects": [f"{broker.subjects.prefix}.probe"], "max_bytes": MIB}
    await broker.jetstream.api(f"STREAM.CREATE.{name}", config)
    await broker.set_up()
    assert "_PROBE" not in await sizes(broker)
    await broker.close()


async def test_too_large_a_limit_is_refused_with_the_setting(
    small_disk: EmbeddedServer, automatic: Any
) -> None:
    automatic.WSGATEWAY_DEAD_MAX_BYTES = 50 * GIB
    broker = broker_from_settings(wsgateway_settings)
    with pytest.raises(BrokerMisconfigured, match="lower WSGATEWAY_DEAD_MAX_BYTES"):
        await broker.set_up()
    await broker.close()


async def test_streams_without_limits_get_them_and_lose_nothing(
    nats_settings: Any, small_disk: EmbeddedServer, automatic: Any
) -> None:
    """As an earlier version made them: without a limit, and inboxes that evict."""
    automatic.NATS_BROKER_URL = small_disk.url
    for name in LIMITS:
        setattr(automatic, name, -1)
    async with opened() as broker:
        name = broker.subjects.stream("recv")
        config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
        await broker.jetstream.api(f"STREAM.UPDATE.{name}", {**config, "discard": "old"})
        for number in range(50):
            await broker.publish(ANN, b"%d" % number)
    for name in LIMITS:
        setattr(automatic, name, 0)
    broker = broker_from_settings(wsgateway_settings)
    lines = await broker.set_up()
    assert any(line.endswith("_RECV: changed discard, max_bytes") for line in lines), lines
    await broker.close()
    async with opened() as broker:
        assert await broker.inboxes.count(ANN) == 50
        assert min((await sizes(broker)).values()) >= MIB


# -- full --------------------------------------------------------------------------------


async def test_full_inboxes_refuse_instead_of_evicting_others(nats_settings: Any) -> None:
    """At the limit in bytes the oldest mail went, whichever user's it was."""
    nats_settings.WSGATEWAY_INBOX_MAX_BYTES = MIB
    nats_settings.WSGATEWAY_INBOX_MAX_MESSAGES = 3
    async with opened() as broker:
        await broker.publish(BOB, b"bob's")
        for number in range(10):
            await broker.publish(ANN, b"%d" % number)  # each inbox drops its own oldest
        assert (await broker.inboxes.count(ANN), await broker.inboxes.count(BOB)) == (3, 1)
        for number in range(9):
            await broker.publish(Inbox("orders", f"u{number}"), bytes(100_000))
        with pytest.raises(QueueFull):
            await broker.publish(Inbox("orders", "last"), bytes(300_000))
        assert [m.payload for m in (await broker.inboxes.read_after(BOB, 0, limit=9)).messages] == [
            b"bob's"
        ]


async def test_full_store_can_still_drain(
    nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Services could neither reply nor set anything aside, so their queues stayed full."""
    nats_settings.WSGATEWAY_INBOX_MAX_BYTES = MIB
    nats_settings.WSGATEWAY_DEAD_MAX_BYTES = MIB
    async with opened() as broker:
        number = 0

        async def is_full() -> bool:
            nonlocal number
            number += 1
            try:
                await broker.publish(Inbox("orders", f"u{number}"), bytes(1_000))
            except QueueFull as exc:
                return "the room kept for replies" in str(exc)
            if number % 20 == 0:
                await broker.inboxes.position()  # as gateways do now and then
            return False

        async with asyncio.timeout(20):
            while not await is_full():
                pass
        warnings = [r.getMessage() for r in caplog.records if "% full" in r.getMessage()]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"stream '{broker.subjects.stream('recv')}' is 8")
        for reply in range(20):
            await broker.publish(ANN, b"reply", msg_id=f"r{reply}", reserved=True)
        assert await broker.inboxes.count(ANN) == 20
        assert any("% full" in line for line in await broker.set_up())
        # Dead letters have room of their own, and the oldest goes first
        for sequence in range(30):
            job = Job(ANN, bytes(100_000), {}, sequence=sequence, id=f"S.{sequence}")
            await set_aside(broker, job, ValueError("x"))
        assert 5 <= len([letter async for letter in letters(broker)]) <= 10
        # Once somebody reads, or it ages, publishing goes on by itself
        await broker.jetstream.api(f"STREAM.PURGE.{broker.subjects.stream('recv')}")
        async with asyncio.timeout(20):
            while await is_full():
                await asyncio.sleep(0.05)


async def test_layers_streams_warn_too(
    nats_settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nats_settings.WSGATEWAY_CHANNEL_MAX_BYTES = MIB
    layer = NatsChannelLayer(capacity=1000)
    await layer.send("normal", {"type": "x", "data": os.urandom(900_000)})
    broker = nats_of(layer.connections.current())
    await broker.wait_ready()
    broker.jetstream.on_missing()
    await until(lambda: "_CHAN' is 8" in caplog.text, 10, "the warning")
    await layer.close()


async def test_full_queue_of_a_service_refuses_by_bytes(nats_settings: Any) -> None:
    nats_settings.WSGATEWAY_SEND_MAX_BYTES = MIB
    async with opened() as broker:
        for number in range(9):
            await broker.offer(ANN, Frame(bytes(100_000), False), f"{number}")
        with pytest.raises(QueueFull):
            await broker.offer(ANN, Frame(bytes(300_000), False), "last")
        await broker.offer(Inbox("s", "ann"), Frame.of("x"), "x")
