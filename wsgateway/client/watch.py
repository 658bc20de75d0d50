"""What a client watches: a user, or who reads a topic. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import (
    Event,
    ReadersSeen,
    Seen,
    TokenWanted,
    Unclaimed,
)
from wsgateway.client.readers import Readers, ReadersChanged, readers_after
from wsgateway.client.subscription import Subscription, SubscriptionState
from wsgateway.protocol import v1
from wsgateway.protocol.v1 import ErrorCode, Presence, TopicUnwatched, Unwatched, Watching

__all__ = ["News", "ReadersWatch", "UserWatch", "Watch", "WatchFrame", "WatchState"]

News = Presence | v1.Readers | v1.ReadersChanged
NOTHING = Readers(None, None, complete=False)

WatchFrame = News | Unwatched | TopicUnwatched


class WatchState(Enum):
    """How far a watch has come on this connection."""

    WAITING = "waiting"
    """To be asked for."""
    FETCHING = "fetching"
    """The application is asked for another token."""
    ASKED = "asked"
    """Waiting for the answer."""
    OPEN = "open"
    """Hears the news."""


class Watch(ABC):
    """One watch, over all connections.

    Args:
        id: Names the question to the gateway.
    """

    __slots__ = ("answer", "id", "is_told", "state")

    answer: Any
    """What the application knows."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.state = WatchState.WAITING
        self.is_told = False
        """Whether it was answered, so that the application knows `answer`."""

    @property
    def is_known_to_gateway(self) -> bool:
        """Whether the gateway has been asked, and has not refused."""
        return self.state in (WatchState.ASKED, WatchState.OPEN)

    def connecting(self) -> None:
        """Note that it must be asked for on the next connection."""
        self.state = WatchState.WAITING

    @property
    @abstractmethod
    def may_ask(self) -> bool:
        """Whether the gateway can be asked on this connection."""

    @property
    @abstractmethod
    def question(self) -> str:
        """The frame that asks for it."""

    @property
    @abstractmethod
    def farewell(self) -> str:
        """The frame that ends it."""

    @abstractmethod
    def concerns(self, frame: WatchFrame, own: str | None) -> bool:
        """Say whether *frame* is about it; *own*: the client's service."""

    @abstractmethod
    def take(self, frame: Any) -> Event | None:
        """Take what a frame says that concerns it; return what is news."""

    @abstractmethod
    def lost(self, error: GatewayError, own: str | None) -> list[Event]:
        """Return what is news for the application once the gateway has ended the watch."""

    def renew(self, error: GatewayError) -> Event | None:
        """Return what asks the application for another token, if that may help."""
        return None


class UserWatch(Watch):
    """Whether a user is online.

    Args:
        id: Names the question to the gateway.
        service: The user's; None: the client's own.
        user: Whom.
    """

    __slots__ = ("service", "user")

    def __init__(self, id: str, service: str | None, user: str) -> None:
        super().__init__(id)
        self.service = service
        self.user = user
        self.answer: bool | None = None

    @property
    def may_ask(self) -> bool:
        """See `Watch.may_ask`."""
        return True

    @property
    def question(self) -> str:
        """See `Watch.question`."""
        return v1.encode_watch(self.id, self.service, self.user)

    @property
    def farewell(self) -> str:
        """See `Watch.farewell`."""
        return v1.encode_unwatch(self.service, self.user)

    def concerns(self, frame: WatchFrame, own: str | None) -> bool:
        """See `Watch.concerns`."""
        if not isinstance(frame, Presence | Unwatched):
            return False
        return (frame.service, frame.user) == (self.service or own, self.user)

    def take(self, frame: Presence) -> Event | None:
        """See `Watch.take`."""
        is_answer = isinstance(frame, Watching) and frame.id == self.id
        if not (self.is_told or is_answer):
            return None
        is_news = not self.is_told or self.answer is not frame.online
        self.is_told, self.answer = True, frame.online
        return Seen(Presence(frame.service, frame.user, frame.online)) if is_news else None

    def lost(self, error: GatewayError, own: str | None) -> list[Event]:
        """See `Watch.lost`."""
        if self.answer is None:
            return [Unclaimed(error)]
        return [Unclaimed(error), Seen(Presence(self.service or own or "", self.user, None))]


class ReadersWatch(Watch):
    """Who reads a topic. It is asked for once the gateway has accepted the subscription.

    Args:
        id: Names the question to the gateway.
        subscription: The client's to the topic.
    """

    __slots__ = ("_has_renewed", "subscription")

    def __init__(self, id: str, subscription: Subscription) -> None:
        super().__init__(id)
        self.subscription = subscription
        self.answer: Readers = NOTHING
        self._has_renewed = False  # the token, on this connection

    def connecting(self) -> None:
        """See `Watch.connecting`."""
        super().connecting()
        self._has_renewed = False

    @property
    def may_ask(self) -> bool:
        """See `Watch.may_ask`."""
        return self.subscription.state is SubscriptionState.OPEN

    @property
    def question(self) -> str:
        """See `Watch.question`."""
        return v1.encode_watch_topic(self.id, self.subscription.topic, self.subscription.token)

    @property
    def farewell(self) -> str:
        """See `Watch.farewell`."""
        return v1.encode_unwatch_topic(self.subscription.topic)

    def concerns(self, frame: WatchFrame, own: str | None) -> bool:
        """See `Watch.concerns`."""
        if isinstance(frame, Presence | Unwatched) or frame.topic != self.subscription.topic:
            return False
        if isinstance(frame, v1.Readers) and frame.id is not None:
            return frame.id == self.id and self.state is WatchState.ASKED
        return self.state is WatchState.OPEN  # otherwise it is about a watch before

    def take(self, frame: v1.Readers | v1.ReadersChanged) -> Event | None:
        """See `Watch.take`."""
        before = self.answer if self.is_told else None
        now = readers_after(self.answer, frame)
        change = ReadersChanged.between(before, now)
        self.is_told, self.state = True, WatchState.OPEN
        if before is not None and not change.differs_from(before):
            return None
        self.answer = now
        return ReadersSeen(self.subscription, change)

    def lost(self, error: GatewayError, own: str | None) -> list[Event]:
        """See `Watch.lost`."""
        text = f"cannot watch any more who reads {self.subscription.topic!r}: {error.message}"
        return [self.forget(GatewayError(error.code, text, error.temporary, id=error.id))]

    def forget(self, error: GatewayError | None = None) -> ReadersSeen:
        """Return what is news for the application once it cannot know any more who reads it."""
        return ReadersSeen(self.subscription, ReadersChanged.between(self.answer, NOTHING), error)

    def renew(self, error: GatewayError) -> Event | None:
        """See `Watch.renew`. The token that let the client subscribe may have expired since."""
        can_help = error.code == ErrorCode.FORBIDDEN and self.subscription.renewable
        if not can_help or self._has_renewed:
            return None
        self._has_renewed, self.state = True, WatchState.FETCHING
        return TokenWanted(self.subscription, self.id)
