"""``manage.py publish service user text``: put a message into a user's inbox."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.broker import get_broker
from wsgateway.broker.base import Receipt
from wsgateway.exceptions import WsGatewayError
from wsgateway.frames import Frame
from wsgateway.subjects import Inbox


class Command(BaseCommand):
    """Publishes one frame and prints its offset."""

    help = "Stores a message for a user; prints its offset once it is safe."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whom to send what."""
        parser.add_argument("service")
        parser.add_argument("user")
        parser.add_argument("text", help="the message; - reads a binary frame from standard input")
        parser.add_argument("--id", help="message id: the same id is stored once only")

    def handle(self, *args: Any, **options: Any) -> None:
        """Publish."""
        text = options["text"]
        frame = Frame.of(sys.stdin.buffer.read() if text == "-" else text)
        inbox = Inbox(options["service"], options["user"])
        try:
            receipt = asyncio.run(publish(inbox, frame, options["id"]))
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc
        note = " (was stored before)" if receipt.duplicate else ""
        self.stdout.write(f"stored at offset {receipt.offset}{note}")


async def publish(inbox: Inbox, frame: Frame, msg_id: str | None) -> Receipt:
    """Store *frame* through a connection of its own."""
    broker = get_broker()
    await broker.open()
    try:
        await broker.wait_ready()
        return await broker.publish(inbox, frame.payload, kind=frame.kind, msg_id=msg_id)
    finally:
        await broker.close()
