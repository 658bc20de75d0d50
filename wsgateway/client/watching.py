"""Callers that watch, and what they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from wsgateway.client.calls import Calls
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Event
from wsgateway.client.readers import Readers
from wsgateway.client.session import ClientSession
from wsgateway.client.subscription import Subscription

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
        self._calls = Calls[Any](self._leave)  # answers to come

    def answered(self, id: str, answer: bool | Readers | GatewayError | None) -> None:
        """Take the answer to a watch."""
        self._calls.resolve(id, answer)

    async def watch(self, service: str | None, user: str) -> bool | None:
        """Watch a user; return whether they are online now; see `Client.watch`."""
        return cast("bool | None", await self._answer(self._session.watch(service, user)))

    async def watch_readers(self, subscription: Subscription) -> Readers:
        """Watch a topic; return who reads it now; see `Topic.watch`."""
        return cast("Readers", await self._answer(self._session.watch_readers(subscription)))

    async def _answer(self, id: str) -> Any:
        is_known, answer = self._session.watches.known(id)
        if is_known:
            return answer
        with self._calls.joined(id) as coming:
            self._wake()
            return await asyncio.shield(coming)

    def readers_of(self, subscription: Subscription) -> Readers | None:
        """Return who reads a topic, as was heard last; see `Topic.readers`."""
        return self._session.watches.readers_of(subscription)

    def unwatch(self, service: str | None, user: str) -> None:
        """End the watch of a user; see `Client.unwatch`."""
        self._end(self._session.watches.id_of(service, user))

    def unwatch_readers(self, subscription: Subscription) -> None:
        """End the watch of a topic; see `Topic.unwatch`."""
        self._end(self._session.watches.id_of_readers(subscription))

    def _end(self, id: str | None) -> None:
        if id is not None:
            self._on_events(self._session.watches.remove(id))
            self._wake()

    # -- tokens of topics --------------------------------------------------------------------

    def wants_token(self, id: str) -> bool:
        """See `ClientWatches.wants_token`."""
        return self._session.watches.wants_token(id)

    def authorize(self, id: str, token: str) -> None:
        """See `ClientWatches.authorize`."""
        self._session.watches.authorize(id, token)
        self._wake()

    def fail(self, id: str, error: GatewayError) -> None:
        """See `ClientWatches.fail`."""
        self._on_events(self._session.watches.fail(id, error))
        self._wake()

    def _leave(self, id: str) -> None:
        is_known, _ = self._session.watches.known(id)
        if not is_known:
            self._session.watches.remove(id)
            self._wake()
