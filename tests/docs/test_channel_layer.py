"""docs/reference/channel-layer.md: its table of keys is the constructor's signature."""

from __future__ import annotations

import inspect
import re

from tests.support import ROOT
from wsgateway.layer.options import ConfiguredLayer


def test_the_table_of_keys_is_the_signature() -> None:
    text = (ROOT / "docs/reference/channel-layer.md").read_text()
    section = text.partition("## Configuration")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.M))
    parameters = inspect.signature(ConfiguredLayer).parameters.values()
    assert told == {p.name: repr(p.default) for p in parameters if p.kind is not p.VAR_KEYWORD}
