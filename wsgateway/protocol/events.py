"""What gateways say on ``ws.event.<service>.<user>`` when a socket comes or goes. Pure.

On ``ws.event.<service>.<name>``, they say the same of sockets that begin and end to read a topic.

``docs/how-to/presence-events.md`` describes the payload, a JSON object, for programs in any
language.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.strict_json import loads
from wsgateway.protocol.v1 import MAX_AFTER

__all__ = [
    "CONNECTED",
    "DISCONNECTED",
    "JOINED",
    "LEFT",
    "SocketEvent",
    "encode_event",
    "parse_event",
]

CONNECTED = "connected"
DISCONNECTED = "disconnected"
JOINED = "joined"
LEFT = "left"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class SocketEvent(NamedTuple):
    """A socket came or went.

    Attributes:
        event: `CONNECTED` or `DISCONNECTED`; of a topic, `JOINED` or `LEFT`. Later versions may
            know others.
        service: The service that the socket talks to.
        user: The user's name within it.
        device: Which of the user's devices.
        connection: Names the socket.
        gateway: Id of the gateway that has it.
        time: RFC 3339 text, UTC, by the gateway's clock.
        protocol: ``wsgateway.v1``; empty for a raw socket.
        topic: Which one the socket reads, or read; None if the event is about no topic.
        code: The gateway's close code, see `CloseCode`, or else the client's; 1006 if nobody gave
            one; None if it is connected.
        reconnect_after: Seconds after which the client was told to come back; None: it was not.
    """

    event: str
    service: str
    user: str
    device: str
    connection: str
    gateway: str
    time: str
    protocol: str = ""
    topic: str | None = None
    code: int | None = None
    reconnect_after: float | None = None


def encode_event(event: SocketEvent) -> bytes:
    """Return the payload; fields that are None are left out."""
    fields = event._asdict()
    return _encode({name: value for name, value in fields.items() if value is not None}).encode()


def parse_event(payload: bytes) -> SocketEvent:
    """Return what a payload says. Unknown fields are ignored.

    Raises:
        MalformedMessage: It is not an event.
    """
    try:
        fields = loads(payload)
    except (ValueError, RecursionError) as exc:
        raise MalformedMessage("the event is not a JSON object") from exc
    if not isinstance(fields, dict):
        raise MalformedMessage("the event is not a JSON object")
    code: Any = fields.get("code")
    after: Any = fields.get("reconnect_after")
    if type(after) not in (int, float) or not 0 <= after <= MAX_AFTER:
        after = None
    return SocketEvent(
        event=_text(fields, "event", required=True),
        service=_text(fields, "service"),
        user=_text(fields, "user"),
        device=_text(fields, "device"),
        connection=_text(fields, "connection"),
        gateway=_text(fields, "gateway"),
        time=_text(fields, "time"),
        protocol=_text(fields, "protocol"),
        topic=_text(fields, "topic") or None,
        code=code if type(code) is int else None,
        reconnect_after=after,
    )


def _text(fields: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str) or (required and not value):
        raise MalformedMessage(f"{name} of the event is not text")
    return value
