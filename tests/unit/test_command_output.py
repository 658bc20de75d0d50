"""What commands print: safe for terminals, readable at 80 columns, plain in pipes."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
from typing import Any

import pytest
from django.core.management.base import CommandError, OutputWrapper
from rich.text import Text

from wsgateway.exceptions import (
    BrokerMisconfigured,
    BrokerUnavailable,
    MessageRefused,
    MessageTooBig,
    NameRefused,
    ServiceUnknown,
)
from wsgateway.management.exits import Exit, command_error
from wsgateway.management.output import Column, Level, Output, clock, safe, size

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
LONG = "web-7f9c5d-with-a-rather-long-host-name-1-a1b2"
COLUMNS = [
    Column("Gateway", whole=False),
    Column("Up", right=True),
    Column("Sockets", right=True),
    Column("State"),
    Column("Version", extra=True),
    Column("Last message", cut=True),
]
ROWS = [
    (LONG, "3 d 4 h", 12_345, Text("ready", style="green"), "0.1.0", "short"),
    ("gw", "5 s", 0, None, "0.1.0", "a message that does not fit into what is left of the line"),
]


class Stream(io.StringIO):
    """A standard output that is a terminal, or not."""

    def __init__(self, *, is_terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._is_terminal = is_terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


def output(stream: Stream, **options: Any) -> Output:
    return Output(OutputWrapper(stream), OutputWrapper(Stream(is_terminal=False)), **options)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """80 columns wide."""
    for name, value in (("COLUMNS", "80"), ("LINES", "25"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Stream(is_terminal=True)


def test_table_fits_a_terminal(terminal: Stream) -> None:
    output(terminal).table("Gateways", COLUMNS, ROWS)
    shown = terminal.getvalue()
    assert "\x1b[32mready" in shown
    lines = ESCAPE.sub("", shown).splitlines()
    assert lines[0] == "Gateways"
    assert max(map(len, lines)) <= 80
    assert "Version" not in lines[1]
    assert any("12,345" in line for line in lines)
    # What people copy is whole, on as many lines as it takes; a message has one
    assert "".join(line.split(" ")[0] for line in lines[3:5]) == LONG
    assert lines[-1].startswith("gw ")
    assert lines[-1].endswith("…")


def test_wide_terminal_shows_more(terminal: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    output(terminal).table("", COLUMNS, ROWS)
    assert "Version" in terminal.getvalue()


def test_pipe_gets_everything_without_colours_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(is_terminal=False)
    output(stream).table("", COLUMNS, [*ROWS, ("x" * 300, "", 1, Level(0.421), "", "")])
    header, first, second, last = stream.getvalue().splitlines()
    assert header.split("  ")[0] == "Gateway"
    assert re.split(r" {2,}", first) == [LONG, "3 d 4 h", "12345", "ready", "0.1.0", "short"]
    assert re.split(r" {2,}", second) == ["gw", "5 s", "0", "-", "0.1.0", ROWS[1][5]]
    assert re.split(r" {2,}", last) == ["x" * 300, "1", "42%"]
    assert "\x1b" not in stream.getvalue()


def test_table_without_rows_says_so() -> None:
    stream = Stream(is_terminal=False)
    output(stream).table("", COLUMNS, [], empty="No gateway answers.")
    assert stream.getvalue() == "No gateway answers.\n"


def test_nothing_a_user_wrote_reaches_the_terminal(terminal: Stream) -> None:
    """Names and messages could clear the screen, change its title, or pretend to be output."""
    evil = "\x1b]0;owned\x07\x9b2J\u202eabc\r\nx"
    out = output(terminal)
    out.table("", [Column("User", whole=False), Column("Text", whole=False)], [(evil, evil)])
    out.line(safe(evil, lines=True))
    text = ESCAPE.sub("", terminal.getvalue())
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert r"\x1b]0;owned\x07\x9b2J\u202eabc\r" in text.replace("\n", "").replace(" ", "")


def test_markup_of_a_user_is_text(terminal: Stream) -> None:
    output(terminal).table("", [Column("User")], [("[red]ann[/red] :smile:",)])
    assert "[red]ann[/red] :smile:" in ESCAPE.sub("", terminal.getvalue())


def test_json_is_all_there_is() -> None:
    stream = Stream(is_terminal=True)
    out = output(stream, as_json=True)
    out.table("", COLUMNS, ROWS)
    out.line("words")
    out.document({"since": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "user": "\x9bü"})
    assert json.loads(stream.getvalue()) == {"since": "2026-01-02T03:04:05Z", "user": "\x9bü"}
    assert stream.getvalue().isascii()


def test_records_are_lines() -> None:
    stream = Stream(is_terminal=False)
    out = output(stream, as_json=True)
    out.tell("orders: ready", event="ready", service="orders")
    out.tell("orders: ended", event="ended", service="orders")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["ready", "ended"]


def test_colours_can_be_refused(terminal: Stream) -> None:
    output(terminal, color=False).table("Gateways", COLUMNS, ROWS)
    assert "\x1b" not in terminal.getvalue()


def test_encoding_without_our_characters() -> None:
    """A locale of plain ASCII ended a command with UnicodeEncodeError."""
    stream = Stream(is_terminal=False, encoding="ascii")
    out = output(stream)
    out.table("", [Column("User")], [("jürgen",)])
    out.line("jürgen")
    assert stream.getvalue().splitlines() == ["User", r"j\xfcrgen", r"j\xfcrgen"]


def test_nobody_can_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stream(is_terminal=False))
    out = output(Stream(is_terminal=False))
    out.confirm("Delete all?", interactive=False)
    with pytest.raises(CommandError, match="--no-input") as error:
        out.confirm("Delete all?", interactive=True)
    assert error.value.returncode == Exit.USAGE


def test_size() -> None:
    assert [size(n) for n in (0, 1, 999, 1000, 81_234_567)] == [
        "0 B",
        "1 B",
        "999 B",
        "1.0 kB",
        "81.2 MB",
    ]


def test_clock(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    assert clock("2026-01-02T03:04:05.123456789Z") == "2026-01-02 04:04:05"
    assert clock("") == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerUnavailable("x"), Exit.UNAVAILABLE),
        (BrokerMisconfigured("x"), Exit.FAILED),
        (ServiceUnknown("x"), Exit.UNKNOWN),
        (NameRefused("x"), Exit.USAGE),
        (MessageTooBig(2, 1), Exit.USAGE),
        (MessageRefused("x"), Exit.FAILED),
        (ValueError("x"), Exit.USAGE),
    ],
)
def test_exit_codes(error: Exception, code: Exit) -> None:
    assert command_error(error).returncode == code
    assert str(command_error(error)) == str(error)
