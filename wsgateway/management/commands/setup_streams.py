"""``manage.py setup_streams``: create the streams, and bring them in line with the settings."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser

from wsgateway.broker import runtime
from wsgateway.broker.base import Progress, no_progress
from wsgateway.conf import settings
from wsgateway.management.base import Options, OutputCommand, add_json
from wsgateway.management.output import Column, Output

__all__ = ["Command", "set_up"]


class Command(OutputCommand):
    """Sets the streams up; idempotent."""

    help = "Creates the streams, or brings them in line with the settings. Idempotent."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define what else happens, and how the result is printed."""
        parser.add_argument(
            "--restored",
            action="store_true",
            help="inboxes or topics come from a backup: void what clients know of their positions",
        )
        add_json(parser)

    def run(self, out: Output, options: Options) -> None:
        """Set up."""
        with out.progress("setting up streams") as steps:
            lines = asyncio.run(
                set_up(
                    lambda what, done, total: steps(done, total, what),
                    restored=options["restored"],
                )
            )
        done = [line.partition(": ")[::2] for line in lines]
        out.document([{"name": name, "result": result} for name, result in done])
        if out.is_terminal:
            out.table("", [Column("Stream"), Column("Result", whole=False)], done)
            return
        for line in lines:
            out.line(line)


async def set_up(progress: Progress = no_progress, *, restored: bool = False) -> list[str]:
    """Set the streams up; return a line for each. See `Broker.set_up`."""
    broker = runtime.current().broker
    try:
        return await broker.set_up(settings.ACK_WAIT, progress, restored=restored)
    finally:
        await runtime.close(broker)
