"""What happens to a client, as `ClientSession` tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wsgateway.client.errors import GatewayError
from wsgateway.protocol.v1 import ServerMessage, Welcome

__all__ = ["Answered", "Confirmed", "Delivered", "Event", "Failed", "Unclaimed", "Welcomed"]


@dataclass(slots=True)
class Welcomed:
    """The gateway said where delivery begins, or that messages are missing."""

    welcome: Welcome


@dataclass(slots=True)
class Delivered:
    """A message arrived that was not here before; tell `ClientSession.processed` later."""

    message: ServerMessage
    life: int


@dataclass(slots=True)
class Confirmed:
    """The message *id* is stored."""

    id: str


@dataclass(slots=True)
class Failed:
    """The message *id* is not confirmed, and is not sent again."""

    id: str
    error: GatewayError


@dataclass(slots=True)
class Answered:
    """The request *id* has its reply, or the error that takes its place."""

    id: str
    answer: ServerMessage | GatewayError


@dataclass(slots=True)
class Unclaimed:
    """A reply, or an error, that nobody here waits for."""

    answer: ServerMessage | GatewayError


Event = Welcomed | Delivered | Confirmed | Failed | Answered | Unclaimed
