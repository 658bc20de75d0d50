"""docs/explanation/security.md: each threat names tests, and they exist."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

HEADER = "| threat | what wsgateway does | what you must do | tests |"
NAME = r"`(tests/[\w/]+\.py)::(\w+)`"


def threats() -> list[list[str]]:
    lines = (ROOT / "docs/explanation/security.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and line != HEADER]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


@pytest.mark.parametrize("row", threats(), ids=lambda row: row[0])
def test_every_threat_has_tests_that_exist(row: list[str]) -> None:
    threat, done, _, tests = row
    assert threat
    assert done
    named = re.findall(NAME, tests)
    assert named
    assert re.sub(NAME, "", tests).strip(", ") == ""
    for path, name in named:
        source = (ROOT / path).read_text()
        assert re.search(rf"^\s*(async )?def {name}\(", source, re.M), name


def test_every_package_is_pinned() -> None:
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            if line and not line.lstrip().startswith("#"):
                assert re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[^=\s]+( ; .*)?$", line), line


def test_the_javascript_client_loads_nothing() -> None:
    source = (ROOT / "wsgateway/static/wsgateway/wsgateway.js").read_text()
    assert not re.search(r"^\s*(import|export \* from)\b|\bimport\(|https?://", source, re.M)
