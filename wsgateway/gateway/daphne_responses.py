"""Responses on daphne: when the kernel has what was written, and an end in time.

``tests/integration/test_sse_servers.py`` fails when a new version of daphne or Twisted changes one
of the details that this leans on.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from wsgateway.gateway.daphne import find_descriptor, unwritten
from wsgateway.gateway.responses import Headers, PacedResponse, drop, expire
from wsgateway.gateway.transport import Linger, Send

__all__ = ["DaphneResponse", "is_blind", "response"]


def response(server_send: Any, send: Send, headers: Headers) -> DaphneResponse | None:
    """Return the response behind *server_send*; None if this is not daphne's, or HTTP/2.

    Args:
        server_send: The server's own send: with daphne, a partial whose first argument is the
            request.
        send: What the application was given.
        headers: See `Response`.
    """
    request = _request(server_send)
    if request is not None and hasattr(request.channel, "forceAbortClient"):
        return DaphneResponse(request, send, headers)
    return None


def is_blind(server_send: Any) -> bool:
    """Say whether this is daphne's over HTTP/2: what a reader does not read would fill its memory.

    Daphne's send never waits, and nothing tells what of a stream is written.

    Args:
        server_send: See `response`.
    """
    request = _request(server_send)
    return request is not None and hasattr(request.channel, "streamID")


def _request(server_send: Any) -> Any:
    arguments = getattr(server_send, "args", None)
    request: Any = arguments[0] if arguments else None
    return request if hasattr(request, "registerProducer") else None


class DaphneResponse(PacedResponse):
    """A response on daphne, whose send returns before anything is written.

    Args:
        request: Daphne's: Twisted's request, on its HTTP channel.
        send: What the application was given.
        headers: See `Response`.
    """

    __slots__ = ("_channel", "_descriptor", "_empty", "_gathers", "_paused", "_request")

    def __init__(self, request: Any, send: Send, headers: Headers) -> None:
        super().__init__(send, headers)
        self._request = request
        self._channel = request.channel
        self._descriptor = find_descriptor(self._channel.transport)
        self._gathers = getattr(self._channel.transport, "_aggregator", None)  # with TLS only
        self._empty = asyncio.Event()  # set when the kernel has everything, or nobody waits
        self._paused = False  # much waits for the kernel
        request.registerProducer(self, True)
        expire(self._descriptor.getHandle())

    @property
    def gone(self) -> bool:
        """See `Transport.gone`."""
        return self.ended or getattr(self._request, "channel", None) is None

    @property
    def pending(self) -> int:
        """See `Transport.pending`; a lost connection keeps what waited."""
        return unwritten(self._descriptor, self._gathers)

    async def _begin(self, status: HTTPStatus, headers: Headers) -> None:
        if not self.gone:
            self._channel.dataReceived = drop
            # Behind another request, Twisted would stop reading until this response is complete,
            # and not notice that the client leaves
            self._channel.transport.resumeProducing()
        await super()._begin(status, headers)

    async def _write(self, body: bytes, *, more: bool = True) -> bool:
        if self._paused and more:  # the last part must not wait for a reader that does not read
            await self.drained()
        if self.gone:
            raise ConnectionResetError
        handed = not self.pending
        if not more:
            self._let_go()
        await super()._write(body, more=more)
        return handed

    def _let_go(self) -> None:
        """Have the connection closed after the response; cut a reader that does not read it."""
        self._channel.persistent = False
        self._request.unregisterProducer()
        self._empty.set()
        Linger(lambda: self.pending, self._cut)

    async def _kernel_has_all(self) -> None:
        held = self._descriptor
        while self.pending and held.producer is not None and not self.gone:
            if not held.producerPaused:  # so that it tells when it is empty
                held.producerPaused = True
                held.producer.pauseProducing()
            self._empty.clear()
            await self._empty.wait()

    def _cut(self) -> None:
        self._channel.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Note that more than 64 KiB wait for the kernel. Called by Twisted."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Note that the kernel has everything. Called by Twisted."""
        self._paused = False
        self._empty.set()

    def stopProducing(self) -> None:
        """Note that the connection is lost. Called by Twisted."""
        self._empty.set()
