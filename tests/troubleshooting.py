"""The rows of ``docs/how-to/troubleshooting.md``, and which test provokes which.

To add a row, write it into a table of the document, the symptom in backticks and ``…`` for what
varies, and add a test, anywhere, which provokes it::

    @pytest.mark.troubleshooting("cannot reach NATS at …: connection refused")
    async def test_nobody_listens(symptom: Symptom, …) -> None:
        symptom.must_show_in(str(error.value))

The marker repeats what the row has in backticks; several pieces are joined by `` … ``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

DOCUMENT = ROOT / "docs/how-to/troubleshooting.md"
TESTS = ROOT / "tests"
HEAD = ["Symptom", "Cause", "Fix"]
GAP = "…"


class Row(NamedTuple):
    """A row of the document. Its symptom has ``…`` for what varies."""

    symptom: str
    cause: str
    fix: str


class Symptom:
    """What a row shows. A test that has one must compare it with what it provoked.

    Args:
        text: The row's, with ``…`` for what varies.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.compared = False

    def is_in(self, output: str) -> bool:
        """Say whether *output* shows it; line breaks and runs of spaces count as one space."""
        self.compared = True
        parts = [re.escape(" ".join(part.split())) for part in self.text.split(GAP)]
        return bool(re.search(".*".join(parts), " ".join(output.split())))

    def must_show_in(self, output: str) -> None:
        """Fail unless *output* shows it."""
        assert self.is_in(output), f"{self.text!r} is not in:\n{output}"


def rows() -> list[Row]:
    """Return the rows of every table in the document."""
    found = []
    for line in DOCUMENT.read_text().splitlines():
        if not line.startswith("| "):
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells == HEAD:
            continue
        assert len(cells) == len(HEAD), f"a row of {DOCUMENT.name} has three cells: {line}"
        assert all(cells), f"a cell is empty: {line}"
        seen = f" {GAP} ".join(re.findall(r"`([^`]+)`", cells[0]))
        assert seen, f"a symptom is in backticks: {line}"
        found.append(Row(seen, *cells[1:]))
    return found


def marked() -> Iterator[tuple[str, Path]]:
    """Return each ``pytest.mark.troubleshooting`` in the tests: its text, and where it is.

    A file with many of them may call it ``MARK``.
    """
    for path in TESTS.rglob("test_*.py"):
        if "mark.troubleshooting" not in path.read_text():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "pytest.mark.troubleshooting",
                "MARK",
            ):
                yield ast.literal_eval(node.args[0]), path
