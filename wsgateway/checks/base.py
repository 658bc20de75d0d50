"""What several checks need."""

from __future__ import annotations

from collections.abc import Callable

from django.core.checks import CheckMessage

from wsgateway.conf import SETTINGS

__all__ = ["LOOPBACK", "Check", "ended", "possible", "sentence"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Check = Callable[..., list[CheckMessage]]


def possible(*names: str) -> bool:
    """Say whether these settings can be read; `check_values` reports the others."""
    return not any(SETTINGS[name].problem() for name in names)


def sentence(text: str) -> str:
    """Return an error's *text* as a sentence."""
    return ended(f"{text[0].upper()}{text[1:]}")


def ended(text: str) -> str:
    """Return a *text* with what ends a sentence."""
    return text if text.endswith("?") else f"{text}."
