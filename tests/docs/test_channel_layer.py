"""docs/reference/channel-layer.md: its keys are the constructor's, and its code runs."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from tests.pages import DocumentPage
from tests.support import ROOT
from wsgateway.layer.options import ConfiguredLayer
from wsgateway.testing import assert_sent

pytest_plugins = ["wsgateway.testing.plugin"]


def test_the_table_of_keys_is_the_signature() -> None:
    text = (ROOT / "docs/reference/channel-layer.md").read_text()
    section = text.partition("## Configuration")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.M))
    parameters = inspect.signature(ConfiguredLayer).parameters.values()
    assert told == {p.name: repr(p.default) for p in parameters if p.kind is not p.VAR_KEYWORD}


@pytest.mark.parametrize("part", ["assert inbox_group", "group_send_sync"])
def test_code_of_the_page_runs(part: str, settings: Any, wsgateway_memory: object) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    exec(DocumentPage("reference/channel-layer.md").code(part), {})
    if part == "group_send_sync":
        assert_sent("orders", "ann", event={"type": "order.paid", "id": 7})
