"""What a `ClientSession` reports to the client. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wsgateway.client.errors import GatewayError
from wsgateway.protocol.v1 import Presence, ServerMessage, Welcome

__all__ = [
    "Answered",
    "Confirmed",
    "Delivered",
    "Event",
    "Failed",
    "Seen",
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
    """A new message arrived; report it to `ClientSession.processed` later."""

    message: ServerMessage
    generation: int


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
    """The watch *id* was answered: whether the user is online, or why it may not be watched."""

    id: str
    answer: bool | GatewayError | None


@dataclass(slots=True)
class Seen:
    """A watched user's state is news."""

    presence: Presence


Event = Welcomed | Delivered | Confirmed | Failed | Answered | Unclaimed | Watched | Seen
