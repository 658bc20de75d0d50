"""Messages that have arrived, until the application takes them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from wsgateway.client.errors import GatewayError
from wsgateway.client.message import Message
from wsgateway.protocol.subjects import Topic

__all__ = ["Reader"]

logger = logging.getLogger("wsgateway.client")


LIMIT = 1000
"""Messages without offsets that may wait: no window bounds those."""


class Reader:
    """A queue of messages with one reader; the gateway's window bounds it.

    Of messages that need no acknowledgement, it keeps the newest `LIMIT`.

    Args:
        auto_ack: Acknowledge a message when the next one is asked for.
    """

    def __init__(self, auto_ack: bool) -> None:
        self._auto_ack = auto_ack
        self._queue: deque[Message] = deque()  # not returned by `recv` yet
        self._current: Message | None = None  # returned by `recv`, not processed yet
        self._arrived = asyncio.Event()  # the queue is not empty, or no message follows
        self._end: GatewayError | None = None  # what `recv` raises when the queue is empty
        self.dropped = 0
        """Messages that were not kept."""
        self._stops = False  # whether a loop ends then, instead of raising that

    def put(self, message: Message) -> None:
        """Append a message."""
        self._queue.append(message)
        self._arrived.set()
        if not message.offset and len(self._queue) > LIMIT:
            self._queue.popleft()
            self.dropped += 1
            if self.dropped == 1:
                topic = Topic.parse(message.topic or "")
                log_fields = {"service": topic.service, "topic": topic.name}
                text = "dropping messages of %s: nobody reads them"
                logger.warning(text, message.topic, extra=log_fields)

    def end(self, error: GatewayError, *, stops: bool) -> None:
        """Let `recv` raise *error* once no message is left; *stops*: a loop ends without it."""
        self._end, self._stops = error, stops
        self._arrived.set()

    async def recv(self) -> Message:
        """Return the next message; the previous one now counts as processed.

        May be cancelled without losing a message. One caller at a time.

        Raises:
            GatewayError: It has ended, and no message is left.
        """
        if self._current is not None and self._auto_ack:
            self._current.ack()
        self._current = None
        while not self._queue:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        self._current = self._queue.popleft()
        return self._current

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield each message.

        Raises:
            GatewayError: It has ended, and not because the application wanted so.
        """
        while True:
            try:
                message = await self.recv()
            except GatewayError:
                if not self._stops:
                    raise
                return
            yield message
