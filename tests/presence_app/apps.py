"""Appends each signal as a line of JSON to the file that ``SIGNALS_LOG`` names."""

from __future__ import annotations

import json
import os
from typing import Any

from asgiref.sync import sync_to_async
from django.apps import AppConfig
from django.db import connection

from wsgateway import signals


def note(name: str, **fields: Any) -> None:
    with open(os.environ["SIGNALS_LOG"], "a") as log:
        log.write(json.dumps({"signal": name, "pid": os.getpid(), **fields}, default=str) + "\n")


def query(name: str, user: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        note(name, user=user, backend=cursor.fetchone()[0])


class NotesConfig(AppConfig):
    """Connects a receiver to each signal; with ``SIGNALS_QUERY``, two that use the database."""

    name = "tests.presence_app"

    def ready(self) -> None:
        for name in signals.__all__:
            signal = getattr(signals, name)

            def receive(name: str = name, **kwargs: Any) -> None:
                del kwargs["signal"], kwargs["sender"]
                note(name, **kwargs)

            signal.connect(receive, weak=False)
        if os.environ.get("SIGNALS_QUERY"):
            signals.user_online.connect(query_sync)
            signals.user_online.connect(query_async)


def query_sync(user: str, **kwargs: Any) -> None:
    query("sync query", user)


async def query_async(user: str, **kwargs: Any) -> None:
    await sync_to_async(query)("async query", user)
