"""``manage.py publish service user text``: store a message for a user, or in a topic."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from wsgateway.management.base import Options, OutputCommand, add_json
from wsgateway.management.output import Output
from wsgateway.management.sending import add_options, send_and_tell

__all__ = ["Command"]


class Command(OutputCommand):
    """Publishes one frame and prints its offset."""

    help = "Stores a message for a user, or in a topic; prints its offset once it is stored."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define recipient, message and options."""
        parser.add_argument("service", help="the service")
        parser.add_argument("user", help="the user's name, or the topic's")
        parser.add_argument("text", help="the message; - reads a binary frame from standard input")
        add_options(parser)
        add_json(parser)

    def run(self, out: Output, options: Options) -> None:
        """Publish."""
        text = options["text"]
        data = {"bytes": sys.stdin.buffer.read()} if text == "-" else {"text": text}
        send_and_tell(out, options, data)
