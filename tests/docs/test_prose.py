"""Documents, docstrings, comments and messages avoid what reads as translated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

SUFFIXES = {".py", ".md", ".html", ".js"}
PAGES = [
    path
    for folder in ("wsgateway", "project", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES
] + sorted(ROOT.glob("*.md"))
UNIDIOMATIC = re.compile(
    r"\b(?:anew|shall|meanwhile|whoever|take note|for the sake of|what is none)\b"
    r"|(?<!there )\b(?:is|are) no (?!longer\b|more\b)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_prose_is_idiomatic(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line}" for number, line in lines if UNIDIOMATIC.search(line)] == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("a name that is no token", True),
        ("Meanwhile, it waits", True),
        ("there is no server", False),
        ("it is no longer open", False),
    ],
)
def test_the_pattern_finds_what_it_should(text: str, is_found: bool) -> None:
    assert bool(UNIDIOMATIC.search(text)) is is_found
