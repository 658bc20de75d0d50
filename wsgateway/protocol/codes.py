"""Close codes: number, reason, what a raw client gets instead, whether to reconnect.

4000-4499 tell a client to reconnect, 4500-4999 to stop (Centrifugo's rule). A raw socket
(without the ``wsgateway.v1`` subprotocol) gets the standard code nearest to it: 1011, 1012 or 1013
if it should come back, 1008 or 1009 if not. htmx and other clients reconnect after the first three.
``docs/reference/protocol.md`` and the JavaScript client are checked against this table.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode"]


class CloseCode(IntEnum):
    """A close code of the gateway's own range."""

    reason: str
    raw: int

    # The defaults are for the lookup by number, `CloseCode(4500)`; every member has all three
    def __new__(cls, value: int, reason: str = "", raw: int = 1008) -> CloseCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.reason = reason
        member.raw = raw
        return member

    SHUTTING_DOWN = 4001, "shutting down", 1012
    TOO_SLOW = 4008, "too slow", 1013
    NO_PONG = 4012, "no pong", 1011
    RATE_LIMIT = 4013, "rate limit exceeded", 1013
    BROKER_UNAVAILABLE = 4014, "broker unavailable", 1013
    STREAM_REPLACED = 4015, "stream replaced", 1013
    CREDENTIALS_CHANGED = 4016, "credentials changed", 1012
    QUEUE_FULL = 4017, "queue full", 1013
    INTERNAL_ERROR = 4018, "internal error", 1011
    BAD_REQUEST = 4500, "bad request", 1008
    NOT_AUTHENTICATED = 4501, "not authenticated", 1008
    FORBIDDEN = 4503, "forbidden", 1008
    TOO_MANY_CONNECTIONS = 4504, "too many connections", 1008
    DISCONNECTED_BY_OPERATOR = 4505, "disconnected by an operator", 1008
    UNKNOWN_PATH = 4506, "unknown path", 1008
    MESSAGE_TOO_BIG = 4509, "message too big", 1009

    @property
    def reconnect(self) -> bool:
        """Whether a client should come back by itself."""
        return self < 4500
