"""Handlers that leave a line in the file that SERVICE_LOG names."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from asgiref.sync import sync_to_async
from django.db import connection

from wsgateway import Message, RetryPolicy, service


def note(text: str) -> None:
    """Append a line in one write, so that processes do not mix theirs."""
    with Path(os.environ["SERVICE_LOG"]).open("ab", buffering=0) as log:
        log.write(f"{text}\n".encode())


@service("counted")
async def counted(message: Message) -> None:
    note(f"begin {os.getpid()} {message.user_name} {message.text} {message.attempt}")
    await asyncio.sleep(float(os.environ.get("SERVICE_PAUSE", "0.005")))
    note(f"end {os.getpid()} {message.user_name} {message.text} {message.attempt}")


@service("threaded")
def threaded(message: Message) -> None:
    time.sleep(0.01)
    note(f"end {os.getpid()} {message.user_name} {message.text} {message.attempt}")


@service("deadly")
async def deadly(message: Message) -> None:
    note(f"begin {os.getpid()} {message.user_name} {message.text} {message.attempt}")
    await asyncio.sleep(float(os.environ.get("SERVICE_PAUSE", "0.005")))
    if message.text == "exit":
        os._exit(1)
    if message.text == "task-exits":
        task = asyncio.create_task(exit_later())
        await task
    note(f"end {os.getpid()} {message.user_name} {message.text} {message.attempt}")


async def exit_later() -> None:
    """End the process from a task of the handler's own."""
    raise SystemExit(1)


def query(message: Message) -> None:
    """Ask the database, and note its answer."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    note(f"end {pid} {message.user_name} {message.text} {message.attempt}")


@service("queries", retry=RetryPolicy(initial=0.05, cap=0.1, attempts=3))
def queries(message: Message) -> None:
    query(message)


@service("async_queries", retry=RetryPolicy(initial=0.05, cap=0.1, attempts=3))
async def async_queries(message: Message) -> None:
    await sync_to_async(query)(message)


@service("hangs")
def hangs(message: Message) -> None:
    note(f"begin {os.getpid()} {message.user_name} {message.text} {message.attempt}")
    time.sleep(1000)


@service("async_hangs")
async def async_hangs(message: Message) -> None:
    await sync_to_async(hangs)(message)
