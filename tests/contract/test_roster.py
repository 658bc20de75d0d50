"""What `wsgateway.broker.roster.Roster` promises, on every implementation."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import Any

import pytest

from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.roster import new_member_id
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import MAX_MEMBER_ID

DETAILS = {"host": "a", "pid": 7, "text": 'ü"'}


async def test_who_joined_is_listed_everywhere_until_it_leaves(
    broker: Broker, other: Broker
) -> None:
    await broker.roster.join("gateway", "one", DETAILS)
    await broker.roster.join("gateway", "two")
    await broker.roster.join("worker", "one", {"kind": "another"})
    assert other.roster.known("gateway") == {}
    for each in (broker, other):
        assert await each.roster.members("gateway") == {"one": DETAILS, "two": {}}
    assert other.roster.known("gateway") == {"one": DETAILS, "two": {}}
    assert await other.roster.members("worker") == {"one": {"kind": "another"}}
    broker.roster.leave("gateway", "one")
    broker.roster.leave("gateway", "one")
    broker.roster.leave("gateway", "stranger")
    await broker.bus.confirm()
    await _lists(other, "gateway", {"two"})
    assert await other.roster.members("worker") == {"one": {"kind": "another"}}


async def _lists(broker: Broker, kind: str, ids: set[str], within: float = 20.0) -> None:
    """Wait until exactly *ids* are listed: a replica, or an expiry, may lag."""
    deadline = time.monotonic() + within
    while set(await broker.roster.members(kind)) != ids:
        assert time.monotonic() < deadline, await broker.roster.members(kind)
        await asyncio.sleep(0.05)


async def test_entry_goes_with_its_process_and_stays_with_one_that_lives(
    brokers: Any, settings: Any
) -> None:
    """One of a killed process is a hint that is wrong for so long, and no longer."""
    settings.WSGATEWAY_ROSTER_TTL = 1.0
    killed, alive = await brokers.open(), await brokers.open()
    await alive.roster.join("gateway", "alive")
    await killed.roster.join("gateway", "killed")
    await killed.close()
    assert set(await alive.roster.members("gateway")) == {"alive", "killed"}
    await _lists(alive, "gateway", {"alive"})
    until_gone = time.monotonic() + 2.0
    while time.monotonic() < until_gone:  # longer than an entry that nobody refreshes lasts
        assert set(await alive.roster.members("gateway")) == {"alive"}
        await asyncio.sleep(0.1)


async def test_not_connected(brokers: Any) -> None:
    broker = brokers.make()
    with pytest.raises(BrokerUnavailable):
        await broker.roster.members("gateway")


async def test_many_members(broker: Broker, other: Broker) -> None:
    """More than one answer holds, and in the order in which nobody asked for them."""
    await asyncio.gather(*(broker.roster.join("worker", f"w{n}") for n in range(1100)))
    broker.roster.leave("worker", "w7")
    await broker.bus.confirm()
    await _lists(other, "worker", {f"w{n}" for n in range(1100)} - {"w7"})


def test_ids_are_different_plain_and_say_which_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("web-1.example.com", "a b/ü" * 40, "..."):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        ids = {new_member_id() for _ in range(20)}
        assert len(ids) > 1
        for id in ids:
            assert re.fullmatch(rf"[A-Za-z0-9_-]+-{os.getpid()}-[0-9a-f]{{4}}", id)
            assert len(id) <= MAX_MEMBER_ID
    monkeypatch.setattr("socket.gethostname", lambda: "web-1.example.com")
    assert new_member_id().startswith(f"web-1-example-com-{os.getpid()}-")


async def test_renewed_soon_after_the_broker_became_ready(brokers: Any) -> None:
    """Joining while the broker is away must not keep a process out until the next refresh."""
    broker, other = brokers.new(), await brokers.open()
    joining = asyncio.create_task(broker.roster.join("gateway", "early"))
    await asyncio.sleep(0)
    await broker.open()
    await joining
    await _lists(other, "gateway", {"early"})
    await until(lambda: broker.ready)
