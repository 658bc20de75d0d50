"""How the admin's pages write numbers, times, and others' texts.

None means unknown, and so does the empty text that templates make of an attribute of None.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

from django import template
from django.utils import timezone

from wsgateway import readable

__all__ = ["age", "count", "duration", "percent", "rate", "visible"]

register = template.Library()

UNKNOWN = "unknown"
Text = Literal[""]
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


@register.filter
def count(number: float | Text | None) -> str:
    """Write a whole number: ``12,345``."""
    return UNKNOWN if number is None or number == "" else readable.count(number)


@register.filter
def rate(number: float | Text | None) -> str:
    """Write how often something happens: ``0.2/s``, ``1,250/s``."""
    if number is None or number == "":
        return UNKNOWN
    if 0 < number < 0.05:
        return "under 0.1/s"
    return f"{number:,.0f}/s" if number >= 10 or number == 0 else f"{number:.1f}/s"


@register.filter
def duration(seconds: float | Text | None) -> str:
    """Write seconds with at most two units: ``8 s``, ``3 min 20 s``, ``2 d 4 h``."""
    return UNKNOWN if seconds is None or seconds == "" else readable.duration(seconds)


@register.filter
def age(moment: datetime | Text | None) -> str:
    """Write how long ago *moment* was."""
    return duration((timezone.now() - moment).total_seconds() if moment else None)


@register.filter
def percent(part: float) -> str:
    """Write a part of 1 as percent, without the sign: ``0.4``, ``83``."""
    return f"{100 * part:.0f}" if part >= 0.01 or not part else f"{100 * part:.1g}"


@register.filter
def visible(text: str) -> str:
    """Write out the control characters of *text*, line breaks and tabs excepted.

    Those that change the direction of text could make a page say something else than it does.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
