"""Tests speak to what is public, so that a restructuring breaks none whose promise still holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT

CANARIES = {
    "tests/bridges/test_kafka_private.py",
    "tests/bridges/test_kafka_unreadable.py",
    "tests/integration/test_handshake.py",
}
"""They look into aiokafka and nats-py, so that a new version that differs is noticed."""
NOT_PRIVATE = {"_asdict", "_default_manager", "_exit", "_fields", "_meta", "_replace"}
"""Documented by Python or Django, in spite of their names."""
BY_NAME = {"delattr", "getattr", "hasattr", "object", "patch", "setattr"}
"""Functions that take the name of an attribute as text."""
PRIVATE = re.compile(r"_(?!_)\w+")


def own(node: ast.expr) -> bool:
    """Say whether *node* is the object whose class the test itself writes."""
    return ast.unparse(node) in ("self", "cls", "super()")


def private_names(source: str) -> Iterator[str]:
    """Yield what *source* takes of others' private attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not own(node.value):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
            names = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if PRIVATE.fullmatch(name) and name not in NOT_PRIVATE:
                yield f"line {node.lineno}: {name}"


def files() -> list[str]:
    found = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/*.py"))
    return [path for path in found if "node_modules" not in path and path not in CANARIES]


@pytest.mark.parametrize("path", files())
def test_test_looks_at_nothing_private(path: str) -> None:
    found = list(private_names((ROOT / path).read_text()))
    assert not found, "test what it does for others, or make it public if they may ask for it"


def test_each_way_to_something_private_is_found() -> None:
    source = """
from wsgateway.a import _b
layer._home
self.layer._home
monkeypatch.setattr(layer, "_home", 1)
monkeypatch.setattr("wsgateway.a._b", 1)
self._mine
super()._mine
message._replace(a=1)
layer.__class__
getattr(layer, "public", "_default")
"""
    assert sorted(private_names(source)) == [
        "line 2: _b",
        "line 3: _home",
        "line 4: _home",
        "line 5: _home",
        "line 6: _b",
    ]
