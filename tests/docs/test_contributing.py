"""CONTRIBUTING.md: what it names exists, and its test and its commands run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import ROOT, Gateway
from wsgateway.broker.nats.broker import NatsBroker

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w.]+/[\w./-]*)`", PAGE))))
def test_path_exists(path: str) -> None:
    if path not in (".cache/bin", "build/site"):  # made by commands
        assert (ROOT / path).exists()


@pytest.mark.parametrize(
    ("path", "name"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
)
def test_test_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.M)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M))))
def test_fixture_exists(name: str) -> None:
    conftest = (ROOT / "tests/conftest.py").read_text()
    for each in re.findall(r"\w+", name):
        assert re.search(rf"^@pytest\.fixture.*\n(async )?def {each}\(", conftest, re.M)


async def test_test_on_the_page_passes(gateway: Gateway, broker: NatsBroker) -> None:
    block = re.search(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)
    await names["test_stored_message_arrives"](gateway, broker)
