"""What all commands share: ``--json``, questions, exit codes, and actions as subcommands."""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload

from wsgateway.conf import settings
from wsgateway.management.exits import EXPECTED, Exit, command_error
from wsgateway.management.output import Output

__all__ = [
    "Action",
    "ActionCommand",
    "ActionGroup",
    "Options",
    "OutputCommand",
    "add_json",
    "add_no_input",
]

Options = dict[str, Any]


def add_json(parser: ArgumentParser) -> None:
    """Define ``--json``."""
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="print JSON, for programs"
    )


def add_no_input(parser: ArgumentParser) -> None:
    """Define ``--no-input``, as Django's own commands have it."""
    parser.add_argument(
        "--no-input",
        "--noinput",
        "--yes",
        action="store_false",
        dest="interactive",
        help="do not ask for confirmation",
    )


class OutputCommand(BaseCommand):
    """A command that prints through `Output` and fails with the codes of `Exit`.

    Attributes:
        is_long: Whether it runs until a signal, so that its log tells more than its output.
    """

    is_long = False
    _is_process = False  # whether the whole process is there for it

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as ``manage.py`` does."""
        self._is_process = True
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run; if a change broke the code, wait for the next one, as ``runserver`` does."""
        try:
            return super().execute(*args, **options)
        except Exception as exc:
            if not self._is_reloaded(options):
                raise
            autoreload.run_with_reloader(_fail, exc)
            return None

    def _is_reloaded(self, options: Options) -> bool:
        is_child = os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"
        return self.is_long and self._is_process and is_child and not options["noreload"]

    def handle(self, *args: Any, **options: Any) -> None:
        """Run, with the errors that an operator can mend as one line."""
        if self._is_process and not self.is_long and options["verbosity"] < 2:
            # That it connected is not what anybody wants to read above a table
            logging.getLogger("wsgateway").setLevel(logging.WARNING)
        color = False if options["no_color"] else options["force_color"] or None
        out = Output(self.stdout, self.stderr, color=color, as_json=options.get("as_json", False))
        try:
            self.run(out, options)
        except EXPECTED as exc:
            raise command_error(exc) from exc
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # Nobody reads on, as with ``| head``; Python would complain of it again as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(Exit.FAILED) from None

    def run(self, out: Output, options: Options) -> None:
        """Do what the command is for."""
        raise NotImplementedError


def _fail(exc: Exception) -> None:
    """Raise *exc* where the reloader sees it: it then watches the file, too."""
    raise exc


class Action(ABC):
    """One thing that a command does.

    Attributes:
        name: What follows the command's name.
        help: One sentence.
        asks_broker: Whether its result comes from the broker.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    asks_broker: ClassVar[bool] = True

    def add_arguments(self, parser: ArgumentParser) -> None:  # noqa: B027 - some have none
        """Define what it takes, besides ``--json``."""

    @abstractmethod
    def run(self, out: Output, options: Options) -> None:
        """Do it, and print the result."""


class ActionGroup(Action):
    """An action whose first argument says what it does."""

    actions: ClassVar[Iterable[Action]]

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the actions."""
        _add_actions(parser, self.actions, self._dest)

    def run(self, out: Output, options: Options) -> None:
        """Do the action."""
        _chosen(self.actions, options[self._dest]).run(out, options)

    @property
    def _dest(self) -> str:
        return f"{self.name}_action"


def _add_actions(parser: ArgumentParser, actions: Iterable[Action], dest: str) -> None:
    parsers = parser.add_subparsers(dest=dest, required=True, metavar="ACTION")
    for action in actions:
        subparser = parsers.add_parser(
            action.name,
            help=action.help,
            description=f"{action.help[0].upper()}{action.help[1:]}.",
        )
        action.add_arguments(subparser)
        if not isinstance(action, ActionGroup):
            add_json(subparser)


def _chosen(actions: Iterable[Action], name: str) -> Action:
    return next(each for each in actions if each.name == name)


class ActionCommand(OutputCommand):
    """A command whose first argument says what it does."""

    actions: ClassVar[Iterable[Action]]

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the actions."""
        _add_actions(parser, self.actions, "action")

    def run(self, out: Output, options: Options) -> None:
        """Do the action."""
        action = _chosen(self.actions, options["action"])
        if action.asks_broker and settings.BROKER == "memory":
            out.note(
                "PUBSUB_BROKER is 'memory', so this command knows only its own process. "
                "Use nats to see gateways and workers."
            )
        action.run(out, options)
