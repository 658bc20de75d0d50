"""Hooks, such as what decides about topics, find database connections that work."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connections

from wsgateway.hooks import call_hook


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_async", [True, False])
async def test_hook_gets_a_new_connection_after_its_own_has_failed(
    monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """An asynchronous one failed for up to a minute, until other code closed the connection."""
    closed: list[str] = []

    def fail() -> None:
        connection = connections["default"]
        connection.errors_occurred = True
        monkeypatch.setattr(connection, "is_usable", lambda: False)
        monkeypatch.setattr(connection, "close", lambda: closed.append("default"))

    async def ask() -> int:
        before = len(closed)
        await get_user_model().objects.acount()
        return before

    def ask_in_thread() -> int:
        before = len(closed)
        get_user_model().objects.count()
        return before

    hook = ask if is_async else ask_in_thread
    assert await call_hook(hook) == 0
    await sync_to_async(fail)()
    assert await call_hook(hook) == 1
    monkeypatch.undo()
