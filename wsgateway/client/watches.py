"""Whose presence a client watches, over all its connections. Pure.

Behaves like the class ``Watches`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    """The watches of one client. They are asked for again on each connection."""

    __slots__ = ("_count", "_watches")

    def __init__(self) -> None:
        self._count = 0  # numbers the watches
        self._watches: list[_Watch] = []

    def add(self, service: str | None, user: str) -> str:
        """Return the id of a watch, made unless there is one."""
        id = self.id_of(service, user)
        if id is None:
            self._count += 1
            id = f"watch-{self._count}"
            self._watches.append(_Watch(id, service, user))
        return id

    def id_of(self, service: str | None, user: str) -> str | None:
        """Return the id of a watch; None if there is none."""
        wanted = service, user
        return next((w.id for w in self._watches if (w.service, w.user) == wanted), None)

    def known(self, id: str) -> tuple[bool, bool | None]:
        """Return whether a watch was answered, and the last state."""
        watch = self._by_id(id)
        return (False, None) if watch is None else (watch.told, watch.online)

    def remove(self, id: str) -> tuple[str | None, list[Event]]:
        """Forget a watch. Idempotent.

        Returns:
            The frame that says so, if the gateway knows of it; and what happened.
        """
        watch = self._by_id(id)
        if watch is None:
            return None, []
        self._watches.remove(watch)
        frame = encode_unwatch(watch.service, watch.user) if watch.is_sent else None
        text = "the watch was ended before it was answered"
        return frame, ([] if watch.told else [Watched(id, GatewayError("ended", text, False))])

    def connecting(self) -> None:
        """Start a connection: all must be asked for on it."""
        for watch in self._watches:
            watch.is_sent = False

    def due(self) -> Iterator[str]:
        """Yield the frames to write now, and count them as sent."""
        for watch in self._watches:
            if not watch.is_sent:
                watch.is_sent = True
                yield encode_watch(watch.id, watch.service, watch.user)

    # -- from the gateway --------------------------------------------------------------------

    def answered(self, frame: Watching, own: str) -> list[Event]:
        """Take the answer to a watch.

        Args:
            frame: What it says.
            own: The client's own service.
        """
        watch = self._by_id(frame.id)
        if watch is None or watch not in self._all_of(frame.service, frame.user, own):
            return []
        if watch.told:
            return self.changed(frame, own)
        watch.told, watch.online = True, frame.online
        self.changed(frame, own)
        seen = Presence(frame.service, frame.user, frame.online)
        return [Watched(watch.id, frame.online), Seen(seen)]

    def changed(self, frame: Presence, own: str) -> list[Event]:
        """Take the state of a user; it is news only for a watch that was answered."""
        events: list[Event] = []
        for watch in self._all_of(frame.service, frame.user, own):
            if watch.told and watch.online is not frame.online:
                watch.online = frame.online
                events = [Seen(Presence(frame.service, frame.user, frame.online))]
        return events

    def ended(self, frame: Unwatched, own: str) -> list[Event]:
        """Take the end of a watch that the gateway has decided."""
        events: list[Event] = []
        for watch in self._all_of(frame.service, frame.user, own):
            error = GatewayError(frame.code, frame.reason, False, id=watch.id)
            events += self._lost(watch, error, frame.service)
        return events

    def refused(self, frame: Refused, own: str) -> list[Event] | None:
        """Take an error; return None if it is not about a watch."""
        watch = None if frame.id is None else self._by_id(frame.id)
        if watch is None:
            return None
        error = GatewayError(frame.code, frame.message, frame.temporary, id=watch.id)
        return self._lost(watch, error, watch.service or own)

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

    def _all_of(self, service: str, user: str, own: str) -> list[_Watch]:
        """Return the watches of a user: one that names the service, and one that does not."""
        return [w for w in self._watches if w.user == user and (w.service or own) == service]
