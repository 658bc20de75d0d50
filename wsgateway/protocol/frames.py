"""Payload and headers to websocket frame, both ways. Pure.

The payload of a NATS message is the frame itself. ``Ws-Frame`` says its kind; without it valid
UTF-8 is text and anything else binary.
"""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.exceptions import MalformedMessage

__all__ = ["EVENT", "FRAME_HEADER", "Frame", "NotForSockets"]

FRAME_HEADER = "Ws-Frame"
MAX_SHOWN = 40
"""Characters of an unknown kind that are shown."""
EVENT = "event"
"""The kind of a payload that is a msgpack-encoded Channels event, not a frame."""


class NotForSockets(MalformedMessage):
    """The message is an event for Channels consumers, which no socket can show."""


class Frame(NamedTuple):
    """One websocket frame.

    Attributes:
        payload: The bytes on the wire.
        text: True for a text frame; then *payload* is UTF-8.
    """

    payload: bytes
    text: bool

    @classmethod
    def of(cls, data: str | bytes) -> Frame:
        """Return the frame that holds *data*: text for str, binary for bytes."""
        if isinstance(data, str):
            return cls(data.encode(), True)
        return cls(bytes(data), False)

    @classmethod
    def parse(cls, payload: bytes, kind: str | None) -> Frame:
        """Return the frame that a message means.

        Args:
            payload: The message's payload.
            kind: Its ``Ws-Frame`` header; None if absent.

        Raises:
            NotForSockets: An event.
            MalformedMessage: An unknown kind, or text that is not UTF-8.
        """
        if kind == "binary":
            return cls(payload, False)
        if kind == EVENT:
            raise NotForSockets(
                "it is an event for Channels consumers; from a group, sockets get only "
                "{'type': 'ws.message', 'text': <str>} or {'type': 'ws.message', 'bytes': <bytes>}"
            )
        if kind not in (None, "text"):
            raise MalformedMessage(
                f"{FRAME_HEADER} header {kind[:MAX_SHOWN]!r} is neither text nor binary"
            )
        try:
            payload.decode()
        except UnicodeDecodeError as exc:
            if kind is None:
                return cls(payload, False)
            problem = f"{FRAME_HEADER} says text but the payload is not UTF-8"
            raise MalformedMessage(problem) from exc
        return cls(payload, True)

    @property
    def kind(self) -> str:
        """The ``Ws-Frame`` header's value."""
        return "text" if self.text else "binary"

    @property
    def data(self) -> str | bytes:
        """The frame's content as str (text) or bytes (binary)."""
        return self.payload.decode() if self.text else self.payload
