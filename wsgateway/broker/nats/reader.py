"""NATS' client protocol as it comes from the socket. Source: NATS, "Client Protocol".

nats-py reads through a stream, a task, five regular expressions and a coroutine for each
message; here a message goes from the socket's buffer to a plain function, in the same turn of
the loop. ``benchmarks layer`` shows what that is worth.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

__all__ = ["Reader"]

logger = logging.getLogger("wsgateway.broker")

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply subject (b"" without), payload, raw headers (None without)."""

READ_SIZE = 128 * 1024
"""Bytes that are read at once: others get their turn after them."""
MAX_LINE = 1024 * 1024
"""Bytes in a line; a server's INFO names every server of its cluster."""
MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes in a message: no server can be configured to take more."""
_MSG, _HMSG = b"MH"
_END = b"\r\n"


class Reader(asyncio.BufferedProtocol):
    """Hands messages to handlers, and everything else to one function.

    Args:
        handlers: Subscription id to its handler; read per message.
        on_control: Takes a line other than a message, without its end.
        on_end: Called once the connection has ended, with the reason if there was one.
        before: The transport's protocol until now; told of pauses and of the end.

    Attributes:
        writable: Clear while the transport asks for a pause in writing; set for good at the end.
    """

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        on_control: Callable[[bytes], None],
        on_end: Callable[[Exception | None], None],
        before: asyncio.BaseProtocol,
    ) -> None:
        self._handlers = handlers
        self._on_control = on_control
        self._on_end = on_end
        self._before = before
        self.writable = asyncio.Event()
        self.writable.set()
        self._transport: asyncio.BaseTransport | None = None
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._chunks: list[bytes] = []  # of what is not complete
        self._size = 0  # theirs
        self._needed: float = math.inf  # size from which parsing makes sense; until `start` none

    def start(self, transport: asyncio.BaseTransport, early: bytes) -> None:
        """Start with *early*, which was read before this became the protocol of *transport*."""
        self._transport = transport
        chunks, self._chunks = self._chunks, []
        self._size = self._needed = 0
        self.feed(b"".join((early, *chunks)))

    # -- asyncio.BufferedProtocol --------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read into the buffer."""
        self.feed(self._buffer[:nbytes].tobytes())

    def pause_writing(self) -> None:
        """Pass it on, and make writers wait."""
        self.writable.clear()
        self._before.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on, and let writers continue."""
        self.writable.set()
        self._before.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and tell the owner."""
        self.writable.set()
        self._before.connection_lost(exc)
        self._on_end(exc)

    # -- parsing -------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes; what they complete is handed over before this returns."""
        if self._chunks or self._needed:
            self._chunks.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return
            data = b"".join(self._chunks)
            self._chunks = []
        try:
            done, self._needed = self._parse(data)
            if not self._needed and len(data) - done > MAX_LINE:
                raise ValueError("a line that does not end")
        except Exception as exc:  # whatever it is, nobody knows where the next message begins
            # What it was may be a payload: not for the log
            logger.error("lost track of NATS' protocol (%s), reconnecting", type(exc).__name__)
            self._needed = math.inf
            if isinstance(self._transport, asyncio.WriteTransport):
                self._transport.abort()
            return
        self._size = len(data) - done
        if self._size:
            self._chunks.append(data[done:] if done else data)

    # Longer than functions are elsewhere: it runs for every message, and each call has a price
    def _parse(self, data: bytes) -> tuple[int, int]:
        """Hand over what is complete.

        Returns:
            Where the incomplete rest begins, and how long it must become; 0: nobody knows.
        """
        find, handlers, size = data.find, self._handlers, len(data)
        start = 0
        while start < size:
            end = find(_END, start)
            if end < 0:
                return start, 0
            kind = data[start]
            if kind != _MSG and kind != _HMSG:
                self._on_control(data[start:end])
                start = end + 2
                continue
            # [H]MSG <subject> <sid> [reply] [header size] <size>
            fields = data[start:end].split()
            body = end + 2
            stop = body + int(fields[-1])
            if stop < body:
                raise ValueError("a size below zero")
            if stop + 2 > size:
                return start, _wanted(stop + 2 - start)
            if kind == _MSG:
                middle, headers = body, None
                reply = fields[3] if len(fields) == 5 else b""
            else:
                middle = body + int(fields[-2])
                if middle < body or middle > stop:
                    raise ValueError("headers that exceed their message")
                headers = data[body:middle]
                reply = fields[3] if len(fields) == 6 else b""
            handler = handlers.get(int(fields[2]))
            if handler is not None:
                try:
                    handler(fields[1], reply, data[middle:stop], headers)
                except Exception:  # reading must survive whatever a handler does
                    subject = fields[1].decode("utf-8", "replace")
                    logger.exception(
                        "a callback failed for a message on %r", subject, extra={"subject": subject}
                    )
            start = stop + 2
        return start, 0


def _wanted(size: int) -> int:
    """Return *size*, of a message that is not complete.

    Raises:
        ValueError: No message is that large, and waiting for it would fill the memory.
    """
    if size > MAX_LINE + MAX_MESSAGE:
        raise ValueError("a size that is too large")
    return size
