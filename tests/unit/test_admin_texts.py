"""How the admin's pages write numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wsgateway.templatetags.wsgateway_admin import age, count, duration, percent, rate


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (86_400, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_age_is_the_time_since_then() -> None:
    assert age(datetime.now(UTC) - timedelta(minutes=5)) == "5 min"
    assert age(None) == "unknown"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "unknown"),
        (0, "0/s"),
        (0.02, "under 0.1/s"),
        (0.25, "0.2/s"),
        (9.96, "10.0/s"),
        (1250.4, "1,250/s"),
    ],
)
def test_rates(number: float | None, text: str) -> None:
    assert rate(number) == text


@pytest.mark.parametrize(("number", "text"), [(None, "unknown"), (0, "0"), (12345, "12,345")])
def test_counts(number: int | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize("write", [count, rate, duration, age])
def test_attribute_of_nothing_is_unknown(write: Any) -> None:
    """Templates make an empty text of it."""
    assert write("") == "unknown"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (0.0, "0"),
        (3.3e-8, "0.01"),
        (0.00012, "0.01"),
        (0.0042, "0.4"),
        (0.834, "83"),
        (1.0, "100"),
    ],
)
def test_a_little_is_not_nothing(part: float, text: str) -> None:
    """A stream that was nearly empty was ``3e-06 %`` full."""
    assert percent(part) == text
