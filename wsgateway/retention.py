"""How long the messages of topics are kept: what ``WSGATEWAY_TOPICS`` says of each service."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wsgateway.setting import MAX_INT, MAX_SECONDS

__all__ = ["Retention", "are_retentions", "retention_flaws", "retention_of"]


@dataclass(frozen=True)
class Retention:
    """How much of each topic of a service is kept.

    Attributes:
        max_age: Seconds that a message is kept.
        max_messages: Messages of one topic. Above that, the topic's oldest goes first.
        max_bytes: Size of all topics of the service together. Above that, publishing is refused.
            0: what ``WSGATEWAY_TOPIC_MAX_BYTES`` says.
    """

    max_age: float = 7 * 86400.0
    max_messages: int = 10_000
    max_bytes: int = 0


_RANGES: dict[str, tuple[type, float, float]] = {
    "max_age": (float, 0.1, MAX_SECONDS),  # the server takes no less
    "max_messages": (int, 1, MAX_INT),
    "max_bytes": (int, 0, MAX_INT),
}
assert _RANGES.keys() == {field.name for field in fields(Retention)}


def retention_of(service: str, settings: Mapping[str, Mapping[str, Any]]) -> Retention:
    """Return what *settings*, the value of ``WSGATEWAY_TOPICS``, say of *service*."""
    return Retention(**settings.get(service, {}))


def retention_flaws(value: Any) -> str:
    """Return what is wrong with a value of ``WSGATEWAY_TOPICS``, and what to write."""
    flaws = []
    for service, limits in value.items():
        if not isinstance(service, str) or not isinstance(limits, Mapping):
            flaws.append(f"write {{'room': {{'max_age': 86400}}}}, not {{{service!r}: {limits!r}}}")
            continue
        flaws += [_flaw(service, name, limit) for name, limit in limits.items()]
    return "; ".join(filter(None, flaws))


def _flaw(service: str, name: Any, limit: Any) -> str:
    if name not in _RANGES:
        near = difflib.get_close_matches(str(name), _RANGES, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"it may be one of {', '.join(_RANGES)}"
        return f"unknown limit {name!r} of {service!r}: {cure}"
    kind, least, most = _RANGES[name]
    right_kind = isinstance(limit, (kind, int)) and not isinstance(limit, bool)
    if not right_kind or not least <= limit <= most:
        return f"{name!r} of {service!r} is {limit!r}, but must be {least} or more, at most {most}"
    return ""


def are_retentions(value: Any) -> bool:
    return not retention_flaws(value)
