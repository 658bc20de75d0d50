"""How full the streams are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from wsgateway.broker.nats.streams import WARN_LEVEL, fill_level

__all__ = ["Levels"]

logger = logging.getLogger("wsgateway.broker")

RESERVE = 0.05
"""Part of the inbox stream's limit in bytes that is left for services' replies."""
WARN_EACH = 600.0
"""Seconds between two warnings about the same stream that is nearly full."""


class Levels:
    """Warns of streams that are nearly full, and keeps the inboxes' last room for replies.

    Args:
        inboxes: The name of the inboxes' stream.
    """

    def __init__(self, inboxes: str) -> None:
        self._inboxes = inboxes
        self._warned: dict[str, float] = {}  # nearly full stream to when that was logged
        self.is_reserved = False
        """Whether what room the inboxes' stream has left is for replies."""
        self.on_warning: Callable[[], None] = lambda: None
        """Called after a warning."""

    @property
    def are_high(self) -> bool:
        """Whether a stream is nearly full."""
        return bool(self._warned)

    def note(self, info: Mapping[str, Any]) -> None:
        """Take what STREAM.INFO says of a stream."""
        name, level = info["config"]["name"], fill_level(info)
        if name == self._inboxes:
            self.is_reserved = level >= 1 - RESERVE
        if level < WARN_LEVEL:
            self._warned.pop(name, None)
            return
        now = time.monotonic()
        if now < self._warned.get(name, -math.inf) + WARN_EACH:
            return
        self._warned[name] = now
        logger.warning(
            "stream %r is %.0f %% full (limit %s bytes). When it is full, it refuses messages or "
            "drops the oldest. Raise its limit, or find out who does not read",
            name,
            100 * level,
            info["config"]["max_bytes"],
            extra={"stream": name},
        )
        self.on_warning()
