"""Whose presence a client watches, over all its connections. Pure.

Behaves like the classes ``Watches`` and ``ReadersWatch`` of ``wsgateway.js``: see
``tests/vectors/client.json``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Event, Watched
from wsgateway.client.readers import Readers
from wsgateway.client.subscription import Subscription
from wsgateway.client.watch import ReadersWatch, UserWatch, Watch, WatchFrame, WatchState
from wsgateway.protocol.v1 import Refused, TopicUnwatched, Unwatched

__all__ = ["ClientWatches"]


class ClientWatches:
    """The watches of one client. They are asked for again on each connection.

    Args:
        frames: Takes what is to be written.
        prefix: Of the ids of questions.
    """

    __slots__ = ("_count", "_frames", "_is_open", "_own", "_prefix", "_watches")

    def __init__(self, frames: deque[str], prefix: str = "") -> None:
        self._frames = frames
        self._prefix = prefix
        self._count = 0  # numbers the watches
        self._watches: list[Watch] = []
        self._is_open = False  # whether there is a connection that was welcomed
        self._own: str | None = None  # the client's own service, once it is known

    # -- connections -------------------------------------------------------------------------

    def connecting(self) -> None:
        """Start a connection, or note that it has ended: all must be asked for on the next."""
        self._is_open = False
        for watch in self._watches:
            watch.connecting()

    def welcomed(self, own: str) -> None:
        """Ask for those that were not asked for on this connection.

        Args:
            own: The client's own service.
        """
        self._own = own
        self._is_open = True
        self.ask()

    def ask(self) -> None:
        """Ask for those that wait, and can be asked for now. Idempotent."""
        for watch in self._watches if self._is_open else ():
            if watch.state is WatchState.WAITING and watch.may_ask:
                watch.state = WatchState.ASKED
                self._frames.append(watch.question)

    # -- from the application ----------------------------------------------------------------

    def add(self, service: str | None, user: str) -> str:
        """Watch a user's presence from now on; return the id of the watch. Idempotent.

        Args:
            service: The user's; None: the client's own.
            user: Whom.
        """
        id = self.id_of(service, user)
        if id is None:
            id = self._new_id()
            service = None if service == self._own else service
            self._add(UserWatch(id, service, user))
        return id

    def add_readers(self, subscription: Subscription) -> str:
        """Watch who reads a topic from now on; return the id of the watch. Idempotent."""
        id = self.id_of_readers(subscription)
        if id is None:
            id = self._new_id()
            self._add(ReadersWatch(id, subscription))
        return id

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._prefix}watch-{self._count}"

    def _add(self, watch: Watch) -> None:
        self._watches.append(watch)
        self.ask()

    def id_of(self, service: str | None, user: str) -> str | None:
        """Return the id of the watch of a user; None if there is none."""
        users = (watch for watch in self._watches if isinstance(watch, UserWatch))
        found = (w.id for w in users if w.user == user and self._same(w.service, service))
        return next(found, None)

    def _same(self, one: str | None, other: str | None) -> bool:
        """Say whether two name the same service; None is the client's own, perhaps unknown yet."""
        return one == other or {one, other} == {None, self._own}

    def id_of_readers(self, subscription: Subscription) -> str | None:
        """Return the id of the watch of a topic; None if there is none."""
        watch = self._of(subscription)
        return None if watch is None else watch.id

    def _of(self, subscription: Subscription) -> ReadersWatch | None:
        for watch in self._watches:
            if isinstance(watch, ReadersWatch) and watch.subscription is subscription:
                return watch
        return None

    def readers_of(self, subscription: Subscription) -> Readers | None:
        """Return who reads a topic, as was heard last; None if it is not watched or not known."""
        watch = self._of(subscription)
        return watch.answer if watch is not None and watch.is_told else None

    def known(self, id: str) -> tuple[bool, Any]:
        """Return whether a watch was answered, and what the application knows."""
        watch = self._by_id(id)
        return (False, None) if watch is None else (watch.is_told, watch.answer)

    def remove(self, id: str) -> list[Event]:
        """End a watch. Idempotent."""
        watch = self._by_id(id)
        if watch is None:
            return []
        text = "the watch was ended before it was answered"
        self._drop(watch)
        return [] if watch.is_told else [Watched(id, GatewayError("ended", text, False))]

    def _drop(self, watch: Watch) -> None:
        self._watches.remove(watch)
        if watch.is_known_to_gateway and self._is_open:
            self._frames.append(watch.farewell)

    def end_topic(self, subscription: Subscription, error: GatewayError) -> list[Event]:
        """End the watch of a topic that the client reads no more. Idempotent."""
        watch = self._of(subscription)
        if watch is None:
            return []
        self._drop(watch)
        return [watch.forget() if watch.is_told else Watched(watch.id, error.about(watch.id))]

    # -- tokens of topics --------------------------------------------------------------------

    def wants_token(self, id: str) -> bool:
        """Say whether a watch waits for `authorize`."""
        watch = self._by_id(id)
        return watch is not None and watch.state is WatchState.FETCHING

    def authorize(self, id: str, token: str) -> None:
        """Take the *token* that `TokenWanted` asked for, unless it is too late."""
        watch = self._by_id(id)
        if isinstance(watch, ReadersWatch) and watch.state is WatchState.FETCHING:
            watch.subscription.token, watch.state = token, WatchState.WAITING
            self.ask()

    def fail(self, id: str, error: GatewayError) -> list[Event]:
        """End a watch whose token the application refuses. Idempotent."""
        watch = self._by_id(id)
        return [] if watch is None else self._lost(watch, error)

    # -- from the gateway --------------------------------------------------------------------

    def receive(self, frame: WatchFrame) -> list[Event]:
        """Take a frame about what is watched."""
        concerned = [watch for watch in self._watches if watch.concerns(frame, self._own)]
        if isinstance(frame, Unwatched | TopicUnwatched):
            return [
                event
                for watch in concerned
                for event in self._lost(watch, GatewayError(frame.code, frame.reason, False))
            ]
        id = getattr(frame, "id", None)
        if id is not None and all(watch.id != id for watch in concerned):
            return []  # it answers a watch that has ended
        events: list[Event] = []
        news: Event | None = None
        for watch in concerned:
            was_told = watch.is_told
            news = watch.take(frame) or news  # of two watches of the same user, once
            if watch.is_told and not was_told:
                events.append(Watched(watch.id, watch.answer))
        return events if news is None else [*events, news]

    def refused(self, frame: Refused) -> list[Event] | None:
        """Take an error; return None if it is not about a watch."""
        watch = None if frame.id is None else self._by_id(frame.id)
        if watch is None:
            return None
        error = GatewayError(frame.code, frame.message, frame.temporary)
        renewal = watch.renew(error)
        return self._lost(watch, error) if renewal is None else [renewal]

    def _lost(self, watch: Watch, error: GatewayError) -> list[Event]:
        self._watches.remove(watch)
        error = error.about(watch.id)
        return watch.lost(error, self._own) if watch.is_told else [Watched(watch.id, error)]

    def end(self) -> list[str]:
        """Forget those that were not answered; return their ids."""
        waiting = [watch.id for watch in self._watches if not watch.is_told]
        self._watches = [watch for watch in self._watches if watch.is_told]
        return waiting

    def _by_id(self, id: str) -> Watch | None:
        return next((watch for watch in self._watches if watch.id == id), None)
