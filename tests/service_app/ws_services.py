"""Handlers that leave a line in the file that SERVICE_LOG names."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from wsgateway import Message, service


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
