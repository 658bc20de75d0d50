"""Connections around asynchronous handlers; `tests/faults/test_service_database.py` breaks them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db.backends.signals import connection_created

from tests.integration.workers import no_services, offer, serving
from tests.support import until
from wsgateway import Message, database
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.services import registry

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether other handlers ran, at each look at the connections."""
    found: list[bool] = []

    def close_old(*, in_use: bool = False) -> None:
        found.append(in_use)

    monkeypatch.setattr(database, "close_old", close_old)
    monkeypatch.setattr(database, "connected", set())
    return found


async def test_handler_without_a_database_changes_no_thread(
    broker: NatsBroker, looks: list[bool]
) -> None:
    @registry.service("orders")
    async def handle(message: Message) -> None:
        """Do nothing."""

    await offer(broker, "x")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
    assert looks == []


async def test_connection_is_closed_for_its_age_only_while_nobody_else_uses_it(
    broker: NatsBroker, looks: list[bool]
) -> None:
    """Handlers share a thread: another one may be in the middle of a cursor."""
    both, release = asyncio.Barrier(2), asyncio.Event()

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await sync_to_async(connection_created.send)(sender=None)
        await both.wait()
        if message.user_name == "bob":
            await release.wait()
            await sync_to_async(connection_created.send)(sender=None)

    await offer(broker, "x")
    await offer(broker, "x", user="bob")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["done"] == 1)
        assert looks == [True]
        release.set()
        await until(lambda: worker.counts["done"] == 2)
    assert looks == [True, False]


@pytest.mark.parametrize(("usable", "calls"), [(True, ["usable"]), (False, ["usable", "close"])])
def test_failed_connection_is_closed_also_while_others_use_it(
    monkeypatch: pytest.MonkeyPatch, usable: bool, calls: list[str]
) -> None:
    done: list[str] = []

    class Connection:
        alias = "default"
        errors_occurred = True

        def is_usable(self) -> bool:
            done.append("usable")
            return usable

        def close(self) -> None:
            done.append("close")

    class Connections:
        def all(self, initialized_only: bool) -> list[Any]:
            return [Connection()]

    monkeypatch.setattr(database, "connections", Connections())
    database.close_old(in_use=True)
    assert done == calls


def test_connection_that_cannot_be_closed_fails_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Connection:
        alias = "broken"

        def close_if_unusable_or_obsolete(self) -> None:
            raise OSError("gone")

    class Connections:
        def all(self, initialized_only: bool) -> list[Any]:
            return [Connection()]

    monkeypatch.setattr(database, "connections", Connections())
    database.close_old()
    assert "cannot close connection 'broken'" in caplog.text
