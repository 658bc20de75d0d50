"""The topics that a client reads, over all its connections. Pure.

Behaves like the class ``Topics`` of ``wsgateway.js``: see ``tests/vectors/client.json``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from wsgateway.client.acks import Acks
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Began, Delivered, Ended, Event, TokenWanted
from wsgateway.client.inbox import Position
from wsgateway.client.sending import Sending
from wsgateway.client.subscription import Subscription, SubscriptionState
from wsgateway.client.watches import ClientWatches
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import (
    MAX_SINCE,
    Refused,
    ServerMessage,
    Subscribed,
    Unsubscribed,
    encode_unsubscribe,
)

__all__ = ["Subscriptions"]


class Subscriptions:
    """All topics of a client. They are asked for again on each connection, at once.

    Args:
        acks: The client's acknowledgements.
        sending: What the client sends, also to these topics.
        watches: What the client watches, also who reads these topics.
        frames: Takes what is to be written.
        backoff: Delays until what was refused is asked for again.
        prefix: Of the ids of questions.
    """

    __slots__ = (
        "_acks",
        "_asked",
        "_backoff",
        "_count",
        "_frames",
        "_is_open",
        "_prefix",
        "_retry_at",
        "_sending",
        "_topics",
        "_watches",
    )

    def __init__(
        self,
        acks: Acks,
        sending: Sending,
        watches: ClientWatches,
        frames: deque[str],
        backoff: Backoff,
        prefix: str = "",
    ) -> None:
        self._acks = acks
        self._sending = sending
        self._watches = watches
        self._backoff = backoff
        self._prefix = prefix
        self._count = 0  # numbers the subscriptions
        self._asked = 0  # numbers the questions
        self._topics: dict[str, Subscription] = {}  # those that have not ended
        self._frames = frames
        self._is_open = False  # whether there is a connection that was welcomed
        self._retry_at = math.inf  # when to ask again for what was refused

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the topics."""
        return iter(self._topics)

    # -- connections -------------------------------------------------------------------------

    def connecting(self) -> None:
        """Start a connection, or note that it has ended: all must be asked for on the next."""
        self._is_open = False
        self._retry_at = math.inf
        for subscription in self._topics.values():
            subscription.connecting()

    def welcomed(self, now: float) -> list[Event]:
        """Ask for all of them, but for those that were refused after their delays."""
        self._is_open = True
        events: list[Event] = []
        for subscription in self._topics.values():
            if subscription.stale:
                events += self._ask(subscription)
            else:
                self._ask_later(subscription, now)
        return events

    def _ask(self, subscription: Subscription) -> list[Event]:
        """Ask for a topic, but for its token first."""
        if not self._is_open or subscription.state is not SubscriptionState.WAITING:
            return []
        if subscription.stale:
            subscription.state = SubscriptionState.FETCHING
            return [TokenWanted(subscription)]
        self._asked += 1
        self._frames.append(subscription.ask(f"{self._prefix}topic-{self._asked}"))
        return []

    @property
    def ask_at(self) -> float:
        """When `ask` has something to ask for; ``inf``: not until something changes."""
        return self._retry_at

    def ask(self, now: float) -> None:
        """Ask again for what was refused, after its delay."""
        if self._retry_at > now:
            return
        self._retry_at = math.inf
        for subscription in self._topics.values():
            self._ask_later(subscription, now)

    def _ask_later(self, subscription: Subscription, now: float) -> None:
        """Ask for a topic that has its token, as soon as its delay has passed."""
        if subscription.not_before <= now:
            self._ask(subscription)
        elif subscription.state is SubscriptionState.WAITING:
            self._retry_at = min(self._retry_at, subscription.not_before)

    # -- from the application ----------------------------------------------------------------

    def add(
        self,
        topic: str,
        *,
        since: Since = "new",
        position: Position | None = None,
        token: str | None = None,
        renewable: bool = False,
    ) -> tuple[Subscription, list[Event]]:
        """Read *topic*, which is not read yet, from now on; see `Subscription`.

        Raises:
            ValueError: *topic* or *since* is not possible.
        """
        Topic.parse(topic)
        if since not in ("new", "all") and (type(since) is not int or not 0 < since <= MAX_SINCE):
            text = f"since={since!r} is not 'new', 'all' or a number from 1 to {MAX_SINCE}"
            raise ValueError(text)
        self._count += 1
        added = self._topics[topic] = Subscription(
            topic, self._count, since=since, position=position, token=token, renewable=renewable
        )
        self._sending.block(topic)
        return added, self._ask(added)

    def authorize(self, subscription: Subscription, token: str | None, now: float) -> None:
        """Take the *token* that `TokenWanted` asked for; without a connection, ask again later."""
        if not subscription.wants_token:
            return
        subscription.state = SubscriptionState.WAITING
        if self._is_open:
            subscription.token, subscription.stale = token, False
            self._ask_later(subscription, now)

    def processed(
        self, subscription: Subscription, generation: int, offset: int, now: float
    ) -> None:
        """Record that everything up to *offset* is processed; both are from `Delivered`."""
        subscription.inbox.mark_processed(generation, offset)
        self._ack_soon(subscription, now)

    def _ack_soon(self, subscription: Subscription, now: float) -> None:
        if subscription.state is SubscriptionState.OPEN:
            topic, number = subscription.topic, subscription.number
            self._acks.note(subscription.inbox, now, number=number, topic=topic)

    def remove(self, subscription: Subscription, error: GatewayError) -> list[Event]:
        """Acknowledge what was processed, and end with *error*. Idempotent."""
        if self._is_open and not subscription.ended:
            self._frames += self._acks.take()
        is_known = subscription.state in (SubscriptionState.OPEN, SubscriptionState.ASKED)
        events = self.fail(subscription, error)
        if is_known:
            self._frames.append(encode_unsubscribe(subscription.topic))
        return events

    def fail(self, subscription: Subscription, error: GatewayError) -> list[Event]:
        """End a subscription with *error*. Idempotent."""
        if subscription.ended:
            return []
        subscription.error = error
        return self._end(subscription, error)

    def end(self, error: GatewayError) -> list[Event]:
        """End all, because the client ends."""
        return [event for each in list(self._topics.values()) for event in self._end(each, error)]

    def _end(self, subscription: Subscription, error: GatewayError) -> list[Event]:
        subscription.state = SubscriptionState.ENDED
        del self._topics[subscription.topic]
        self._acks.forget(subscription.number)
        events = self._sending.fail_topic(subscription.topic, error)
        events += self._watches.end_topic(subscription, error)
        return [*events, Ended(subscription, error)]

    # -- from the gateway --------------------------------------------------------------------

    def subscribed(self, frame: Subscribed, now: float) -> list[Event]:
        """Take the word that a subscription begins, or that something has changed."""
        subscription = self._topics.get(frame.topic)
        if subscription is None or not subscription.concerns(frame.id):
            return []
        subscription.begin(frame, now)
        self._sending.unblock(frame.topic)
        self._watches.ask()
        return [Began(subscription, frame)]

    def message(self, message: ServerMessage, now: float) -> list[Event]:
        """Take a message of a topic."""
        subscription = self._topics.get(message.topic or "")
        if subscription is None or subscription.state is not SubscriptionState.OPEN:
            return []  # it was on its way when the subscription ended
        if not message.offset:  # the topic is ephemeral
            return [Delivered(message, 0, subscription)]
        generation = subscription.inbox.accept(message)
        if generation is None:
            self._ack_soon(subscription, now)
            return []
        return [Delivered(message, generation, subscription)]

    def unsubscribed(self, frame: Unsubscribed, now: float) -> list[Event]:
        """Take the word that a subscription was refused, or has ended."""
        subscription = self._topics.get(frame.topic)
        if subscription is None or not subscription.concerns(frame.id):
            return []
        reason = frame.reason or "the gateway ended the subscription"
        error = GatewayError(frame.code or "ended", reason, frame.temporary)
        return self._refused(subscription, error, now)

    def refused(self, frame: Refused, now: float) -> list[Event] | None:
        """Take an error; return None if it is not about a topic."""
        for subscription in self._topics.values() if frame.id is not None else ():
            if subscription.concerns(frame.id):
                error = GatewayError(frame.code, frame.message, frame.temporary)
                return self._refused(subscription, error, now)
        return None

    def _refused(self, subscription: Subscription, error: GatewayError, now: float) -> list[Event]:
        """Ask again later, or end."""
        lasted, renews = subscription.lasted(now), subscription.renew(error.code)
        if not renews and not error.temporary:
            return self.fail(subscription, error)
        self._acks.forget(subscription.number)
        self._sending.block(subscription.topic)
        subscription.state = SubscriptionState.WAITING
        self._postpone(subscription, now, at_once=renews and lasted, again=lasted)
        if renews:
            return self._ask(subscription)
        self._ask_later(subscription, now)
        return []

    def _postpone(
        self, subscription: Subscription, now: float, *, at_once: bool, again: bool
    ) -> None:
        """Set when to ask again; *again*: the delays begin with the first one again."""
        if again:
            subscription.attempt = 0
        if not at_once:
            subscription.not_before = now + self._backoff.delay(subscription.attempt)
            subscription.attempt += 1
