"""When to replace the token of an open connection. Pure."""

from __future__ import annotations

import math

from wsgateway.protocol.backoff import Backoff

__all__ = ["Renewal"]

SOONEST = 0.5
"""Fewest seconds between two tokens that the gateway accepts."""


class Renewal:
    """The tokens of one client, over all its connections.

    Args:
        renewable: Whether the application can provide another token.
        backoff: Delays until the next one, after one that the gateway did not accept.
    """

    __slots__ = ("_attempt", "_backoff", "_renewable", "at")

    def __init__(self, renewable: bool, backoff: Backoff) -> None:
        self._renewable = renewable
        self._backoff = backoff
        self._attempt = 0  # failures in a row
        self.at = math.inf
        """When to ask the application for a token and send it; ``inf``: not yet."""

    def accepted(self, expires_in: float | None, now: float) -> None:
        """Take it that the token lasts *expires_in* seconds; None: for ever."""
        self._attempt = 0
        self.at = math.inf
        if expires_in is not None and self._renewable:
            part = 0.9 - 0.2 * self._backoff.random()  # spreads clients that connected together
            self.at = now + max(expires_in * part, SOONEST)

    def failed(self, now: float) -> None:
        """Take it that there is no token, or that the gateway did not accept it."""
        if self._renewable:
            self.at = now + self._backoff.delay(self._attempt)
            self._attempt += 1

    def stop(self) -> None:
        """Take it that the application is being asked, or that the connection has ended."""
        self.at = math.inf
