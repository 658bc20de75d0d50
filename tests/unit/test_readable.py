"""Numbers and times as people read them."""

from __future__ import annotations

import pytest

from wsgateway.readable import count, duration, some


@pytest.mark.parametrize(
    ("seconds", "two", "one"),
    [
        (-5, "0 s", "0 s"),
        (0.4, "0 s", "0 s"),
        (59.9, "59 s", "59 s"),
        (60, "1 min", "1 min"),
        (61, "1 min 1 s", "1 min"),
        (3605, "1 h", "1 h"),
        (90061, "1 d 1 h", "1 d"),
        (86400 * 400, "400 d", "400 d"),
    ],
)
def test_duration(seconds: float, two: str, one: str) -> None:
    assert duration(seconds) == two
    assert duration(seconds, units=1) == one


def test_some() -> None:
    assert [some(n, "row") for n in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]


def test_count() -> None:
    assert [count(0), count(12345), count(1.6)] == ["0", "12,345", "2"]
