"""docs/reference/commands.md against the commands' parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest
from django.core.management import find_commands, load_command_class
from django.core.management.base import BaseCommand

from tests.support import ROOT
from wsgateway.management.exits import Exit

DOCUMENT = (ROOT / "docs/reference/commands.md").read_text()
APPS = ("wsgateway", "wsgateway.outbox")
COMMANDS = {
    name: app
    for app in APPS
    for name in find_commands(str(ROOT / app.replace(".", "/") / "management"))
}


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a parser takes, which it tells only who formats its help."""
    found: list[argparse.Action] = []

    class Recorder(argparse.HelpFormatter):
        def add_argument(self, action: argparse.Action) -> None:
            found.append(action)

    parser.formatter_class = Recorder
    parser.format_help()
    parser.formatter_class = argparse.HelpFormatter
    return found


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command, and each action of one, with what parses its arguments."""
    for name in COMMANDS:
        yield from within(
            name, load_command_class(COMMANDS[name], name).create_parser("manage.py", name)
        )


def within(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the actions of a command or of an action; itself if it has none."""
    choices = [action.choices for action in arguments(parser)]
    actions = next((each for each in choices if isinstance(each, dict)), {})
    for action, each in actions.items():
        yield from within(f"{name} {action}", each)
    if not actions:
        yield name, parser


COMMON = {"--json"} | {
    option
    for action in arguments(BaseCommand().create_parser("manage.py", "x"))
    for option in action.option_strings
}
"""Options that every command has."""


def table(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Return the rows that document *parser*."""
    return [
        (shown(action), str(action.help))
        for action in arguments(parser)
        if not COMMON & set(action.option_strings)
    ]


def shown(action: argparse.Action) -> str:
    """Return an argument as its row shows it."""
    value = action.metavar or action.dest.upper()
    if action.choices is not None:
        value = f"{{{','.join(action.choices)}}}"
    if action.option_strings:
        names = ", ".join(f"`{option}`" for option in action.option_strings)
        return names if action.nargs == 0 else f"{names[:-1]} {value}`"
    many = "…" if action.nargs in ("*", "+") else ""
    return f"`[{value}{many}]`" if action.nargs in ("*", "?") else f"`{value}{many}`"


def section(name: str) -> str:
    """Return what the document says of a command or an action."""
    found = re.search(rf"^##+ {name}\n(.*?)(?=^##|\Z)", DOCUMENT, re.S | re.M)
    assert found is not None, f"docs/reference/commands.md has no section {name!r}"
    return found[1]


PARSERS = dict(parsers())


@pytest.mark.parametrize("name", PARSERS)
def test_every_argument_is_documented(name: str) -> None:
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", section(name), re.M)
    assert rows == table(PARSERS[name])


@pytest.mark.parametrize("name", PARSERS)
def test_every_argument_has_help(name: str) -> None:
    assert all(text != "None" for _, text in table(PARSERS[name]))


def test_every_exit_code_is_documented() -> None:
    codes = re.findall(r"^\| (\d+) \| ", DOCUMENT, re.M)
    assert codes == ["0", *(str(int(code)) for code in Exit)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_print_json(name: str) -> None:
    parsers = [each for command, each in PARSERS.items() if command.split()[0] == name]
    assert all("--json" in parser.format_help() for parser in parsers)
