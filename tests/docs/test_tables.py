"""Tables in the documents against the code they describe."""

from __future__ import annotations

import re

from tests.support import ROOT
from wsgateway import exceptions
from wsgateway.conf import SETTINGS
from wsgateway.protocol.codes import CloseCode
from wsgateway.setting import Setting


def rows(document: str, *, first: str) -> list[list[str]]:
    """Return the table rows of *document* whose first cell matches *first*."""
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in (ROOT / "docs" / document).read_text().splitlines()
        if line.startswith("| ")
    ]
    return [row for row in cells if re.fullmatch(first, row[0])]


def shown(setting: Setting[object]) -> str:
    return f"`{setting.default!r}`"


def test_every_setting_is_documented_with_its_default() -> None:
    names = r"`(WSGATEWAY_\w+|PUBSUB_BROKER|NATS_BROKER_URL)`"
    table = [tuple(row) for row in rows("reference/settings.md", first=names)]
    assert table == [(f"`{name}`", shown(s), s.doc) for name, s in SETTINGS.items()]


def test_every_close_code_is_documented() -> None:
    table = rows("reference/errors.md", first=r"\d{4}")
    assert table == [
        [str(int(code)), str(code.raw), code.reason, "yes" if code.reconnect else "no"]
        for code in CloseCode
    ]


def test_every_exception_is_documented() -> None:
    table = {row[0].strip("`") for row in rows("reference/errors.md", first=r"`[A-Z]\w+`")}
    assert table == set(exceptions.__all__) - {"WsGatewayError", "BrokerError"}


def test_make_help_lists_every_target_that_readme_or_contributing_name() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"\bmake ([a-z]+)`", (ROOT / name).read_text())) <= targets


def test_no_pin_names_a_registry_or_a_machine() -> None:
    for path in ROOT.glob("requirements*"):
        assert not re.search(r"https?:|--index|--find-links|@ file|/tmp|/home", path.read_text())
