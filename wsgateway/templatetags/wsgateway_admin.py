"""How the admin's pages write numbers, times, and others' texts.

None means unknown, and so does the empty text that templates make of an attribute of None.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from django import template
from django.utils import timezone

from wsgateway import readable

__all__ = ["age", "clock", "count", "duration", "percent", "rate"]

register = template.Library()

UNKNOWN = "unknown"
Text = Literal[""]
register.filter("visible", readable.visible)


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
    return duration((datetime.now(UTC) - moment).total_seconds() if moment else None)


@register.filter
def clock(moment: datetime | str | None) -> str:
    """Write *moment* in the site's time zone, to the second; nothing if it is not known.

    Args:
        moment: Aware; as text, in the form of RFC 3339.
    """
    if isinstance(moment, str) and moment:
        moment = datetime.fromisoformat(moment)
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


@register.filter
def percent(part: float) -> str:
    """Write a part of 1 as percent, without the sign: ``0.4``, ``83``; a trace is ``0.01``."""
    if part >= 0.01 or not part:
        return f"{100 * part:.0f}"
    return f"{max(100 * part, 0.01):.1g}"
