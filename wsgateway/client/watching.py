"""Callers that watch, and what they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from wsgateway.client.calls import Calls
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Event
from wsgateway.client.session import ClientSession

__all__ = ["Watching"]


class Watching:
    """Begins watches, and returns when they are answered.

    Args:
        session: Decides what to write.
        wake: Called when there may be something to write.
        on_events: Called with what follows from a call.
    """

    def __init__(
        self,
        session: ClientSession,
        wake: Callable[[], None],
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        self._session = session
        self._wake = wake
        self._on_events = on_events
        self._calls = Calls[bool | None](self._leave)  # answers to come

    def answered(self, id: str, answer: bool | GatewayError | None) -> None:
        """Take the answer to a watch."""
        self._calls.resolve(id, answer)

    async def watch(self, service: str | None, user: str) -> bool | None:
        """Watch a user; return whether they are online now; see `Client.watch`."""
        id = self._session.watch(service, user)
        is_known, online = self._session.watches.known(id)
        if is_known:
            return online
        with self._calls.joined(id) as answer:
            self._wake()
            return await asyncio.shield(answer)

    def unwatch(self, service: str | None, user: str) -> None:
        """End a watch; see `Client.unwatch`."""
        id = self._session.watches.id_of(service, user)
        if id is not None:
            self._on_events(self._session.watches.remove(id))
            self._wake()

    def _leave(self, id: str) -> None:
        is_known, _ = self._session.watches.known(id)
        if not is_known:
            self._session.watches.remove(id)
            self._wake()
