"""Responses on uvicorn: when the kernel has what was written, and an end in time.

``tests/integration/test_sse_uvicorn.py`` fails when a new version of uvicorn changes one of the
details that this leans on. It works with both of uvicorn's HTTP implementations, and with uvloop.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from wsgateway.conf import settings
from wsgateway.gateway.responses import Headers, PacedResponse, drop, expire
from wsgateway.gateway.transport import Send
from wsgateway.gateway.uvicorn import run_after

__all__ = ["UvicornResponse", "response"]

HOOKED = {
    "connection_lost": "_on_lost",
    "eof_received": "_on_eof",
    "resume_writing": "_on_empty",
    "shutdown": "_on_shutdown",
}
"""Methods of the protocol, and ours that run after them."""
REPLACED = ("data_received",)
"""Methods of the protocol that get a version of ours."""


def response(server_send: Any, send: Send, headers: Headers) -> UvicornResponse | None:
    """Return the response behind *server_send*; None if that is not uvicorn's, or HTTP/2.

    Args:
        server_send: The server's own send: with uvicorn, a method of its request.
        send: What the application was given.
        headers: See `Response`.
    """
    request = getattr(server_send, "__self__", None)
    held = getattr(request, "transport", None)
    if getattr(request, "scope", {}).get("http_version", "1.1") not in ("1.0", "1.1"):
        return None  # others share the connection
    if hasattr(request, "flow") and hasattr(held, "set_write_buffer_limits"):
        return UvicornResponse(request, send, headers)
    return None


class UvicornResponse(PacedResponse):
    """A response on uvicorn, which closes the connection after it.

    Args:
        request: Uvicorn's, with its response.
        send: What the application was given.
        headers: See `Response`.
    """

    __slots__ = ("_empty", "_lost", "_protocol", "_request", "_timer", "_transport")

    def __init__(self, request: Any, send: Send, headers: Headers) -> None:
        super().__init__(send, headers)
        self._request = request
        self._transport = transport = request.transport
        self._protocol = transport.get_protocol()
        self._empty = asyncio.Event()  # set when the kernel has everything
        self._timer: asyncio.TimerHandle | None = None  # cuts a reader that keeps the server
        self._lost = transport.is_closing()
        if self._lost:
            return
        for name, after in HOOKED.items():
            run_after(self._protocol, name, getattr(self, after))
        expire(transport.get_extra_info("socket"))
        # Pauses from the first byte on; but with TLS, a transport with nothing to write is paused
        # if the limit is 0, and never resumed.
        encrypted = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if encrypted else 0, low=0)

    @property
    def gone(self) -> bool:
        """See `Transport.gone`."""
        return self.ended or self._lost or self._transport.is_closing()

    @property
    def pending(self) -> int:
        """See `Transport.pending`. A lost connection forgets what waited."""
        return int(self._transport.get_write_buffer_size()) or self._transport.is_closing()

    async def _begin(self, status: HTTPStatus, headers: Headers) -> None:
        if not self.gone:
            self._read_to_the_end()
        await self.drained()  # of the response before; uvicorn itself would wait for ever
        await super()._begin(status, headers)

    def _read_to_the_end(self) -> None:
        """Notice that the client leaves. It has nothing else to say.

        Behind another request, uvicorn would stop reading until this response is complete.
        """
        self._protocol.data_received = drop
        self._transport.set_protocol(self._protocol)  # uvloop looks its methods up only here
        self._request.flow.resume_reading()

    async def _write(self, body: bytes, *, more: bool = True) -> bool:
        if not more:
            self._cut_after(settings.CLOSE_TIMEOUT)
        if self._transport.get_write_buffer_size():
            await self.drained()
        if self.gone:
            raise ConnectionResetError
        await super()._write(body, more=more)
        return True

    async def _kernel_has_all(self) -> None:
        while not self._lost and self._transport.get_write_buffer_size():
            self._empty.clear()
            await self._empty.wait()

    def _cut(self) -> None:
        self._transport.abort()

    def _cut_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._lost:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._cut)

    def _on_empty(self) -> None:
        self._empty.set()

    def _on_eof(self) -> None:
        """Cut a client that has left, and does not take what uvicorn waits to write."""
        self._leave()
        self._cut_after(settings.CLOSE_TIMEOUT)

    def _on_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        for name in (*HOOKED, *REPLACED):  # they hold the protocol
            vars(self._protocol).pop(name, None)
        self._empty.set()
        self._leave()

    def _leave(self) -> None:
        """Tell the application. Uvicorn tells only the connection's newest request."""
        self._request.disconnected = True
        self._request.message_event.set()

    def _on_shutdown(self) -> None:
        """End: uvicorn, which stops, waits for ever for a response without an end."""
        if self.cancel_handshake is not None:
            self.cancel_handshake()
        elif self.on_shutdown is not None:
            self.on_shutdown()
        self._cut_after(settings.CLOSE_TIMEOUT / 4)
