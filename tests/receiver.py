"""A small HTTP server in the test's event loop: takes webhooks, and answers as it is told."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from standardwebhooks import Webhook

__all__ = ["SECRET", "Receiver", "Request", "answer", "receiving"]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Request:
    """What was posted.

    Attributes:
        headers: By name in lower case.
        body: Bytes.
        peer: The port that it came from.
        path: The path.
    """

    headers: dict[str, str]
    body: bytes
    peer: int
    path: str

    @property
    def fields(self) -> Any:
        """The body, once its signature has been verified by Standard Webhooks' own library."""
        return Webhook(SECRET).verify(self.body, self.headers)

    @property
    def text(self) -> str:
        """The text that a client sent."""
        return str(self.fields["data"]["text"])


def answer(status: int = 204, body: bytes | object = b"", **headers: str) -> bytes:
    """Return an answer; a body that is not bytes becomes JSON."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Length": str(len(payload)), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + payload


class Receiver:
    """Takes requests.

    Attributes:
        requests: What came so far.
        answers: Called with each request; returns the answer, or the pieces of one as an
            asynchronous iterator, after whose end the connection is closed.
        url: Where it listens.
        port: The same, only the port.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: Callable[[Request], Any] = lambda request: answer()
        self.url = ""
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")[:-2]
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers["content-length"]))
                peer = writer.get_extra_info("peername")[1]
                request = Request(headers, body, peer, first.split()[1])
                self.requests.append(request)
                reply = self.answers(request)
                if inspect.isawaitable(reply):
                    reply = await reply
                if isinstance(reply, bytes):
                    writer.write(reply)
                    continue
                async for piece in reply:
                    writer.write(piece)
                    await writer.drain()
                break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # asyncio logs a callback's error if this task ends cancelled
        finally:
            writer.close()
            self._tasks.discard(task)

    async def close(self) -> None:
        """End every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def receiving(
    context: ssl.SSLContext | None = None, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, address, port, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    receiver.url = f"{'https' if context else 'http'}://{address}:{receiver.port}/hook"
    try:
        yield receiver
    finally:
        server.close()
        await receiver.close()
