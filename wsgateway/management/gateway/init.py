"""``manage.py gateway init``: what this project lacks to serve websockets."""

from __future__ import annotations

from argparse import ArgumentParser

from rich.text import Text

from wsgateway.management.base import Action, Options
from wsgateway.management.output import Output
from wsgateway.management.project import Step, find_missing, next_commands

__all__ = ["Init"]


class Init(Action):
    """Say what to add. Changes nothing."""

    name = "init"
    help = "print what this project lacks to serve websockets; it changes no files"
    asks_broker = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Do without the system checks: this asks them itself."""
        parser.set_defaults(skip_checks=True)

    def run(self, out: Output, options: Options) -> None:
        """Print the steps, then the commands that follow."""
        steps = find_missing()
        commands = next_commands()
        out.document({"missing": [step._asdict() for step in steps], "next": commands})
        if not steps:
            out.line("Nothing is missing.")
        for step in steps:
            _show(out, step)
        out.line()
        out.line(Text("Then" if steps else "Next", style="bold cyan"))
        out.line()
        width = max(len(command) for command, _ in commands)
        for command, why in commands:
            out.line(f"    {command:<{width}}  # {why}")


def _show(out: Output, step: Step) -> None:
    out.line(Text(step.text, style="bold"))
    out.line()
    for line in step.code.splitlines():
        out.line(f"    {line}" if line else "")
    if step.code:
        out.line()
