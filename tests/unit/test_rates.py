from __future__ import annotations

import pytest

from wsgateway.rates import INTERVAL, PERIOD, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.counts = {"messages": 50}
        self.rates = Rates(lambda: self.counts, lambda: self.now)

    def pass_by(self, seconds: float, messages: int) -> None:
        """Let time pass with samples, and messages come evenly."""
        steps = round(seconds / INTERVAL)
        for _ in range(steps):
            self.now += INTERVAL
            self.counts["messages"] += messages // steps
            self.rates.sample()

    def rate(self) -> float:
        return self.rates.per_second()["messages"]


def test_nothing_has_happened_yet() -> None:
    assert Clock().rate() == 0.0


def test_first_minute_is_averaged_over_what_has_passed() -> None:
    clock = Clock()
    clock.now += 2
    clock.counts["messages"] += 10
    assert clock.rate() == 5.0


def test_burst_within_the_first_second_is_not_extrapolated() -> None:
    clock = Clock()
    clock.now += 0.001
    clock.counts["messages"] += 10
    assert clock.rate() == 10.0


def test_steady_rate_is_exact() -> None:
    clock = Clock()
    clock.pass_by(600, 6000)
    assert clock.rate() == 10.0


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    clock = Clock()
    clock.pass_by(30, 3000)
    clock.pass_by(PERIOD, 0)
    assert clock.rate() == 0.0


@pytest.mark.parametrize("late", [0.0, 3.0])
def test_between_two_samples(late: float) -> None:
    clock = Clock()
    clock.pass_by(600, 6000)
    clock.now += late
    clock.counts["messages"] += round(10 * late)
    assert clock.rate() == 10.0


def test_count_that_is_new_began_at_zero() -> None:
    clock = Clock()
    clock.now += 10
    clock.counts["connects"] = 20
    assert clock.rates.per_second() == {"messages": 0.0, "connects": 2.0}
