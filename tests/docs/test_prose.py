"""Documents, docstrings, comments and messages avoid what reads as translated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

SUFFIXES = {".py", ".md", ".html", ".js", ".yaml", ".yml", ".conf", ".service", ".example"}
PAGES = [
    path
    for folder in ("wsgateway", "project", "docs", "deploy", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES
] + sorted(ROOT.glob("*.md"))
UNIDIOMATIC = re.compile(
    r"\b(?:anew|shall|meanwhile|whoever|take note|for the sake of)\b"
    r"|\b(?:what is none|in order to|an own)\b"
    r"|(?<!there )\b(?:is|are) no (?!longer\b|more\b)"
    r"|(?<!is )(?<!are )\balso (?:if|when|while|after|before|without|during)\b"  # even if
    r"|\b(?:made|begun) again\b|\bstands? still\b|\bwithout end\b"  # recreated, hangs, forever
    r"|\b(?:allow|enable|permit)s? to [a-z]",  # allows you to
    re.IGNORECASE,
)
FILLER = re.compile(
    r"\b(?:simply|easily|powerful|seamless\w*|robust\w*|leverag\w+|utili[sz]\w+"
    r"|please note|note that|blazing\w*|obviously|of course|basically)\b"
    r"|\bstraightforward\w*|\bas is well known\b",
    re.IGNORECASE,
)
UNSPOKEN = re.compile(
    r"\b(?:some|no|any|every)body\b"  # someone, no one; or what it is: "no gateway"
    r"|, too(?=[,.:;)]|$)|\bfor ever\b"  # drop the comma, or say "also"
    r"|\b(?:is|are) back(?=[,.:;)]|$)"  # comes back
    r"|\b(?:the|and|to|a) cures?\b|\bthe other way round\b",  # the fix; vice versa
    re.IGNORECASE,
)
DOCUMENTS = [path for path in PAGES if path.suffix == ".md"]
LONGEST = 45
"""Words of a sentence. What needs more wants to be two."""


def prose_of(page: str) -> Iterator[str]:
    """Yield the paragraphs and items of a page, without code, tables and the targets of links."""
    page = re.sub(r"^```.*?^```$|<!--.*?-->", "", page, flags=re.S | re.M)
    page = re.sub(r"`[^`\n]*`", "x", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page))
    part: list[str] = []
    for line in [*page.splitlines(), ""]:
        is_item = re.match(r"\s*(?:[-*>]|\d+\.) ", line)
        if not line.strip() or line[0] in "#|!" or is_item:
            yield " ".join(part)
            part = []
        if line.strip() and line[0] not in "#|!":
            part.append(line[is_item.end() :] if is_item else line)


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?:·])[*_)\"”]*\s+", paragraph)


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_prose_is_idiomatic(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line}" for number, line in lines if UNIDIOMATIC.search(line)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p in DOCUMENTS])
def test_page_reads_as_spoken_without_filler_or_sentences_of_two_breaths(path: Path) -> None:
    paragraphs = [*prose_of(path.read_text())]
    assert [found[0] for text in paragraphs for found in FILLER.finditer(text)] == []
    assert [found[0] for text in paragraphs for found in UNSPOKEN.finditer(text)] == []
    found = [each for text in paragraphs for each in sentences(text)]
    assert [each for each in found if len(each.split()) > LONGEST] == []


def test_long_sentence_is_found_across_lines_and_code_is_not() -> None:
    long = " ".join(["word"] * 30)
    code = f"```sh\n{long} {long}\n```"
    page = f"# Title\n\n- {long}\n  {long}.\n\n| {long} {long} |\n\n{code}\n\nEnd. {long}\n"
    counts = [len(each.split()) for text in prose_of(page) for each in sentences(text) if each]
    assert counts == [60, 1, 30]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("a name that is no token", True),
        ("Meanwhile, it waits", True),
        ("there is no server", False),
        ("it is no longer open", False),
        ("It works, also if the connection is lost", True),
        ("It is also when clients reconnect", False),
        ("The stream was made again", True),
        ("This allows to send", True),
        ("This allows you to send", False),
    ],
)
def test_the_pattern_finds_what_it_should(text: str, is_found: bool) -> None:
    assert bool(UNIDIOMATIC.search(text)) is is_found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("until somebody asks", True),
        ("Workers keep it, too.", True),
        ("it is next, too early, or known", False),
        ("once NATS is back.", True),
        ("is back to normal", False),
        ("errors that name the cure", True),
    ],
)
def test_what_no_native_says_is_found(text: str, is_found: bool) -> None:
    assert bool(UNSPOKEN.search(text)) is is_found
