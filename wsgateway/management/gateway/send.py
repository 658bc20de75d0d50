"""``manage.py gateway send``: store a message for a user, or in a topic."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from wsgateway.management.arguments import add_address
from wsgateway.management.base import Action, Options
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.management.sending import add_options, send_and_tell
from wsgateway.protocol import strict_json

__all__ = ["Send"]


class Send(Action):
    """Store one message."""

    name = "send"
    help = "store a message for a user, or in a topic; open sockets get it at once, others later"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define recipient, message and options."""
        add_address(parser)
        parser.add_argument("data", metavar="DATA", help="the message; - reads standard input")
        parser.add_argument(
            "--type",
            choices=("text", "json", "binary"),
            default="text",
            help="what it is; json is text that is checked first",
        )
        add_options(parser)

    def run(self, out: Output, options: Options) -> None:
        """Send, and print the offset."""
        raw = options["data"]
        data = sys.stdin.buffer.read() if raw == "-" else raw.encode(errors="surrogateescape")
        send_and_tell(out, options, _message(data, options["type"]))


def _message(data: bytes, kind: str) -> dict[str, Any]:
    """Return *data* as `wsgateway.send` takes it."""
    if kind == "binary":
        return {"bytes": data}
    try:
        text = data.decode()
        if kind == "json":
            strict_json.loads(text)
    except (ValueError, RecursionError) as exc:
        what = "JSON" if kind == "json" else "UTF-8; use --type binary"
        raise CommandError(f"the message is not {what} ({exc})", returncode=Exit.USAGE) from exc
    return {"text": text}
