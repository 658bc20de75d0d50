"""What a client does after a connection has ended. Pure."""

from __future__ import annotations

from wsgateway.client.inbox import ClientInbox, Position
from wsgateway.client.outbox import ClientOutbox
from wsgateway.codes import CloseCode

__all__ = ["ClientInbox", "ClientOutbox", "Position", "should_reconnect"]

_FINAL = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Standard close codes after which the same client would only be refused again."""


def should_reconnect(code: int) -> bool:
    """Say whether to come back after this close code."""
    if code >= 4000:
        return code < CloseCode.BAD_REQUEST
    return code not in _FINAL
