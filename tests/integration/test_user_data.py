"""Deleting a user's data where the outbox is in several databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from pytest_django import DjangoDbBlocker

from wsgateway import user_data
from wsgateway.broker import runtime
from wsgateway.outbox import enqueue
from wsgateway.outbox.models import OutboxMessage


@pytest.fixture
def databases(
    settings: Any, tmp_path: Path, django_db_blocker: DjangoDbBlocker
) -> Iterator[tuple[str, str]]:
    """Two databases with an outbox each, besides the tests' own."""
    settings.PUBSUB_BROKER = "memory"
    runtime.reset()
    names = ("first", "second")
    with django_db_blocker.unblock():
        for name in names:
            engine = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {}}
            own = {**engine, "NAME": tmp_path / name}
            connections.databases[name] = {**connections.databases["default"], **own}
            call_command("migrate", "wsgateway_outbox", database=name, verbosity=0)
        yield names
        for name in names:
            connections[name].close()
            del connections[name], connections.databases[name]


def test_outbox_of_each_database(databases: tuple[str, str]) -> None:
    """`enqueue(using=...)` could write rows that no command and no function deleted."""
    first, second = databases
    for using in databases:
        for user in ("ann", "bob"):
            enqueue("orders", user, text="x", using=using)
    found = user_data.find("ann", using=first)
    assert (found.outbox_rows, user_data.delete("ann", using=first)) == (1, found)
    assert user_data.find("ann", using=first).outbox_rows == 0
    assert user_data.find("ann", using=second).outbox_rows == 1
    call_command("gateway", "purge", "--user", "ann", "--no-input", "--database", second)
    for using in databases:
        assert [row.user for row in OutboxMessage.objects.using(using)] == ["bob"]


@pytest.mark.parametrize("command", ["runoutbox --once", "gateway purge --user ann --dry-run"])
def test_database_that_does_not_exist(command: str) -> None:
    """It was a traceback."""
    with pytest.raises(CommandError, match="'nope' is not in DATABASES, which has default"):
        call_command(*command.split(), "--database", "nope")
