"""The headers that a bridge adds to what it carries. Pure."""

from __future__ import annotations

from wsgateway.broker.messages import (
    CLIENT_ID_HEADER,
    CONNECTION_HEADER,
    DEVICE_HEADER,
    REQUEST_HEADER,
    RESOLVER_HEADER,
    SENDER_HEADER,
    TOPIC_HEADER,
)

__all__ = [
    "ABOUT_CLIENTS",
    "ATTEMPT_HEADER",
    "CUT_HEADER",
    "ID_HEADER",
    "OFFSET_HEADER",
    "PART_HEADER",
    "PLACE_HEADER",
    "REASON_HEADER",
    "SERVICE_HEADER",
    "USER_HEADER",
]

SERVICE_HEADER = "Ws-Service"
"""The service that the client sent it to."""
USER_HEADER = "Ws-User"
"""Who sent it, as the name is."""
ID_HEADER = "Ws-Id"
"""Names the message; the same however often it comes."""
OFFSET_HEADER = "Ws-Offset"
"""Its offset in the service's queue."""
ATTEMPT_HEADER = "Ws-Attempt"
"""How often it was taken from there: above 1, it may have come before."""

REASON_HEADER = "Ws-Dead-Reason"
"""On a record that a bus sets aside: why."""
PLACE_HEADER = "Ws-Dead-Place"
"""On the same: where it was, see `Record.place`."""
CUT_HEADER = "Ws-Dead-Cut"
"""On the same, if it did not fit: what is missing, ``payload``, ``headers`` or both."""
PART_HEADER = "Ws-Dead-Part"
"""On the same, if it is split: which part of the payload this is, such as ``1/3``."""

ABOUT_CLIENTS = frozenset(
    name.lower()
    for name in (
        ATTEMPT_HEADER,
        CLIENT_ID_HEADER,
        CONNECTION_HEADER,
        DEVICE_HEADER,
        ID_HEADER,
        OFFSET_HEADER,
        REQUEST_HEADER,
        RESOLVER_HEADER,
        SENDER_HEADER,
        SERVICE_HEADER,
        TOPIC_HEADER,
        USER_HEADER,
    )
)
"""Headers of a client's message, in lower case. A service may copy them to its answer, of which
they say nothing, so they go no further."""
