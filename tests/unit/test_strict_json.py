"""JSON that everybody reads alike, and what Python reads alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.protocol.strict_json import loads

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)  # fmt: skip


@given(VALUES, st.booleans())
def test_what_is_json_is_read(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    assert loads(text) == value
    assert loads(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", '{"a":-Infinity}', "1e999", "-1e999", '{"a":1,"a":1}', '[{"b":0,"b":1}]',
     '"\\ud800"', '{"\\uDFFF":1}', '"\\ude00\\ud83d"', "", "{", "[1,]"],
)  # fmt: skip
def test_what_only_some_parsers_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ValueError):
        loads(b'"\xff"')


def test_pairs_of_surrogates_and_escaped_backslashes_are_fine() -> None:
    assert loads('["\\ud83d\\ude00", "\\\\ud800"]') == ["😀", "\\ud800"]
