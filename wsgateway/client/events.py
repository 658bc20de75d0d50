"""What a `ClientSession` reports to the client. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsgateway.client.errors import GatewayError
from wsgateway.client.readers import Readers, ReadersChanged
from wsgateway.protocol.v1 import Presence, ServerMessage, Subscribed, Welcome

if TYPE_CHECKING:
    from wsgateway.client.subscription import Subscription

__all__ = [
    "Answered",
    "Began",
    "Confirmed",
    "Delivered",
    "Ended",
    "Event",
    "Failed",
    "ReadersSeen",
    "Seen",
    "TokenWanted",
    "Unclaimed",
    "Watched",
    "Welcomed",
]


@dataclass(slots=True)
class Welcomed:
    """The gateway said where delivery begins, or that messages are missing."""

    welcome: Welcome


@dataclass(slots=True)
class Delivered:
    """A new message arrived; report it to the session's or subscription's ``processed`` later."""

    message: ServerMessage
    generation: int
    subscription: Subscription | None = None
    """Whose it is; None: the inbox's."""


@dataclass(slots=True)
class Confirmed:
    """The message *id* is stored."""

    id: str


@dataclass(slots=True)
class Failed:
    """The message *id* was refused, and is not sent again."""

    id: str
    error: GatewayError


@dataclass(slots=True)
class Answered:
    """The request *id* got its reply, or an error instead."""

    id: str
    answer: ServerMessage | GatewayError


@dataclass(slots=True)
class Unclaimed:
    """A reply or an error that no call waits for."""

    answer: ServerMessage | GatewayError


@dataclass(slots=True)
class Watched:
    """The watch *id* was answered: whether the user is online, who reads the topic, or why not."""

    id: str
    answer: bool | Readers | GatewayError | None


@dataclass(slots=True)
class Seen:
    """A watched user's state is news."""

    presence: Presence


@dataclass(slots=True)
class ReadersSeen:
    """Who reads a watched topic is news.

    If the gateway has ended the watch, *error* says why. It is not asked for again.
    """

    subscription: Subscription
    readers: ReadersChanged
    error: GatewayError | None = None


@dataclass(slots=True)
class Began:
    """A subscription begins, or its topic's stream or the client's right has changed."""

    subscription: Subscription
    subscribed: Subscribed


@dataclass(slots=True)
class Ended:
    """A subscription was refused or has ended, and is not asked for again."""

    subscription: Subscription
    error: GatewayError


@dataclass(slots=True)
class TokenWanted:
    """Get a token for a topic.

    Then call `Subscriptions.authorize` or `Subscriptions.fail`; if *watch* names the watch that
    needs it, `ClientWatches.authorize` or `ClientWatches.fail`.
    """

    subscription: Subscription
    watch: str | None = None


Event = (
    Welcomed
    | Delivered
    | Confirmed
    | Failed
    | Answered
    | Unclaimed
    | Watched
    | Seen
    | ReadersSeen
    | Began
    | Ended
    | TokenWanted
)
