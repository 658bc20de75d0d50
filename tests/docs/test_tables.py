"""Tables in the documents against the code they describe."""

from __future__ import annotations

import re

import pytest

from tests.docs.reference import PAGES, duration
from tests.docs.reference import size as bytes_as_text
from tests.support import ROOT
from wsgateway import exceptions
from wsgateway.conf import SETTINGS
from wsgateway.protocol.codes import CloseCode


def rows(document: str, *, first: str) -> list[list[str]]:
    """Return the table rows of *document* whose first cell matches *first*."""
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in (ROOT / "docs" / document).read_text().splitlines()
        if line.startswith("| ")
    ]
    return [row for row in cells if re.fullmatch(first, row[0])]


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_what_the_code_says(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text == PAGES[name](text), "run `make reference`"


def test_every_setting_is_documented_once() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert sorted(re.findall(r"^### `(\w+)`$", page, re.MULTILINE)) == sorted(SETTINGS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.0, "1 second"),
        (0.5, "0.5 seconds"),
        (90.0, "90 seconds"),
        (120.0, "2 minutes (`120`)"),
        (86400.0, "1 day (`86400`)"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "`0`"), (-1, "`-1`"), (2**20, "1 MiB (`1048576`)"), (1000, "`1000`")]
)
def test_sizes_read_as_people_say_them(size: int, text: str) -> None:
    assert bytes_as_text(size) == text


def test_every_close_code_is_documented() -> None:
    table = rows("reference/errors.md", first=r"\d{4}")
    assert table == [
        [str(int(code)), str(code.raw), code.reason, "yes" if code.reconnect else "no"]
        for code in CloseCode
    ]


def test_every_exception_is_documented() -> None:
    table = {row[0].strip("`") for row in rows("reference/errors.md", first=r"`[A-Z]\w+`")}
    assert table == set(exceptions.__all__) - {"WsGatewayError", "BrokerError", "BusError"}


def test_make_help_lists_every_target_that_readme_or_contributing_name() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"\bmake ([a-z]+)`", (ROOT / name).read_text())) <= targets


def test_no_pin_names_a_registry_or_a_machine() -> None:
    for path in ROOT.glob("requirements*"):
        assert not re.search(r"https?:|--index|--find-links|@ file|/tmp|/home", path.read_text())
