"""Who reads a topic, as the application hears it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wsgateway.protocol import v1
from wsgateway.protocol.subjects import Inbox

__all__ = ["Readers", "ReadersChanged", "readers_after"]


@dataclass(frozen=True, slots=True)
class Readers:
    """Who reads a topic.

    Attributes:
        users: All of them, each with ``service`` and ``user``; None: they are not known, because
            there are too many to name, or because the gateway has ended the watch.
        sockets: How many sockets read it, if there are too many users to name; otherwise None.
        complete: Whether every gateway has answered. If not, there may be more, and those who are
            named may have left.
    """

    users: tuple[Inbox, ...] | None
    sockets: int | None
    complete: bool


@dataclass(frozen=True, slots=True)
class ReadersChanged(Readers):
    """Who reads it now, and what has changed since the last time.

    Attributes:
        joined: Those of *users* who were not among them before.
        left: Those who were, and are not any more.
    """

    joined: tuple[Inbox, ...]
    left: tuple[Inbox, ...]

    def differs_from(self, before: Readers) -> bool:
        """Say whether it is news for those who know *before*, which it was made from."""
        if self.joined or self.left or (self.users is None) != (before.users is None):
            return True
        return (self.sockets, self.complete) != (before.sockets, before.complete)

    @classmethod
    def between(cls, before: Readers | None, now: Readers) -> ReadersChanged:
        """Return what leads from *before* to *now*; *before* None: nothing was known."""
        old = () if before is None or before.users is None else before.users
        new = () if now.users is None else now.users
        joined, left = _without(new, old), _without(old, new)
        return cls(now.users, now.sockets, now.complete, joined, left)


def readers_after(before: Readers, frame: v1.Readers | v1.ReadersChanged) -> Readers:
    """Return who reads a topic after a *frame* that says so."""
    if isinstance(frame, v1.Readers):
        if frame.users is None:
            return Readers(None, frame.sockets, frame.complete)
        return Readers(tuple(frame.users), None, frame.complete)
    if before.users is None:
        return Readers(None, before.sockets, frame.complete)
    stayed = _without(before.users, frame.left)
    return Readers(stayed + _without(frame.joined, stayed), None, frame.complete)


def _without(users: Iterable[Inbox], others: Iterable[Inbox]) -> tuple[Inbox, ...]:
    absent = set(others)
    return tuple(user for user in users if user not in absent)
