"""One websocket as its ASGI server holds it: what ASGI's ``send`` alone cannot say or do.

ASGI says neither whether the kernel has taken what was sent, nor how to stop reading. `Transport`
is all that an unknown server offers. `daphne` and `uvicorn`, beside this module, know more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from channels.sessions import InstanceSessionWrapper

from wsgateway.conf import settings

__all__ = [
    "MAX_REASON",
    "SERVER_SEND",
    "WRITE_LIMIT",
    "LastBytes",
    "Linger",
    "Send",
    "Transport",
    "server_send",
]

LINGER = 1.0
"""Seconds; autobahn's value."""
MAX_REASON = 123
"""Bytes of a close frame's reason. Source: RFC 6455, 5.5."""
SERVER_SEND = "wsgateway.send"
"""The scope's key for the server's own send, which `wsgateway.asgi.application` keeps."""
WRITE_LIMIT = 64 * 1024
"""Bytes that may wait for the kernel before we stop writing; a single larger message still goes."""

LAST_BYTES = 64 * 1024
"""Bytes that a server parses after we began to close: the client's close frame is among them,
unless it floods."""

Send = Callable[[Any], Awaitable[None]]


class LastBytes:
    """Takes what comes on a socket that we close: a little is parsed, the rest is dropped.

    A server parses until the client answers the close frame. A client that floods never does,
    and would cost everybody else's time.

    Args:
        parse: The server's method that takes bytes.
    """

    __slots__ = ("_left", "_parse")

    def __init__(self, parse: Callable[[bytes], None]) -> None:
        self._parse = parse
        self._left = LAST_BYTES

    def __call__(self, data: bytes) -> None:
        """Take *data* from the client."""
        if self._left:
            data = data[: self._left]
            self._left -= len(data)
            self._parse(data)


class Linger:
    """Cuts a client that does not end its side after we have closed ours.

    It has `LINGER` seconds from the moment when the kernel has the close frame. As long as the
    kernel takes something in each such time, we wait for that, up to WSGATEWAY_CLOSE_TIMEOUT.

    Args:
        pending: Returns the bytes that the kernel has not taken.
        cut: Called once, unless `cancel` is.
    """

    __slots__ = ("_before", "_cut", "_end", "_loop", "_pending", "_timer")

    def __init__(self, pending: Callable[[], int], cut: Callable[[], object]) -> None:
        self._pending = pending
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + max(settings.CLOSE_TIMEOUT, LINGER)
        self._wait(pending())

    def _wait(self, before: int) -> None:
        self._before = before
        wakes = min(self._loop.time() + LINGER, self._end)
        self._timer = self._loop.call_at(wakes, self._look)

    def _look(self) -> None:
        pending = self._pending()
        if pending < self._before and self._loop.time() < self._end:
            self._wait(pending)
        else:
            self._cut()

    def cancel(self) -> None:
        """Wait no longer."""
        self._timer.cancel()


def server_send(scope: Mapping[str, Any], send: Any) -> Any:
    """Return the ASGI server's own send, as far as it can be told from a wrapped one.

    Args:
        scope: The connection's scope.
        send: What the consumer was given; Channels' session middleware may have wrapped it.
    """
    if SERVER_SEND in scope:
        return scope[SERVER_SEND]
    while isinstance(wrapper := getattr(send, "__self__", None), InstanceSessionWrapper):
        send = wrapper.real_send
    return send


class Transport:
    """One websocket on a server that we know nothing about.

    Args:
        send: What the consumer was given.
    """

    what = "a websocket"
    """What is refused, in the log."""

    __slots__ = ("_send", "cancel_handshake", "log_fields", "on_end", "on_hidden_frame", "where")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.where = "a socket"
        """Which socket this is, for the text of a log line."""
        self.log_fields: dict[str, object] = {}
        """The same for its fields, as far as it is known; see `wsgateway.logs.FIELDS`."""
        self.cancel_handshake: Callable[[], object] | None = None
        """Set during the handshake: lets the application end it and close, as the server ends."""
        self.on_hidden_frame: Callable[[], None] = _nothing
        """Called for each frame that is not an ASGI event of its own, if the server tells.

        Those are pings, pongs and the parts of a message except one."""
        self.on_end: Callable[[], None] = _nothing
        """Called when a server that ends waits no longer for the application, if it tells."""

    @property
    def gone(self) -> bool:
        """Whether the connection is closed already."""
        return False

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken yet; 0 as well if the server does not tell."""
        return 0

    def take_frames(self, size: int) -> int:
        """Let the server take frames of *size* bytes from the client, if that can be told.

        Returns:
            Bytes of the largest frame that it takes, at most *size*.
        """
        return size

    async def send(self, event: Any) -> bool:
        """Send *event* to the server, after waiting while the client does not read.

        Returns:
            Whether the kernel has everything that was sent before it.

        Raises:
            OSError: The client is gone.
        """
        await self._send(event)
        return True

    async def drained(self) -> None:
        """Wait until the kernel has everything, or the connection is gone."""

    async def taken(self) -> None:
        """Note that the application has handled a frame and wants the next one."""

    def stop_parsing(self) -> None:
        """Let the server parse little of what comes from now on; `close` follows. Idempotent."""

    def code(self, code: int, fallback: int) -> int:
        """Return the code with which `close` would close."""
        return code

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """Close the websocket.

        Args:
            code: The close code.
            fallback: The code from 4000 to 4999 for servers that refuse some others.
            reason: Up to 123 bytes of UTF-8.

        Raises:
            OSError: The client is gone.
        """
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


def _nothing() -> None:
    return
