"""Whose presence a client watches, over all its connections. Pure.

Behaves like the class ``Watches`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections import deque

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Event, Seen, Unclaimed, Watched
from wsgateway.protocol.v1 import (
    Presence,
    Refused,
    Unwatched,
    Watching,
    encode_unwatch,
    encode_watch,
)

__all__ = ["ClientWatches"]


class _Watch:
    """One watched user."""

    __slots__ = ("id", "is_sent", "online", "service", "told", "user")

    def __init__(self, id: str, service: str | None, user: str) -> None:
        self.id = id
        self.service = service  # None: the client's own
        self.user = user
        self.is_sent = False  # on this connection
        self.told = False  # it was answered, and the application knows `online`
        self.online: bool | None = None


class ClientWatches:
    """The watches of one client. They are asked for again on each connection.

    Args:
        prefix: Of the ids of questions.
    """

    __slots__ = ("_count", "_frames", "_is_open", "_own", "_prefix", "_watches")

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._count = 0  # numbers the watches
        self._watches: list[_Watch] = []
        self._frames: deque[str] = deque()  # to write
        self._is_open = False  # whether there is a connection that was welcomed
        self._own: str | None = None  # the client's own service, once it is known

    # -- connections -------------------------------------------------------------------------

    def connecting(self) -> None:
        """Start a connection, or note that it has ended: all must be asked for on the next."""
        self._is_open = False
        self._frames.clear()
        for watch in self._watches:
            watch.is_sent = False

    def welcomed(self, own: str) -> None:
        """Ask for those that were not asked for on this connection.

        Args:
            own: The client's own service.
        """
        self._own = own
        self._is_open = True
        self._ask()

    def _ask(self) -> None:
        for watch in self._watches if self._is_open else ():
            if not watch.is_sent:
                watch.is_sent = True
                self._frames.append(encode_watch(watch.id, watch.service, watch.user))

    @property
    def due(self) -> bool:
        """Whether `next_frame` has a frame."""
        return bool(self._frames)

    def next_frame(self) -> str | None:
        """Return the next frame to write; None if there is none."""
        return self._frames.popleft() if self._frames else None

    # -- from the application ----------------------------------------------------------------

    def add(self, service: str | None, user: str) -> str:
        """Watch a user's presence from now on; return the id of the watch. Idempotent.

        Args:
            service: The user's; None: the client's own.
            user: Whom.
        """
        id = self.id_of(service, user)
        if id is None:
            self._count += 1
            id = f"{self._prefix}watch-{self._count}"
            self._watches.append(_Watch(id, None if service == self._own else service, user))
            self._ask()
        return id

    def id_of(self, service: str | None, user: str) -> str | None:
        """Return the id of a watch; None if there is none."""
        found = (w.id for w in self._watches if w.user == user and self._same(w.service, service))
        return next(found, None)

    def _same(self, one: str | None, other: str | None) -> bool:
        """Say whether two name the same service; None is the client's own, perhaps unknown yet."""
        return one == other or {one, other} == {None, self._own}

    def known(self, id: str) -> tuple[bool, bool | None]:
        """Return whether a watch was answered, and the last state."""
        watch = self._by_id(id)
        return (False, None) if watch is None else (watch.told, watch.online)

    def remove(self, id: str) -> list[Event]:
        """End a watch. Idempotent."""
        watch = self._by_id(id)
        if watch is None:
            return []
        self._watches.remove(watch)
        if watch.is_sent and self._is_open:
            self._frames.append(encode_unwatch(watch.service, watch.user))
        text = "the watch was ended before it was answered"
        return [] if watch.told else [Watched(id, GatewayError("ended", text, False))]

    # -- from the gateway --------------------------------------------------------------------

    def receive(self, frame: Presence | Unwatched) -> list[Event]:
        """Take a frame about somebody who is watched."""
        if isinstance(frame, Watching):
            return self._answered(frame)
        return self._changed(frame) if isinstance(frame, Presence) else self._ended(frame)

    def _answered(self, frame: Watching) -> list[Event]:
        watch = self._by_id(frame.id)
        if watch is None or watch not in self._all_of(frame.service, frame.user):
            return []
        if watch.told:
            return self._changed(frame)
        watch.told, watch.online = True, frame.online
        self._changed(frame)
        seen = Presence(frame.service, frame.user, frame.online)
        return [Watched(watch.id, frame.online), Seen(seen)]

    def _changed(self, frame: Presence) -> list[Event]:
        """Take the state of a user; it is news only for a watch that was answered."""
        events: list[Event] = []
        for watch in self._all_of(frame.service, frame.user):
            if watch.told and watch.online is not frame.online:
                watch.online = frame.online
                events = [Seen(Presence(frame.service, frame.user, frame.online))]
        return events

    def _ended(self, frame: Unwatched) -> list[Event]:
        events: list[Event] = []
        for watch in self._all_of(frame.service, frame.user):
            error = GatewayError(frame.code, frame.reason, False, id=watch.id)
            events += self._lost(watch, error, frame.service)
        return events

    def refused(self, frame: Refused) -> list[Event] | None:
        """Take an error; return None if it is not about a watch."""
        watch = None if frame.id is None else self._by_id(frame.id)
        if watch is None:
            return None
        error = GatewayError(frame.code, frame.message, frame.temporary, id=watch.id)
        return self._lost(watch, error, watch.service or self._own or "")

    def _lost(self, watch: _Watch, error: GatewayError, service: str) -> list[Event]:
        self._watches.remove(watch)
        if not watch.told:
            return [Watched(watch.id, error)]
        if watch.online is None:
            return [Unclaimed(error)]
        return [Unclaimed(error), Seen(Presence(service, watch.user, None))]

    def end(self) -> list[str]:
        """Forget all; return the ids of those that were not answered."""
        waiting = [watch.id for watch in self._watches if not watch.told]
        self._watches.clear()
        return waiting

    def _by_id(self, id: str) -> _Watch | None:
        return next((watch for watch in self._watches if watch.id == id), None)

    def _all_of(self, service: str, user: str) -> list[_Watch]:
        """Return the watches of a user: one that names the service, and one that does not."""
        return [w for w in self._watches if w.user == user and (w.service or self._own) == service]
