"""One message, as the application gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgateway.protocol import strict_json
from wsgateway.protocol.v1 import ServerMessage

__all__ = ["Message"]


class Message:
    """One message of the inbox.

    Attributes:
        offset: Its position; rises, with holes.
        time: When it was stored, RFC 3339; None if not known.
        data: str for a text frame, bytes for a binary one.
        reply_to: Id of the client's message that it answers; None if it answers none.
    """

    __slots__ = ("_life", "_processed", "data", "offset", "reply_to", "time")

    def __init__(
        self, received: ServerMessage, life: int, processed: Callable[[int, int], None]
    ) -> None:
        self._life = life
        self._processed = processed
        self.offset = received.offset
        self.time = received.time
        self.data = received.frame.data
        self.reply_to = received.reply_to

    def __repr__(self) -> str:
        return f"<Message offset={self.offset} {type(self.data).__name__}[{len(self.data)}]>"

    def json(self) -> Any:
        """Return the payload parsed as JSON.

        Raises:
            ValueError: It is not JSON, or not JSON that every parser reads alike, see RFC 7493.
        """
        return strict_json.loads(self.data)

    def ack(self) -> None:
        """Acknowledge this message and all before it; only needed with ``auto_ack=False``."""
        if self.reply_to is None:  # a reply has been acknowledged, and overtakes what waits
            self._processed(self._life, self.offset)
