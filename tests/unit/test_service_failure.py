"""An exception as text: bounded, printable, and made without raising."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.services.failure import Repeats, clip, code_word, fit, one_line, trace


class Unshowable(Exception):
    def __str__(self) -> str:
        raise SystemExit("from __str__")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as exc:
        return exc


def endless(depth: int) -> int:
    return endless(depth + 1) + 1


def too_deep() -> BaseException:
    try:
        endless(0)
    except RecursionError as exc:
        return exc
    raise AssertionError


NO_POSITION: Any = ("\ud800", "no number", None, 7)
"""What no parser would say of where an error is."""
STRANGE: list[Any] = [
    ValueError("\ud800"),
    ValueError("x" * 600_000),
    ValueError("one\r\ntwo\x1b[2J"),
    Unshowable(),
    BaseExceptionGroup("many", [ValueError("\udfff"), SystemExit(1)]),
    SyntaxError("odd", NO_POSITION),
    too_deep(),
]


@pytest.mark.parametrize("error", STRANGE, ids=lambda error: type(error).__name__)
def test_every_exception_becomes_bounded_printable_text(error: BaseException) -> None:
    error = raised(error)
    line, text = one_line(error), trace(error)
    assert line.isprintable()
    assert type(error).__name__ in line
    assert len(line) < 1000
    assert len(text) < 17_000
    assert all(char.isprintable() or char in "\n\t" for char in text)


def test_long_text_does_not_hide_where_it_comes_from() -> None:
    text = trace(raised(ValueError("x" * 600_000)))
    assert "Traceback (most recent call last)" in text
    assert "test_service_failure.py" in text
    assert "characters left out" in text


@given(st.text(), st.integers(0, 300))
def test_what_goes_into_a_header_fits(text: str, limit: int) -> None:
    value = fit(text, limit)
    assert len(value) <= limit
    assert value.isascii()
    assert value.isprintable() or not value
    unquote(value, errors="strict")


@given(st.text(max_size=100))
def test_what_fits_stays_whole(text: str) -> None:
    assert unquote(fit(text, 10_000)) == text


@given(st.text())
def test_clipped_text_is_valid_unicode(text: str) -> None:
    assert len(clip(text, 10).encode()) < 400


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("bad_count", "bad_count"),
        ("a\r\nb", "a_b"),
        ("\ud800", "_"),
        ("", "rejected"),
        (None, "None"),
        ("x" * 100_000, "x" * 64),
        (Unshowable(), "_cannot_be_shown:_SystemExit_"),
    ],
)
def test_code_is_one_word(code: Any, word: str) -> None:
    assert code_word(code) == word


def test_repeats_know_type_and_place_of_the_last_error() -> None:
    def fail(kind: type[Exception]) -> Exception:
        try:
            raise kind("x")
        except Exception as exc:
            return exc

    repeats = Repeats(limit=2)
    assert repeats.is_new("1", fail(ValueError))
    assert not repeats.is_new("1", fail(ValueError))
    assert repeats.is_new("2", fail(ValueError))
    assert repeats.is_new("1", fail(KeyError))
    assert repeats.is_new("1", ValueError("never raised"))
    assert not repeats.is_new("1", ValueError("never raised"))
    assert repeats.is_new("3", fail(ValueError))
    assert repeats.is_new("2", fail(ValueError))  # forgotten: two are remembered
