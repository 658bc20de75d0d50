"""Durable groups: which they are, and how their messages are stored in the inbox stream."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels.exceptions import MessageTooLarge

from wsgateway.broker.base import Stored
from wsgateway.conf import settings
from wsgateway.exceptions import MessageTooBig
from wsgateway.frames import EVENT, Frame
from wsgateway.layer import wire
from wsgateway.subjects import GROUP_SERVICE, Inbox

if TYPE_CHECKING:
    from wsgateway.layer.loops import Node

__all__ = [
    "claim_of",
    "event_of",
    "frame_event",
    "inbox_of",
    "payload_of",
    "store",
]

FRAME_TYPE = "ws.message"
"""The type of an event that is nothing but a websocket frame."""


def inbox_of(group: str) -> Inbox | None:
    """Return where a durable group is stored; None if *group* is not durable."""
    service, dot, user = group.partition(".")
    if dot and service and user and "." not in user:
        return Inbox(service, user)
    if any(fnmatch.fnmatchcase(group, pattern) for pattern in settings.DURABLE_GROUPS):
        return Inbox(GROUP_SERVICE, group)
    return None


def payload_of(
    message: dict[str, Any], pack: Callable[[dict[str, Any]], bytes]
) -> tuple[bytes, str]:
    """Return the payload and the kind under which *message* is stored.

    An event that is nothing but a frame is stored as that frame, so that the gateway's sockets
    and other languages can read it.
    """
    if len(message) == 2 and message.get("type") == FRAME_TYPE:
        data = message.get("text", message.get("bytes"))
        if isinstance(data, str if "text" in message else bytes):
            frame = Frame.of(data)
            return frame.payload, frame.kind
    data = pack(message)
    if len(data) > wire.COMPRESS_OVER or wire.is_enveloped(data):
        data = wire.compress(wire.pack(0.0, b"", data))
    return data, EVENT


def event_of(stored: Stored, unpack: Callable[[bytes], Any], limit: int) -> dict[str, Any]:
    """Return the event that a stored message means.

    Args:
        stored: The message.
        unpack: Undoes what `payload_of` was given as *pack*.
        limit: Bytes that it may have once decompressed.

    Raises:
        Exception: Whatever *unpack* raises, or `MalformedMessage`.
    """
    if stored.kind == EVENT:
        data = stored.payload
        event: dict[str, Any] = unpack(wire.body(data, limit) if wire.is_enveloped(data) else data)
        return event
    return frame_event(stored.payload, stored.kind)


def frame_event(payload: bytes, kind: str | None) -> dict[str, Any]:
    """Return the event that a plain frame means."""
    frame = Frame.parse(payload, kind)
    return {"type": FRAME_TYPE, "text" if frame.text else "bytes": frame.data}


async def store(node: Node, group: str, payload: bytes, kind: str) -> None:
    """Store a durable group's message; retried until the deadline, stored at most once.

    Raises:
        MessageTooLarge: It is a frame, which has to fit one message of the server.
        BrokerError: It is not stored, or nobody knows.
    """
    inbox = inbox_of(group)
    if inbox is None:
        raise ValueError(f"group {group!r} is not durable any more")
    try:
        await node.broker.publish(inbox, payload, kind=kind)
    except MessageTooBig as exc:
        if kind != EVENT:
            raise MessageTooLarge(
                f"{exc}; a {FRAME_TYPE} is stored as the frame itself, for sockets and other "
                "languages to read: send less, raise max_payload, or send an event of another type"
            ) from exc
        data = payload if wire.is_enveloped(payload) else wire.pack(0.0, b"", payload)
        claim = await node.blobs.store(data)
        await node.broker.publish(inbox, claim, kind=kind)


def claim_of(stored: Stored) -> bytes | None:
    """Return the claim that stands for a stored message; None if it is the message itself."""
    data = stored.payload
    if stored.kind == EVENT and wire.is_enveloped(data) and wire.is_claim(data):
        return data
    return None
