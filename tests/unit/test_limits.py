"""How fast and how large."""

from __future__ import annotations

from wsgateway.protocol.limits import RateLimit, SizeLimit


def test_rate_limit_is_exhausted_when_it_is_overdrawn_by_its_size() -> None:
    limit = RateLimit(1.0, 2, 0.0)
    assert [limit.take(0.0) for _ in range(4)] == [True, True, False, False]
    assert not limit.exhausted
    assert (limit.take(0.0), limit.exhausted) == (False, True)
    assert (limit.take(4.0), limit.exhausted) == (True, False)


def test_rate_limit_fills_to_its_size_and_no_further() -> None:
    limit = RateLimit(1.0, 2, 0.0)
    assert [limit.take(1000.0) for _ in range(3)] == [True, True, False]
    limit.give_back()
    limit.give_back()
    assert limit.take(1000.0)


def test_rate_of_zero_is_no_limit() -> None:
    limit = RateLimit(0.0, 2, 0.0)
    assert all(limit.take(0.0) for _ in range(1000))
    assert not limit.exhausted


def test_size_limit_names_what_it_comes_from() -> None:
    limit = SizeLimit(20, "WSGATEWAY_MAX_MESSAGE_SIZE")
    assert limit.exceeded_by(20) is None
    assert (
        str(limit.exceeded_by(21))
        == "message of 21 bytes exceeds WSGATEWAY_MAX_MESSAGE_SIZE (20 bytes)"
    )


def test_several_at_once_may_overdraw_and_the_next_waits_for_them() -> None:
    limit = RateLimit(2.0, 4, 0.0)
    assert limit.wait == 0
    assert not limit.take(0.0, 10)
    assert limit.wait == 3.5
    assert not limit.take(3.0)
    limit.give_back()
    assert limit.wait == 0.5
    assert limit.take(3.5)
    assert RateLimit(0.0, 1, 0.0).wait == 0
