"""Python in the documents: it parses, and what it imports exists."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT
from wsgateway.protocol.subprotocols import RAW_SUBPROTOCOL
from wsgateway.protocol.v1 import SUBPROTOCOL

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]

CHECK = re.compile(r"wsgateway\.[EW]\d{3}")
"""The id of a system check, for SILENCED_SYSTEM_CHECKS."""


@pytest.mark.parametrize("block", BLOCKS)
def test_imports_of_our_package_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsgateway"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or find_spec(name), name


def test_dotted_paths_exist() -> None:
    for path in DOCUMENTS:
        for dotted in re.findall(r'"(wsgateway(?:\.\w+)+)"', path.read_text()):
            if dotted in (SUBPROTOCOL, RAW_SUBPROTOCOL) or CHECK.fullmatch(dotted):
                continue
            module, _, name = dotted.rpartition(".")
            found = hasattr(importlib.import_module(module), name) or find_spec(dotted)
            assert found, f"{Path(path).name}: {dotted}"
