"""Log lines name a reason, whatever the exception's text."""

from __future__ import annotations

from wsgateway.exceptions import QueueFull, reason_of


def test_exception_without_text_is_named_by_its_type() -> None:
    assert reason_of(QueueFull("no room")) == "no room"
    assert reason_of(TimeoutError()) == "TimeoutError"
