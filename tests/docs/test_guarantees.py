"""docs/explanation/guarantees.md: what it names exists, and no reason of a welcome is left out."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from wsgateway.conf import SETTINGS
from wsgateway.protocol.v1 import Reason

PAGE = (ROOT / "docs/explanation/guarantees.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", PAGE))))
def test_tests_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(WSGATEWAY_\w+)", PAGE))))
def test_settings_exist(name: str) -> None:
    assert name in SETTINGS


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained(reason: Reason) -> None:
    assert f"reason `{reason}`" in PAGE


@pytest.mark.parametrize(
    ("name", "unit", "scale"),
    [
        ("WSGATEWAY_INBOX_MAX_AGE", "days", 86400),
        ("WSGATEWAY_CURSOR_MAX_AGE", "days", 86400),
        ("WSGATEWAY_CURSOR_INTERVAL", "s", 1),
        ("WSGATEWAY_DUPLICATE_WINDOW", "s", 1),
        ("WSGATEWAY_ROSTER_TTL", "s", 1),
        ("WSGATEWAY_INBOX_MAX_MESSAGES", "", 1),
        ("WSGATEWAY_MAX_DEVICES_PER_USER", "", 1),
    ],
)
def test_defaults_are_those_of_the_settings(name: str, unit: str, scale: int) -> None:
    value = f"{SETTINGS[name].default / scale:,g}"
    if unit == "":
        value = f"{SETTINGS[name].default:,}"
    assert f"`{name}` ({value}{' ' + unit if unit else ''})" in PAGE
