"""What commands print: tables for people, JSON for programs, notes, progress, questions.

Results go to standard output. What is only for people who watch goes to standard error, so that
it never gets into a pipe or a file.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from django.core.management.base import CommandError, OutputWrapper
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone
from rich import box, filesize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from wsgateway.management.exits import Exit
from wsgateway.readable import count

__all__ = ["Column", "Level", "Output", "Steps", "clock", "safe", "size"]

WIDE = 100_000
"""Columns of what is not a terminal: nothing is wrapped or cut there."""

GAP = 2
"""Spaces between two columns of a table."""
LEAST = 20
"""Columns that a cell has at least, however narrow the terminal is."""
LEVEL_WIDTH = 8
HIGH, FULL = 0.8, 0.95
"""From where on a level is a warning, and where publishers are refused."""
ROOMY = 120
"""Columns of a terminal that has room for what matters less."""


def safe(text: str, *, lines: bool = False) -> str:
    """Return *text* so that it does nothing to a terminal: what cannot be printed is escaped.

    Args:
        text: Anything, for example what a user wrote.
        lines: Keep line breaks and tabs.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )


def size(number: int) -> str:
    """Return bytes as people read them: ``1.2 MB``."""
    return filesize.decimal(number).replace("bytes", "B").replace("byte", "B")


def clock(moment: dt.datetime | str) -> str:
    """Return a moment in the project's time zone, to the second.

    Args:
        moment: Aware; as text, in the form of RFC 3339.
    """
    if isinstance(moment, str):
        if not moment:
            return ""
        moment = dt.datetime.fromisoformat(moment)
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S")


