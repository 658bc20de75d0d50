"""A received message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgateway.protocol import strict_json
from wsgateway.protocol.v1 import ServerMessage

__all__ = ["Message"]


class Message:
    """One message of the inbox, or of a topic.

    Attributes:
        offset: Its offset in the inbox or topic; rises, with gaps. 0 in an ephemeral topic.
        time: When it was stored, in RFC 3339 format; None if unknown.
        data: str for a text frame, bytes for a binary one.
        reply_to: Id of the client's message that it replies to; None if it is not a reply.
        topic: The topic's name; None: it is the inbox's.
        sender: Who wrote it to the topic, with ``service`` and ``user``; None if the gateway does
            not vouch for anybody.
    """

    __slots__ = (
        "_generation",
        "_processed",
        "data",
        "offset",
        "reply_to",
        "sender",
        "time",
        "topic",
    )

    def __init__(
        self, received: ServerMessage, generation: int, processed: Callable[[int, int], None]
    ) -> None:
        self._generation = generation
        self._processed = processed
        self.offset = received.offset
        self.time = received.time
        self.data = received.frame.data
        self.reply_to = received.reply_to
        self.topic = received.topic
        self.sender = received.sender

    def __repr__(self) -> str:
        about = "" if self.topic is None else f" topic={self.topic!r}"
        return f"<Message{about} offset={self.offset} {type(self.data).__name__}[{len(self.data)}]>"

    def json(self) -> Any:
        """Return the payload parsed as JSON.

        Raises:
            ValueError: It is not JSON, or not I-JSON (RFC 7493), which every parser reads alike.
        """
        return strict_json.loads(self.data)

    def ack(self) -> None:
        """Acknowledge this message and all before it; only needed with ``auto_ack=False``."""
        if self.reply_to is None:  # a reply is acknowledged, and may have overtaken others
            self._processed(self._generation, self.offset)
