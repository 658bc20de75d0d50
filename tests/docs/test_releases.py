"""docs/explanation/releases.md and CHANGELOG.md: what they promise is what the package says."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support import ROOT
from wsgateway import __version__
from wsgateway.broker.embedded import LEAST_VERSION
from wsgateway.broker.nats.versions import TRIED
from wsgateway.conf import SETTINGS

PAGE = (ROOT / "docs/explanation/releases.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/.]+)`", PAGE))))
def test_tests_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_supported_versions_are_those_of_the_package() -> None:
    ranges = {each.partition(">=")[0]: each.partition(">=")[2] for each in PROJECT["dependencies"]}
    for name, least in (
        ("Python", PROJECT["requires-python"].removeprefix(">=")),
        ("Django", ranges["Django"]),
        ("Channels", ranges["channels"]),
        ("NATS", f"{LEAST_VERSION[0]}.{LEAST_VERSION[1]}"),
    ):
        assert f"| {name} | {least} and newer |" in PAGE
    assert f"| nats-py | {TRIED} only" in PAGE


def test_changelog_begins_with_the_version_of_the_package() -> None:
    found = re.search(r"^## ([\d.]+) \((unreleased|\d{4}-\d{2}-\d{2})\)$", CHANGELOG, re.M)
    assert found
    assert found[1] == __version__


def test_changelog_names_settings_that_exist() -> None:
    assert set(re.findall(r"WSGATEWAY_[A-Z_]+", CHANGELOG)) <= set(SETTINGS)