class Level(NamedTuple):
    """How much of a limit is used: a percentage, on a terminal with a bar."""

    part: float

    def bar(self) -> Text:
        """Return the bar."""
        filled = min(LEVEL_WIDTH, round(self.part * LEVEL_WIDTH))
        color = "green" if self.part < HIGH else "yellow" if self.part < FULL else "red"
        rest = "━" * (LEVEL_WIDTH - filled)
        return Text.assemble(("━" * filled, color), (rest, "bright_black"), f" {self.part:>4.0%}")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Its heading.
        right: Whether it holds numbers.
        whole: Whether it is never wrapped, however narrow the terminal is.
        extra: Whether terminals leave it out that are narrower than `ROOMY`.
        cut: Whether a terminal cuts what does not fit, so that each row has one line.
    """

    title: str
    right: bool = False
    whole: bool = True
    extra: bool = False
    cut: bool = False


Cell = str | int | Level | Text | None
"""What a table shows; a number is grouped for people, and None is a dash."""


class Steps(Protocol):
    """How far something is."""

    def __call__(self, done: int, total: int | None = None, what: str | None = None, /) -> None: ...


class _Stream:
    """A command's standard output or error as Rich wants it, which ends its lines itself."""

    def __init__(self, wrapper: OutputWrapper) -> None:
        self._wrapper = wrapper
        self.encoding = getattr(wrapper, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._wrapper.isatty()

    def write(self, text: str) -> None:
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._wrapper.write(text, style_func=str, ending="")

    def flush(self) -> None:
        self._wrapper.flush()


def _console(wrapper: OutputWrapper, color: bool | None) -> Console:
    stream: Any = _Stream(wrapper)
    is_terminal = stream.isatty() or bool(color)
    return Console(
        file=stream,
        color_system=None if color is False else "auto",
        force_terminal=is_terminal,
        width=None if stream.isatty() else WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Output:
    """Where a command prints.

    What describes results in words or tables does nothing with ``--json``; `document` and `record`
    do nothing without.

    Args:
        stdout: The command's standard output.
        stderr: The command's standard error.
        color: False: no colours; True: colours even if it is not a terminal; None: as it is.
        as_json: Whether ``--json`` was given.
    """

    def __init__(
        self,
        stdout: OutputWrapper,
        stderr: OutputWrapper,
        *,
        color: bool | None = None,
        as_json: bool = False,
    ) -> None:
        self._stdout = _Stream(stdout)
        self._console = _console(stdout, color)
        self._notes = _console(stderr, color)
        self.as_json = as_json
        self.is_terminal = self._stdout.isatty()
        """Whether results go to a terminal, not to a pipe or file."""
        self.is_watched = self._notes.is_terminal
        """Whether somebody sees progress."""

    # -- for programs --------------------------------------------------------------------

    def document(self, value: Any) -> None:
        """With ``--json``, print the command's one result."""
        if self.as_json:
            self._write(json.dumps(value, cls=DjangoJSONEncoder, indent=2))

    def record(self, value: Any) -> None:
        """With ``--json``, print one of many results, on a line of its own, at once."""
        if self.as_json:
            self._write(json.dumps(value, cls=DjangoJSONEncoder))

    def tell(self, text: str, /, **fields: object) -> None:
        """Print what just happened, in words or as a record, at once."""
        self.record(fields)
        self.line(text)

    def _write(self, text: str) -> None:
        self._stdout.write(f"{text}\n")
        self._stdout.flush()

    # -- for people ----------------------------------------------------------------------

    def line(self, text: str | Text = "") -> None:
        """Print a line, as wide as it is: a terminal wraps it, and it can be copied whole."""
        if self.as_json:
            return
        if isinstance(text, str):
            self._write(text)
        else:
            self._console.print(text, soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], empty: str = ""
    ) -> None:
        """Print a table.

        Args:
            title: Its heading; empty: none.
            columns: What it has.
            rows: What is in them; text is made `safe`.
            empty: What to print instead if there are no rows.
        """
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        if self.is_terminal:  # whose box has a space between columns
            table.box, table.border_style = box.SIMPLE_HEAD, "dim"
            table.show_edge, table.padding = False, (0, GAP - 1, 0, 0)
        shown = [not column.extra or self._console.width >= ROOMY for column in columns]
        chosen = list(itertools.compress(columns, shown))
        cells = [[self._cell(cell) for cell in itertools.compress(row, shown)] for row in rows]
        widths = [
            max(cell.cell_len for cell in column)
            for column in zip(*([Text(each.title) for each in chosen], *cells), strict=True)
        ]
        for column, width in zip(chosen, widths, strict=True):
            room = self._console.width - sum(widths) - GAP * (len(widths) - 1) + width
            justify: Any = "right" if column.right else "left"
            table.add_column(
                column.title,
                justify=justify,
                no_wrap=column.whole,
                overflow="ellipsis" if column.cut else "fold",
                max_width=max(room, LEAST) if column.cut else None,
            )
        for row in cells:
            table.add_row(*row)
        if title:
            self.line(Text(title, style="bold cyan"))
        if not table.row_count:
            self.line(empty)
            return
        self._print(table)

    def _cell(self, cell: Cell) -> Text:
        if isinstance(cell, Text):
            return cell
        if cell is None:
            return Text("-", style="dim")
        if isinstance(cell, Level):
            return cell.bar() if self.is_terminal else Text(f"{cell.part:.0%}")
        if isinstance(cell, int):
            return Text(count(cell) if self.is_terminal else str(cell))
        return Text(safe(cell))

    def block(self, title: str, fields: Iterable[tuple[str, Cell]]) -> None:
        """Print something that has too many fields for the line of a table."""
        if self.as_json:
            return
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for name, cell in fields:
            table.add_row(Text(f"  {name}", style="dim"), self._cell(cell))
        self.line(Text(safe(title), style="bold"))
        self._print(table)

    def _print(self, table: Table) -> None:
        """Print a table without the spaces that fill its last column."""
        with self._console.capture() as printed:
            self._console.print(table)
        for text in printed.get().splitlines():
            self._write(text.rstrip())

    def note(self, text: str) -> None:
        """Tell people something that does not belong to the result, on standard error."""
        self._notes.print(Text(text, style="yellow"), soft_wrap=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Steps]:
        """Show on a terminal how far something long is, and nothing once it is over.

        Args:
            what: What is done.

        Yields:
            A function that takes how many steps are done so far, how many there are in all, or
            None if that is not known, and what is done if that changes.
        """
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._notes,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self.is_watched,
        ) as progress:
            task = progress.add_task(what, total=None)

            def steps(done: int, total: int | None = None, now: str | None = None, /) -> None:
                progress.update(task, description=now or what, completed=done, total=total)

            yield steps

    @property
    def somebody_answers(self) -> bool:
        """Whether a question would reach a person."""
        return sys.stdin.isatty()

    def confirm(self, question: str, *, interactive: bool) -> None:
        """Ask before something is lost.

        Args:
            question: What will happen, without a question mark's options.
            interactive: False: somebody has said yes already.

        Raises:
            CommandError: The answer is no, or nobody is there to answer.
        """
        if not interactive:
            return
        if not self.somebody_answers:
            raise CommandError(
                "standard input is not a terminal, so no one can confirm this; pass --no-input",
                returncode=Exit.USAGE,
            )
        try:
            agreed = Confirm.ask(Text(safe(question)), console=self._notes, default=False)
        except EOFError:
            agreed = False
        if not agreed:
            raise CommandError("nothing was done", returncode=Exit.FAILED)
