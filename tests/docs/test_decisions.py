"""docs/explanation/decisions: each record has its four parts, is listed, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDER = ROOT / "docs/explanation/decisions"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
PARTS = ["Context", "Decision", "What it costs", "What was rejected"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record_has_its_parts_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == PARTS
    assert len(text.split()) < 400, "half a page, or nobody reads it"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_paths_exist(path: Path) -> None:
    for name in re.findall(r"`((?:wsgateway|tests|docs)/[\w./-]+)`", path.read_text()):
        assert (ROOT / name).exists(), name


def test_index_lists_every_record_under_its_title() -> None:
    listed = re.findall(r"^(\d+)\. \[(.*)\]\((.*)\)$", (FOLDER / "index.md").read_text(), re.M)
    titles = {f"# {number}. {title}": name for number, title, name in listed}
    assert titles == {path.read_text().splitlines()[0]: path.name for path in RECORDS}
