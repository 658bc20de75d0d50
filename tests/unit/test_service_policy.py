"""What becomes of a message after its handler ended; the decorator's refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway import declared
from wsgateway.exceptions import NameRefused
from wsgateway.services import JsonHandler, Reject, Retry, RetryPolicy, registry
from wsgateway.services.errors import Pause
from wsgateway.services.policy import DeadLettered, Done, Policies, Rejected, Retried, judge
from wsgateway.services.webhooks import WebhookFailed

QUICK = RetryPolicy(attempts=2, initial=0.5, jitter=0)
POLICIES: Policies = {OSError: QUICK}


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (None, 99, Done()),
        (Reject("why", code="no"), 99, Rejected("no", "why")),
        (OSError(), 1, Retried(0.5)),
        (ConnectionResetError(), 1, Retried(0.5)),  # derives from OSError
        (Retry(after=7.0), 1, Retried(7.0)),
        (Retry(after=0.0), 4, Retried(0.0)),
        (Pause("gone", since=0.0), 99, Retried(0.5, counted=False)),
    ],
)
def test_verdict(error: BaseException | None, attempt: int, expected: Any) -> None:
    assert judge(error, attempt, POLICIES, 5) == expected


@pytest.mark.parametrize(("error", "last"), [(OSError(), 2), (ValueError(), 5), (Retry(), 5)])
def test_last_attempt(error: Exception, last: int) -> None:
    assert isinstance(judge(error, last - 1, POLICIES, 5), Retried)
    assert judge(error, last, POLICIES, 5) == DeadLettered(error)


@pytest.mark.parametrize(("asked", "after"), [(1.0, 8.0), (20.0, 20.0), (None, 8.0)])
def test_webhook_may_ask_for_a_longer_pause_only(asked: float | None, after: float) -> None:
    """A proxy's ``Retry-After: 1`` used up all tries within seconds."""
    policies: Policies = {WebhookFailed: RetryPolicy(attempts=20, jitter=0)}
    assert judge(WebhookFailed(after=asked), 4, policies, 5) == Retried(after)


def test_first_policy_that_fits_counts() -> None:
    slow = RetryPolicy(initial=9.0, jitter=0)
    both: Policies = {ConnectionError: slow, OSError: QUICK}
    assert judge(ConnectionResetError(), 1, both, 5) == Retried(9.0)
    assert judge(FileNotFoundError(), 1, both, 5) == Retried(0.5)


@given(
    st.integers(1, 10_000),
    st.floats(0.001, 10),
    st.floats(1, 10),
    st.floats(0.1, 600),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_pause_stays_within_its_bounds(
    attempt: int, initial: float, factor: float, cap: float, jitter: float, draw: float
) -> None:
    policy = RetryPolicy(initial=initial, factor=factor, cap=cap, jitter=jitter)
    longest = min(cap, initial * factor ** min(attempt - 1, 60))
    pause = policy.pause(attempt, lambda: draw)
    assert 0 <= pause <= longest <= cap
    assert pause >= longest * (1 - jitter) * 0.999


def test_pauses_double() -> None:
    policy = RetryPolicy(jitter=0)
    assert [policy.pause(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"initial": -1.0},
        {"initial": float("nan")},
        {"factor": float("inf")},
        {"cap": -0.1},
        {"jitter": 2.0},
    ],
)
def test_impossible_policy_is_refused_where_it_is_written(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(**wrong)


def test_pause_of_an_enormous_factor_is_the_cap() -> None:
    assert RetryPolicy(factor=1e300, jitter=0).pause(9) == 60


class Plain:
    pass


def generates(message: Any) -> Any:
    yield message


async def generates_async(message: Any) -> Any:
    yield message


@pytest.mark.parametrize("wrong", [Plain, 7, "text", generates, generates_async])
def test_what_is_no_handler_is_refused(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})
    with pytest.raises(TypeError):
        registry.service("orders")(wrong)
    assert declared.registered == {}


def test_keys_of_retry_are_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="'OSError', which is not a class of exceptions"):
        registry.service("orders", retry={"OSError": QUICK})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency is 0, but must be 1 or more"),
        ({"timeout": 0.0}, r"timeout is 0\.0, but must be above 0 seconds, or None"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    async def handle(message: Any) -> None:
        """Do nothing."""

    with pytest.raises(ValueError, match=text):
        registry.service("orders", **options)(handle)


def test_instance_with_an_async_call_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its coroutine was thrown away, and the message acknowledged."""
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})

    class Handler:
        async def __call__(self, message: Any) -> None:
            """Do nothing."""

    registry.service("orders")(Handler())
    assert declared.registered["orders"].is_async


def test_one_handler_for_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})

    @registry.service("orders")
    async def first(message: Any) -> None:
        """Do nothing."""

    registry.service("orders")(first)  # as when the module is loaded again
    with pytest.raises(ValueError, match="has a handler already"):

        @registry.service("orders")
        class Second(JsonHandler):
            pass

    with pytest.raises(NameRefused):
        registry.service("")


def test_name_that_no_consumer_can_have_is_refused_where_it_is_declared() -> None:
    """Such a service was accepted, and nothing ever served it."""
    with pytest.raises(NameRefused, match="use a shorter one"):
        registry.service("ä" * 100)  # 600 characters once escaped
    with pytest.raises(NameRefused, match="use a shorter one"):
        registry.service("a" * 250)
