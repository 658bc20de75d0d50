"""docs/reference/errors.md lists what bridges log and raise, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs/reference/errors.md").read_text()
SECTION = PAGE.partition("\n## Bridges\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (`.*?`) \|", SECTION, re.M)
DOCUMENTED = [text for row in ROWS for text in re.findall(r"`(.+?)`", row)]
ERRORS = {"BusUnavailable", "BusMisconfigured", "RecordRefused", "Outage"}
INNER = {
    "the bridge is closing",  # while it ends, where nothing reads it
    "not connected",
    "the bridge ends before the bus is back: …",
    "bridge … has no servers",  # the setting's check comes first
    "bridge …: …",  # a reason of the table follows
    "bridge …: … (…)",
}
THEIRS = re.compile("NOT_FOUND|ACCESS_REFUSED")
"""What RabbitMQ itself says."""


def text_of(node: ast.AST) -> str:
    """Return a text of the code, with an ellipsis for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each) for each in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def nodes() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "wsgateway/bridges").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))


def told() -> Iterator[str]:
    """Yield what errors and log lines say."""
    for node in nodes():
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            if name in ERRORS or owner in ("logger", "texts"):
                yield text_of(node.args[0])
        if isinstance(node, ast.Assign):  # a text that a variable holds
            text = text_of(node.value)
            if text.startswith("bridge …"):
                yield text


def plain(text: str) -> str:
    """Return a text without what a variable may hold, in the code or on the page."""
    return re.sub(r"(?:(?:Kafka|RabbitMQ) at |topic )?'?…'?", "…", " ".join(text.split()))


def longest(text: str) -> str:
    """Return what of a text does not vary, if it is long enough to be recognised."""
    parts = [part.strip(" :;.") for part in plain(text).split("…")]
    return max(parts, key=len)


TOLD = sorted({text for text in map(plain, told()) if re.match(".*[a-z]", text.partition(";")[0])})
CORPUS = "\n".join(plain(text_of(node)) for node in nodes())


@pytest.mark.parametrize("text", [each for each in DOCUMENTED if not THEIRS.search(each)])
def test_what_is_listed_is_told(text: str) -> None:
    assert longest(text) in CORPUS


@pytest.mark.parametrize("text", [each for each in TOLD if each not in INNER])
def test_what_is_told_is_listed(text: str) -> None:
    assert [each for each in DOCUMENTED if longest(each) and longest(each) in text]
