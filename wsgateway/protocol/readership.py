"""Who reads a topic, as those who watch it are told. Pure.

Fed with lists of who reads it and with news of sockets that left, it holds back who may return.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from wsgateway.protocol.edges import Edges
from wsgateway.protocol.subjects import Inbox

__all__ = ["MOST_LISTED", "Present", "Readership"]

MOST_LISTED = 500
"""Users of a topic who are named; if there are more, clients are told how many sockets read it."""
LISTED_AGAIN = 400
"""As few must remain until they are named again."""


@dataclass(slots=True)
class Present:
    """Who reads a topic. All who watch it share it, so nothing in it is changed but *encoded*.

    Attributes:
        users: Who; None: too many to name.
        sockets: How many sockets read it.
        complete: Whether every gateway has answered. If not, there may be more, and those who are
            named may have left.
        encoded: What was told last to a client, and the frame that led from there to this.
    """

    users: frozenset[Inbox] | None
    sockets: int
    complete: bool
    encoded: tuple[Present, str] | None = field(default=None, compare=False, repr=False)

    def differs_from(self, told: Present) -> bool:
        """Say whether that is news for a client that was told *told*."""
        if self is told:
            return False
        sockets = self.users is None and self.sockets != told.sockets
        return sockets or self.complete != told.complete or self.users != told.users


class Readership:
    """The readers of one topic.

    *now* is the value of a monotonic clock.

    Args:
        grace: Seconds without a socket that reads the topic after which a user has left.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._edges: Edges | None = Edges(grace)  # None: they are too many to name
        self.present = Present(frozenset(), 0, False)
        """What clients are told now."""

    @property
    def limit(self) -> int:
        """How many users to list: with more of them, nobody is named."""
        return LISTED_AGAIN if self._edges is None else MOST_LISTED

    @property
    def is_listed(self) -> bool:
        """Whether the readers are named."""
        return self._edges is not None

    @property
    def due(self) -> float | None:
        """When somebody who has not returned counts as gone; None: nobody is missing."""
        return None if self._edges is None else min(self._edges.leaving.values(), default=None)

    def left(self, inbox: Inbox, now: float, back_in: float | None = None) -> None:
        """Note that a socket has left; see `Edges.left`."""
        if self._edges is not None:
            self._edges.left(inbox, now, back_in)

    def unknown(self) -> Present:
        """Note that nobody knows at present; return what to tell."""
        return self._tell(Present(self.present.users, self.present.sockets, False))

    def found(
        self, users: Collection[Inbox] | None, sockets: int, complete: bool, now: float
    ) -> Present:
        """Note who reads the topic; return what to tell.

        Args:
            users: All of them; None: they are more than `limit`.
            sockets: How many sockets read it.
            complete: Whether all gateways have answered.
            now: The clock's value.
        """
        if users is None:
            self._edges = None
            return self._tell(Present(None, sockets, complete))
        edges = self._edges = self._edges or Edges(self._grace)
        edges.listed(users, now)
        for inbox in users:
            edges.came(inbox)
        for inbox in edges.due(now):
            edges.found(inbox, False if complete else None, now)
        return self._tell(Present(frozenset(edges.online), sockets, complete))

    def _tell(self, present: Present) -> Present:
        if present.differs_from(self.present):
            self.present = present
        return self.present
