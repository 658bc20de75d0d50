"""Log lines name a reason, whatever the exception's text."""

from __future__ import annotations

import threading

import pytest

from wsgateway.exceptions import QueueFull, reason_of
from wsgateway.management.commands.runoutbox import Command


def test_exception_without_text_is_named_by_its_type() -> None:
    assert reason_of(QueueFull("no room")) == "no room"
    assert reason_of(TimeoutError()) == "TimeoutError"


def test_outbox_says_why_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    """A time-out has no text: the line ended at its colon."""
    command = Command()
    command._end = threading.Event()

    class Relay:
        def step(self) -> int:
            command._end.set()
            raise TimeoutError

    command._relay(Relay(), 0.01)
    assert caplog.messages == ["the outbox waits 0.0 s: TimeoutError"]
