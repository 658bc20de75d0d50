"""``manage.py setup_bridges NAME…``: create what bridges need on Kafka or RabbitMQ."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser
from typing import NamedTuple

from django.core.management.base import CommandError

from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.runner import bridges_to_run
from wsgateway.management.base import Options, OutputCommand, add_json
from wsgateway.management.exits import EXPECTED, Exit, command_error
from wsgateway.management.output import Column, Output

__all__ = ["Command"]

FAILED = "failed: "
"""How the line of a step begins that failed."""


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
            done = asyncio.run(_set_up(bridges))
        out.document(
            [
                {"bridge": each.bridge, "result": line, "failed": line.startswith(FAILED)}
                for each in done
                for line in each.lines
            ]
        )
        rows = [(each.bridge, line) for each in done for line in each.lines]
        if out.is_terminal:
            out.table("", [Column("Bridge"), Column("Result", whole=False)], rows)
        else:
            for bridge, result in rows:
                out.line(f"{bridge}: {result}")
        _check(done)


class _Done(NamedTuple):
    bridge: str
    lines: list[str]
    error: CommandError | None


async def _set_up(bridges: list[Bridge]) -> list[_Done]:
    """Set up each bridge, whatever becomes of the others."""
    done = []
    for bridge in bridges:
        try:
            done.append(_Done(bridge.name, await make_bus(bridge).set_up(), None))
        except EXPECTED as exc:
            lines = list(getattr(exc, "lines", ())) or [f"{FAILED}{exc}"]
            done.append(_Done(bridge.name, lines, command_error(exc)))
    return done


def _check(done: list[_Done]) -> None:
    """Fail if a bridge is not set up; with "try again" only if that helps each of them."""
    failed = {each.bridge: each.error for each in done if each.error is not None}
    if failed:
        codes = {error.returncode for error in failed.values()}
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        code = codes.pop() if len(codes) == 1 else Exit.FAILED
        raise CommandError(f"not set up: {reasons}", returncode=code)
