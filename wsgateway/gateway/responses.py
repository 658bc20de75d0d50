"""One HTTP response that does not end, which stands in for a websocket: `Session` writes to it.

It takes the events of a websocket. The first frame begins the response, so that a socket that is
closed before is an ordinary answer with a status and a problem document. `daphne_responses` and
`uvicorn_responses`, beside this module, know when the kernel has what was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from abc import abstractmethod
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from wsgateway.conf import settings
from wsgateway.gateway.transport import Send, Transport
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.sse import encode_closed, encode_problem, encode_retry, status_of

__all__ = ["Headers", "PacedResponse", "Response", "drop", "expire", "respond"]

Headers = Sequence[tuple[bytes, bytes]]

RETRY = (1.0, 4.0)
"""Seconds after which a browser whose connection breaks comes back: not all at the same moment."""
RETRY_LATER = {HTTPStatus.SERVICE_UNAVAILABLE: (1, 5), HTTPStatus.TOO_MANY_REQUESTS: (10, 30)}
"""Seconds that a refused request is to wait."""
STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-content-type-options", b"nosniff"),  # events hold HTML, and must never be shown as a page
    (b"x-accel-buffering", b"no"),  # nginx would keep events back until it has 4 KB
)


class Response(Transport):
    """A response on a server that we know nothing about.

    Args:
        send: What the application was given.
        headers: What every response says.
    """

    __slots__ = ("_begun", "_headers", "ended", "on_shutdown")

    what = "an event stream"
    closing_headers: Headers = ()
    """What a response says whose connection is closed after it."""

    def __init__(self, send: Send, headers: Headers) -> None:
        super().__init__(send)
        self._headers = headers
        self._begun = False
        self.ended = False
        """Whether it is complete, or the client is gone."""
        self.on_shutdown: Callable[[], object] | None = None
        """Called when the server ends, which waits for the response, if it tells."""

    @property
    def gone(self) -> bool:
        """See `Transport.gone`."""
        return self.ended

    async def send(self, event: Any) -> bool:
        """See `Transport.send`."""
        if event["type"] != "websocket.send":
            return True  # accepted; what it begins with is not known yet
        if not self._begun:
            self._begun = True
            await self._begin(HTTPStatus.OK, [*STREAM, *self.closing_headers])
            first = encode_retry(random.uniform(*RETRY))  # noqa: S311 - jitter, no secret
            await self._write(first.encode())
        frame: str = event["text"]
        return await self._write(frame.encode())

    async def _begin(self, status: HTTPStatus, headers: Headers) -> None:
        sent = [*headers, *self._headers]
        await self._send({"type": "http.response.start", "status": int(status), "headers": sent})

    async def _write(self, body: bytes, *, more: bool = True) -> bool:
        """Write a part of the body; see `Transport.send`."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        return True

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """See `Transport.close`: say why, and end the response."""
        if self.ended:
            return
        if self._begun:
            await self._write(encode_closed(code, reason).encode(), more=False)
        else:
            self._begun = True
            status = status_of(CloseCode(code))
            body = encode_problem(status, reason, code)
            await self._begin(status, [*_problem_headers(status, body), *self.closing_headers])
            await self._write(body, more=False)
        self.ended = True


class PacedResponse(Response):
    """A response on a server that tells when the kernel has everything.

    A reader whose kernel takes nothing for WSGATEWAY_PING_INTERVAL and WSGATEWAY_PING_TIMEOUT is
    cut, as a websocket is that answers no ping. It comes back, and resumes.
    """

    __slots__ = ()

    closing_headers: Headers = ((b"connection", b"close"),)

    @abstractmethod
    async def _kernel_has_all(self) -> None:
        """Wait until the kernel has everything, or the connection is gone."""

    @abstractmethod
    def _cut(self) -> None:
        """Close the connection at once. Idempotent."""

    async def drained(self) -> None:
        """See `Transport.drained`."""
        while (before := self.pending) and not self.gone:
            try:
                async with asyncio.timeout(settings.PING_INTERVAL + settings.PING_TIMEOUT):
                    await self._kernel_has_all()
                    return
            except TimeoutError:
                if self.pending >= before:
                    self._cut()
                    return


def drop(data: bytes) -> None:
    """Take nothing from a client any more: it reads, and has nothing else to say."""


def expire(connection: Any) -> None:
    """Let the kernel end a connection whose reader has vanished without a word.

    Without that, heartbeats would fill its buffers for a quarter of an hour.

    Args:
        connection: The socket; nothing happens where the system has no such option.
    """
    seconds = settings.PING_INTERVAL + settings.PING_TIMEOUT
    with contextlib.suppress(AttributeError, OSError):
        option = socket.TCP_USER_TIMEOUT
        connection.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def _problem_headers(status: HTTPStatus, body: bytes) -> Headers:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status in RETRY_LATER:
        seconds = random.randint(*RETRY_LATER[status])  # noqa: S311 - jitter, no secret
        headers.append((b"retry-after", str(seconds).encode()))
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


async def respond(send: Send, status: HTTPStatus, headers: Headers, reason: str = "") -> None:
    """Answer a request that asks for no events.

    Args:
        send: What the application was given.
        status: Without a body below 300.
        headers: What the response says besides.
        reason: Why it is refused.
    """
    body = encode_problem(status, reason) if reason else b""
    sent = [*(_problem_headers(status, body) if reason else ()), *headers]
    await send({"type": "http.response.start", "status": int(status), "headers": sent})
    await send({"type": "http.response.body", "body": body})
