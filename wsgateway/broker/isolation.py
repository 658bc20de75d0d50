"""Each test begins with an empty memory broker, as it does with an empty ``mail.outbox``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = ["begin_each_test_empty", "empty_store", "resets"]

resets: list[Callable[[], None]] = []
"""What forgets connections and messages; the modules that keep them add it."""


def empty_store() -> None:
    """Forget what is stored, and what the channel layers in memory hold."""
    for reset in resets:
        reset()


def begin_each_test_empty() -> None:
    """Have Django's test cases empty the store where they empty ``mail.outbox``. Idempotent.

    Django has no hook for this, so its own is wrapped; a test says so if it is gone.
    """
    from django.test import SimpleTestCase  # slow, and nothing for production

    original = SimpleTestCase.__dict__["_pre_setup"].__func__
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def pre_setup(cls: type[SimpleTestCase], *args: Any) -> Any:
        empty_store()
        return original(cls, *args)

    SimpleTestCase._pre_setup = classmethod(pre_setup)  # type: ignore[attr-defined]
