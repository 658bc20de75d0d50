"""The jobs for ``manage.py runworker``, and a websocket consumer that hands them over."""

from __future__ import annotations

import asyncio
from typing import Any

import django

django.setup()

from channels.consumer import AsyncConsumer  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402

from benchmarks.services_app import PAUSE, tick  # noqa: E402


class Jobs(AsyncConsumer):
    """What the worker does."""

    async def job_noop(self, event: dict[str, Any]) -> None:
        """Do nothing."""
        tick()

    async def job_slow(self, event: dict[str, Any]) -> None:
        """Wait."""
        await asyncio.sleep(PAUSE)
        tick()

    async def job_echo(self, event: dict[str, Any]) -> None:
        """Answer."""
        await self.channel_layer.send(event["reply"], {"type": "job.answer", "text": event["text"]})


class Ask(AsyncWebsocketConsumer):
    """What the client talks to."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Hand it to the worker."""
        event = {"type": "job.echo", "reply": self.channel_name, "text": text_data}
        await self.channel_layer.send("echo", event)

    async def job_answer(self, event: dict[str, Any]) -> None:
        """Give the answer to the client."""
        await self.send(event["text"])


jobs = Jobs.as_asgi()
application = ProtocolTypeRouter(
    {
        "websocket": Ask.as_asgi(),
        "channel": ChannelNameRouter({"noop": jobs, "slow": jobs, "echo": jobs}),
    }
)
