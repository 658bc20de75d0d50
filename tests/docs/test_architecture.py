"""docs/explanation/architecture.md: the folders and the functions that it names exist.

`tests/unit/test_structure.py` compares its picture of the imports with the code.
"""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs/explanation/architecture.md").read_text()
PACKAGE = ROOT / "wsgateway"
SECTIONS = re.split(r"^### ", PAGE.partition("## Walks")[2], flags=re.M)[1:]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))


def defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Return the functions, classes and methods in *body*, as the page names them."""
    found = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            found |= defined(node.body, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_name_exists(path: str, name: str) -> None:
    assert name in defined(ast.parse((PACKAGE / path).read_text()).body)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_every_step_of_a_walk_names_code(section: str) -> None:
    steps = re.split(r"^\d\. ", section, flags=re.M)[1:]
    assert len(steps) >= 5
    assert [step for step in steps if "::" not in step] == []


def test_the_walks_are_there() -> None:
    assert len(SECTIONS) == 10


def test_table_of_folders_has_them_all() -> None:
    named = set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.M))
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert named == there


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+\.py)`", PAGE))))
def test_file_named_without_its_folder_exists(name: str) -> None:
    assert list(PACKAGE.rglob(name))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", PAGE))))
def test_path_exists(path: str) -> None:
    assert any((root / path).exists() for root in (ROOT, PACKAGE, PACKAGE / "broker"))
