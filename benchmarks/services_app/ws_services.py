"""The jobs as services."""

from __future__ import annotations

import asyncio

from benchmarks.services_app import PAUSE, tick
from wsgateway import Message, service


@service("noop")
async def noop(message: Message) -> None:
    """Do nothing."""
    tick()


@service("slow")
async def slow(message: Message) -> None:
    """Wait."""
    await asyncio.sleep(PAUSE)
    tick()


@service("echo")
async def echo(message: Message) -> None:
    """Answer."""
    await message.reply(text=message.text)


@service("many")
async def many(message: Message) -> None:
    """Be there: `send_many` and the outbox store messages for its users."""
