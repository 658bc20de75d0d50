"""docs/reference/python-api.md has what users may import; the strict build reads the docstrings."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs/reference/python-api.md").read_text()
DOCUMENTED = set(re.findall(r"^\.\. auto\w+:: (wsgateway[\w.]*)", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    "module",
    [
        "wsgateway",
        "wsgateway.client",
        "wsgateway.exceptions",
        "wsgateway.health_checks",
        "wsgateway.layer",
        "wsgateway.outbox",
        "wsgateway.presence",
        "wsgateway.signals",
        "wsgateway.testing",
        "wsgateway.topics",
    ],
)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    public = importlib.import_module(module).__all__
    assert [name for name in public if f"{module}.{name}" not in DOCUMENTED] == []


@pytest.mark.parametrize("path", sorted(DOCUMENTED))
def test_documented_name_is_public(path: str) -> None:
    """A page that names something private promises it to users."""
    module, _, name = path.rpartition(".")
    assert name in importlib.import_module(module).__all__
