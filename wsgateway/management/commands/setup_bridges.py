"""``manage.py setup_bridges NAME…``: create what bridges need on Kafka or RabbitMQ."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.runner import bridges_to_run
from wsgateway.management.base import Options, OutputCommand, add_json
from wsgateway.management.exits import Exit
from wsgateway.management.output import Column, Output

__all__ = ["Command"]


class Command(OutputCommand):
    """Sets bridges up; idempotent."""

    help = "Creates the topics, exchanges and queues that bridges need. Idempotent."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which bridges, and how the result is printed."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="bridges; default: all")
        add_json(parser)

    def run(self, out: Output, options: Options) -> None:
        """Set up."""
        try:
            bridges = bridges_to_run(options["names"])
        except LookupError as exc:
            raise CommandError(exc.args[0], returncode=Exit.UNKNOWN) from exc
        with out.progress("setting up bridges"):
            rows = asyncio.run(_set_up(bridges))
        out.document([{"bridge": bridge, "result": result} for bridge, result in rows])
        if out.is_terminal:
            out.table("", [Column("Bridge"), Column("Result", whole=False)], rows)
            return
        for bridge, result in rows:
            out.line(f"{bridge}: {result}")


async def _set_up(bridges: list[Bridge]) -> list[tuple[str, str]]:
    return [(each.name, line) for each in bridges for line in await make_bus(each).set_up()]
