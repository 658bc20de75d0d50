"""``manage.py publish service user text``: put a message into a user's inbox."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.exceptions import WsGatewayError
from wsgateway.publish import send


class Command(BaseCommand):
    """Publishes one frame and prints its offset."""

    help = "Stores a message for a user; prints its offset once it is stored."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define recipient, message and options."""
        parser.add_argument("service")
        parser.add_argument("user")
        parser.add_argument("text", help="the message; - reads a binary frame from standard input")
        parser.add_argument("--id", help="message id: the same id is stored only once")
        parser.add_argument("--ttl", type=float, help="seconds until the message is removed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Publish."""
        text = options["text"]
        data = {"bytes": sys.stdin.buffer.read()} if text == "-" else {"text": text}
        to = options["service"], options["user"]
        try:
            receipt = send(*to, **data, msg_id=options["id"], ttl=options["ttl"])
        except (WsGatewayError, ValueError) as exc:
            raise CommandError(str(exc)) from exc
        note = " (was stored before)" if receipt.duplicate else ""
        self.stdout.write(f"stored at offset {receipt.offset}{note}")
