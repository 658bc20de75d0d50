"""The topics of a client as applications use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Began, Delivered, Ended, Event, ReadersSeen, TokenWanted
from wsgateway.client.exchange import Exchange
from wsgateway.client.inbox import Position
from wsgateway.client.readers import ReadersChanged
from wsgateway.client.subscriptions import Subscriptions
from wsgateway.client.topic import Topic, TopicToken
from wsgateway.client.watching import Watching
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.v1 import Subscribed

__all__ = ["Topics"]

TopicEvent = Delivered | Began | Ended | ReadersSeen | TokenWanted


class Topics:
    """Those that have not ended, by name.

    Args:
        subscriptions: Decides what to write.
        exchange: Sends what the application writes to them.
        watching: Watches who reads them.
        auto_ack: Acknowledge a message when the next one is asked for.
        backoff: Delays between attempts to get a token.
        on_error: Called with each refusal that no call waits for.
        on_events: Called with what follows from a call.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        exchange: Exchange,
        watching: Watching,
        *,
        auto_ack: bool,
        backoff: Backoff,
        on_error: Callable[[GatewayError], None],
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        self._subscriptions = subscriptions
        self._exchange = exchange
        self._watching = watching
        self._auto_ack = auto_ack
        self._backoff = backoff
        self._on_error = on_error
        self._on_events = on_events
        self._topics: dict[str, Topic] = {}

    def open(
        self, name: str, since: Since | None, token: TopicToken | None, **options: Any
    ) -> Topic:
        """Return the topic *name*; see `Client.topic`."""
        known = self._topics.get(name)
        if known is None:
            return self._add(name, since, token, **options)
        if any(value is not None for value in (since, token, *options.values())):
            raise ValueError(f"topic {name!r} is already open; close it before you choose options")
        return known

    def _add(
        self,
        name: str,
        since: Since | None,
        token: TopicToken | None,
        *,
        position: Position | None,
        on_subscribed: Callable[[Subscribed], object] | None,
        on_readers: Callable[[ReadersChanged], object] | None,
    ) -> Topic:
        subscription, events = self._subscriptions.add(
            name,
            since="new" if since is None else since,
            position=position,
            token=None if callable(token) else token,
            renewable=callable(token),
        )
        topic = self._topics[name] = Topic(
            subscription,
            self._subscriptions,
            self._exchange,
            auto_ack=self._auto_ack,
            backoff=self._backoff,
            watching=self._watching,
            token=token,
            on_subscribed=on_subscribed,
            on_readers=on_readers,
            on_error=self._on_error,
            on_events=self._on_events,
        )
        self._on_events(events)
        self._exchange.wake()
        return topic

    def tell(self, event: TopicEvent, *, is_closing: bool) -> None:
        """Tell a topic what happened; *is_closing*: the application closes the client."""
        assert event.subscription is not None
        topic = self._topics[event.subscription.topic]
        match event:
            case Delivered(received, generation):
                topic.deliver(received, generation)
            case Began(_, subscribed):
                topic.begin(subscribed)
            case Ended(_, error):
                del self._topics[topic.name]
                topic.end(error, stops=is_closing)
            case ReadersSeen(_, change, error):
                if not is_closing:
                    topic.change_readers(change, error)
            case TokenWanted(_, watch):
                topic.fetch_token(watch)
