"""Asynchronous hooks find database connections that work, as handlers do."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connections

from wsgateway.hooks import call_hook


@pytest.mark.django_db(transaction=True)
async def test_asynchronous_hook_gets_a_new_connection_after_its_own_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It failed for up to a minute, until some synchronous code closed the connection."""
    closed: list[str] = []

    def fail() -> None:
        connection = connections["default"]
        connection.errors_occurred = True
        monkeypatch.setattr(connection, "is_usable", lambda: False)
        monkeypatch.setattr(connection, "close", lambda: closed.append("default"))

    async def hook() -> int:
        before = len(closed)
        await get_user_model().objects.acount()
        return before

    assert await call_hook(hook) == 0
    await sync_to_async(fail)()
    assert await call_hook(hook) == 1
    monkeypatch.undo()
