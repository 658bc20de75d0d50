"""docs/reference/glossary.md: what it says of the code is so."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.test_architecture import PACKAGE, defined
from tests.docs.test_tables import rows

WORDS = [
    (row[0], row[2]) for row in rows("reference/glossary.md", first=r"[a-z, ]+") if row[0] != "word"
]


def test_the_table_is_read() -> None:
    assert len(WORDS) > 15


@pytest.mark.parametrize(("words", "places"), WORDS, ids=[words for words, _ in WORDS])
def test_word_is_the_name_of_what_it_says(words: str, places: str) -> None:
    found = re.findall(r"`([\w/]+)\.py(?:::(\w+))?`", places)
    assert len(found) == len(words.split(", "))
    for word, (module, name) in zip(words.split(", "), found, strict=True):
        source = (PACKAGE / f"{module}.py").read_text()
        if name:
            assert name in defined(ast.parse(source).body)
        plain = (name or module.rpartition("/")[2]).replace("_", "").lower()
        assert word.replace(" ", "") in plain
