"""A stored message, as commands show it."""

from __future__ import annotations

import base64
from typing import Any

from wsgateway.broker.messages import Stored
from wsgateway.exceptions import MalformedMessage
from wsgateway.management.output import size
from wsgateway.protocol.frames import EVENT

__all__ = ["bytes_fields", "content", "kind_of", "message_fields"]

BYTES_SHOWN = 16
"""Of a message that is not text, where it has one line."""
LINE = 24
"""Bytes in a line of one that is shown whole."""


def kind_of(stored: Stored) -> str:
    """Return what a message is: text, binary, event (for Channels consumers) or malformed."""
    if stored.kind == EVENT:
        return EVENT
    try:
        return stored.frame.kind
    except MalformedMessage:
        return "malformed"


def content(stored: Stored, *, whole: bool = False) -> str:
    """Return a message's text; of one that is not text, its bytes.

    Args:
        stored: The message.
        whole: All bytes, not only the first.
    """
    kind, payload = kind_of(stored), stored.payload
    if kind == "text":
        return payload.decode()
    if whole:
        return "\n".join(payload[at : at + LINE].hex(" ") for at in range(0, len(payload), LINE))
    more = " …" if len(payload) > BYTES_SHOWN else ""
    return f"<{kind}, {size(len(payload))}: {payload[:BYTES_SHOWN].hex(' ')}{more}>"


def bytes_fields(payload: bytes) -> dict[str, str]:
    """Return a payload for JSON, without loss: as ``text`` if it is UTF-8, else in ``base64``."""
    try:
        return {"text": payload.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode()}


def message_fields(stored: Stored) -> dict[str, Any]:
    """Return a message for JSON."""
    kind = kind_of(stored)
    answers = {"reply_to": stored.reply_to, "error": stored.error}
    return {
        "offset": stored.offset,
        "time": stored.time,
        "kind": kind,
        "size": len(stored.payload),
        **{name: value for name, value in answers.items() if value is not None},
        **bytes_fields(stored.payload),
    }
