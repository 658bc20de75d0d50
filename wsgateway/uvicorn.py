"""What uvicorn does not offer through ASGI: when the kernel has what was sent.

``tests/integration/test_servers.py`` fails when a new version of uvicorn changes a detail that
this leans on. It works with all of uvicorn's websocket implementations and with uvloop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from wsgateway.conf import settings
from wsgateway.transport import WRITE_LIMIT, Send, Transport

__all__ = ["UvicornTransport", "transport"]

HOOKED = ("resume_writing", "connection_lost", "handle_ping")
"""Methods of the protocol; the websockets implementation has no ``handle_ping`` and needs none."""


def transport(server_send: Any, send: Send) -> UvicornTransport | None:
    """Return the socket behind *server_send*; None if that is not uvicorn's.

    Args:
        server_send: The server's own send: with uvicorn, a method of the asyncio protocol.
        send: What the consumer was given.
    """
    protocol = getattr(server_send, "__self__", None)
    held = getattr(protocol, "transport", None)
    if isinstance(protocol, asyncio.Protocol) and hasattr(held, "set_write_buffer_limits"):
        return UvicornTransport(protocol, send)
    return None


class UvicornTransport(Transport):
    """A websocket on uvicorn.

    Uvicorn's send waits while the transport is paused. The limits that are set here pause it as
    long as the kernel has not taken everything, so when a send returns, the kernel has everything
    that was sent before.

    Args:
        protocol: Uvicorn's asyncio protocol.
        send: What the consumer was given.
    """

    __slots__ = ("_empty", "_lost", "_pinged", "_protocol", "_transport")

    def __init__(self, protocol: Any, send: Send) -> None:
        super().__init__(send)
        self._lost = False
        self._protocol = protocol
        self._transport: asyncio.Transport = protocol.transport
        self._empty: asyncio.Event | None = None  # while somebody waits for the kernel
        self._pinged = False  # reading is paused, because pongs pile up
        for name, after in zip(HOOKED, (self._on_empty, self._on_lost, self._on_ping), strict=True):
            self._hook(name, after)
        # Pauses from the first byte on; but with TLS, a transport with nothing to write is paused
        # if the limit is 0, and never resumed.
        encrypted = self._transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if encrypted else 0, low=0)

    def _hook(self, name: str, after: Any) -> None:
        """Let *after* run whenever the protocol's method *name* has run."""
        method = getattr(self._protocol, name, None)
        if method is None:
            return

        def hooked(*args: Any) -> None:
            method(*args)
            after()

        setattr(self._protocol, name, hooked)

    @property
    def gone(self) -> bool:
        """Whether the connection is closed already."""
        return self._lost

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken yet. A lost connection forgets what waited."""
        return self._transport.get_write_buffer_size() or self._transport.is_closing()

    async def send(self, event: Any) -> bool:
        """See `Transport.send`. The websockets implementation cannot bear two sends that wait."""
        if self._transport.get_write_buffer_size():
            await self.drained()
        await self._send(event)
        return True

    async def drained(self) -> None:
        """See `Transport.drained`."""
        while not self._lost and self._transport.get_write_buffer_size():
            self._empty = self._empty or asyncio.Event()
            self._empty.clear()
            await self._empty.wait()

    async def taken(self) -> None:
        """Take no more from a client that pings and does not read; see `Transport.taken`."""
        if self._pinged:
            await self.drained()

    def _on_empty(self) -> None:
        if self._pinged:
            self._pinged = False
            if not getattr(self._protocol, "read_paused", False):
                self._transport.resume_reading()
        if self._empty is not None:
            self._empty.set()

    def _on_lost(self) -> None:
        self._lost = True
        for name in HOOKED:  # they hold the protocol
            vars(self._protocol).pop(name, None)
        if self._empty is not None:
            self._empty.set()

    def _on_ping(self) -> None:
        self.on_ping()
        if self._transport.get_write_buffer_size() > WRITE_LIMIT:
            self._pinged = True
            self._transport.pause_reading()

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """See `Transport.close`. A client that does not read gets no close frame: it is cut."""
        loop = asyncio.get_running_loop()
        cut = loop.call_later(settings.CLOSE_TIMEOUT, self._transport.abort)
        try:
            await self.drained()
            await super().close(code, fallback, reason)
        finally:
            cut.cancel()
