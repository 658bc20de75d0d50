"""Numbers, times and others' texts as people read them: in pages, commands, alerts. Pure."""

from __future__ import annotations

import re

__all__ = ["count", "duration", "some", "visible"]

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def count(number: float) -> str:
    """Return a whole number: ``12,345``."""
    return f"{number:,.0f}"


def some(number: int, thing: str) -> str:
    """Return how many of something: ``1 message``, ``1,200 messages``."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float, units: int = 2) -> str:
    """Return seconds with at most *units* units, 1 or 2: ``8 s``, ``3 min 20 s``, ``2 d 4 h``."""
    rest = max(0, int(seconds))
    for place, (size, name) in enumerate(UNITS[:-1]):
        if rest >= size:
            smaller, small_name = UNITS[place + 1]
            extra = rest % size // smaller if units > 1 else 0
            return f"{rest // size} {name}" + (f" {extra} {small_name}" if extra else "")
    return f"{rest} s"


def visible(text: str) -> str:
    """Return *text* with its control characters written out, line breaks and tabs excepted.

    Those that change the direction of text could make a page say something else than it does, and
    PostgreSQL stores no text with a null character.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
