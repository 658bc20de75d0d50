"""``manage.py setup_streams``: create the streams, and bring them in line with the settings."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.broker import runtime
from wsgateway.conf import settings
from wsgateway.exceptions import WsGatewayError


class Command(BaseCommand):
    """Sets the streams up; idempotent."""

    help = "Creates the streams, or changes them to what the settings want. Idempotent."

    def handle(self, *args: Any, **options: Any) -> None:
        """Set up."""
        try:
            lines = asyncio.run(set_up())
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc
        for line in lines:
            self.stdout.write(line)


async def set_up() -> list[str]:
    """Set the streams up; return a line for each."""
    broker = runtime.current().broker
    try:
        return await broker.set_up(settings.ACK_WAIT)
    finally:
        await runtime.close(broker)
