"""What a process shows to the broker's own tools."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Endpoint", "Shown"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a process answers requests, and how many it has answered.

    Attributes:
        name: Of letters, digits, ``-`` and ``_``.
        subject: May have wildcards.
        requests: Answered since the process began.
        errors: Of those, refused.
        last_error: Why the last of these was; "" without.
        seconds: What answering took, all together.
        data: What else there is to know; JSON.
    """

    name: str
    subject: str
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    seconds: float = 0.0
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shown:
    """A process, see `Broker.show`.

    Attributes:
        name: What all processes of its kind have in common; letters, digits, ``-`` and ``_``.
        id: Its own, of the same characters.
        version: ``1.2.3``.
        description: A sentence.
        started: When; aware.
        metadata: What tells it apart.
        endpoints: Returns where it answers, with the numbers of now.
    """

    name: str
    id: str
    version: str
    description: str
    started: dt.datetime
    metadata: Mapping[str, str]
    endpoints: Callable[[], Sequence[Endpoint]]
