"""Who came online, and who went offline, over all gateways. Pure.

Fed with what gateways say and what was found out, it names the first and the last socket of each
user. A user whose last socket has gone may come back: only after a grace period without one are
they offline.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from wsgateway.protocol.subjects import Inbox

__all__ = ["RETRY", "Edges"]

RETRY = 1.0
"""Seconds until it is asked again about a user of whom nobody knows."""


class Edges:
    """Users who are online, and those who may not be.

    *now* is the value of a monotonic clock.

    Args:
        grace: Seconds without a socket after which a user is offline.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self.online: set[Inbox] = set()
        """Those who are online, as far as anybody was told."""
        self.leaving: dict[Inbox, float] = {}
        """Of those, who may be offline, and when to ask."""

    def came(self, inbox: Inbox) -> bool:
        """Note that a user has a socket; return whether it is the first."""
        self.leaving.pop(inbox, None)
        if inbox in self.online:
            return False
        self.online.add(inbox)
        return True

    def left(self, inbox: Inbox, now: float, back_in: float | None = None) -> None:
        """Note that a user may have no socket any more.

        Args:
            inbox: Who.
            now: The clock's value.
            back_in: Seconds after which the client was told to come back; None: it was not.
        """
        if inbox in self.online:
            due = now + (back_in or 0.0) + self._grace
            self.leaving[inbox] = max(due, self.leaving.get(inbox, 0.0))

    def due(self, now: float) -> list[Inbox]:
        """Return those of whom it is to be found out now whether they are online."""
        return [inbox for inbox, due in self.leaving.items() if due <= now]

    def found(self, inbox: Inbox, online: bool | None, now: float) -> bool:
        """Note what was found out; return whether the user went offline.

        One who has come or left in between is not offline yet, whatever was found out.

        Args:
            inbox: Who.
            online: Whether they are; None: nobody knows.
            now: The clock's value.
        """
        if self.leaving.get(inbox, math.inf) > now:
            return False
        if online is None:
            self.leaving[inbox] = now + RETRY
            return False
        del self.leaving[inbox]
        if not online:
            self.online.discard(inbox)
        return not online

    def listed(self, inboxes: Collection[Inbox], now: float) -> list[Inbox]:
        """Note who has a socket, of all users; return those of whom nobody had said so.

        Those who are missing may be offline; whether another gateway has them is asked later.
        """
        for inbox in self.online.difference(inboxes):
            if inbox not in self.leaving:
                self.left(inbox, now)
        return [inbox for inbox in inboxes if inbox not in self.online]
