"""One topic that a client reads, over all its connections. Pure."""

from __future__ import annotations

import math
from enum import Enum

from wsgateway.client.errors import GatewayError
from wsgateway.client.inbox import ClientInbox, Position
from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.v1 import ErrorCode, Subscribed, encode_subscribe

__all__ = ["Subscription", "SubscriptionState"]

STABLE = 5.0
"""Seconds that a subscription must last to reset its backoff."""


class SubscriptionState(Enum):
    """What a subscription waits for."""

    WAITING = "waiting"
    """For a connection, or for its delay to pass."""
    FETCHING = "fetching"
    """For `Subscriptions.authorize`."""
    ASKED = "asked"
    """For the gateway's answer."""
    OPEN = "open"
    """For messages."""
    ENDED = "ended"
    """For nothing: it was closed, refused or withdrawn."""


class Subscription:
    """One topic of a client; made by `Subscriptions.add`.

    Args:
        topic: Its name.
        number: Which of the client's subscriptions it is, from 1.
        since: Where to begin without a position.
        position: Where to resume; None: where *since* says.
        token: What proves that the client may read it; None without.
        renewable: Whether the application can provide a token, or another one after a refusal.
    """

    __slots__ = (
        "_since",
        "accepted",
        "attempt",
        "begun_at",
        "error",
        "id",
        "inbox",
        "not_before",
        "number",
        "renewable",
        "stale",
        "state",
        "token",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        number: int,
        *,
        since: Since,
        position: Position | None,
        token: str | None,
        renewable: bool,
    ) -> None:
        self.topic = topic
        self.number = number
        self.inbox = ClientInbox(position)
        """Which of its messages are new."""
        self.state = SubscriptionState.WAITING
        self.id = ""
        """Names the last question to the gateway."""
        self.token = token
        self.renewable = renewable
        self.stale = renewable and token is None
        """Whether to ask the application for a token first."""
        self.accepted = False
        """Whether the gateway has accepted this token, so that it has expired if it is refused."""
        self.begun_at = math.inf
        """When it was last answered."""
        self.attempt = 0
        """Refusals in a row."""
        self.not_before = -math.inf
        """When to ask for it again at the earliest."""
        self.error: GatewayError | None = None
        """Why it ended; None if it has not, or with the client."""
        self._since = since

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return self.state is SubscriptionState.ENDED

    @property
    def wants_token(self) -> bool:
        """Whether it waits for `Subscriptions.authorize`."""
        return self.state is SubscriptionState.FETCHING

    def connecting(self) -> None:
        """Note that it must be asked for on the next connection."""
        if self.renewable and not self.accepted:
            self.stale = True  # it may expire until then
        if self.state is not SubscriptionState.FETCHING:
            self.state = SubscriptionState.WAITING

    def ask(self, id: str) -> str:
        """Return the frame that asks for it."""
        self.state, self.id = SubscriptionState.ASKED, id
        position = self.inbox.connecting()
        if position is None:
            return encode_subscribe(id, self.topic, since=self._since, token=self.token)
        epoch, offset, _ = position
        return encode_subscribe(id, self.topic, epoch=epoch, offset=offset, token=self.token)

    def concerns(self, id: str | None) -> bool:
        """Say whether a frame is about this subscription, not about an earlier one.

        Args:
            id: Of the question that the frame answers; None: it answers none.
        """
        if id is None:
            return self.state is SubscriptionState.OPEN
        return self.state is SubscriptionState.ASKED and self.id == id

    def begin(self, frame: Subscribed, now: float) -> None:
        """Take the gateway's answer, or its news."""
        if frame.durable:
            self.inbox.subscribed(
                Position(frame.epoch, frame.offset),
                frame.reason,
                recovered=frame.recovered,
                answers=frame.id is not None,
            )
        if frame.id is not None:
            self.state, self.accepted, self.begun_at = SubscriptionState.OPEN, True, now

    def renew(self, code: str) -> bool:
        """Say whether another token may help; then ask the application for one."""
        if code != ErrorCode.FORBIDDEN or not self.renewable or not self.accepted:
            return False
        self.accepted, self.stale = False, True
        return True

    def lasted(self, now: float) -> bool:
        """Say whether it was accepted, and that is some time ago; say so once."""
        begun_at, self.begun_at = self.begun_at, math.inf
        return now - begun_at >= STABLE
