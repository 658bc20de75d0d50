"""A lean websocket client: thousands of sockets in one process, nothing in the way."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["LoadSocket", "connect_many", "payload", "percentile", "resident", "stamp"]

SIZE = 100

OnMessage = Callable[["LoadSocket", bytes], None]


def payload(number: int, size: int = SIZE) -> bytes:
    """Return a message of *size* bytes that holds its number and the time."""
    return b"%010d %020d" % (number, time.time_ns()) + b"." * (size - 31)


def stamp(data: bytes) -> tuple[int, int]:
    """Return number and time (ns) that `payload` wrote."""
    return int(data[:10]), int(data[11:31])


def percentile(values: list[float], share: float) -> float:
    """Return the value below which *share* of *values* lie; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def resident(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class LoadSocket(asyncio.Protocol):
    """One websocket.

    Args:
        name: The user.
        request: The handshake's bytes.
        on_message: Called with each message.
    """

    def __init__(self, name: str, request: bytes, on_message: OnMessage) -> None:
        self.name = name
        self.seen = 0
        self.closed: int | None = None
        """Close code; 0 if the connection was cut."""
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._on_message = on_message
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Parse frames."""
        buffer = self._buffer + data if self._buffer else data
        start = 0
        if not self.accepted.done():
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = buffer
                return
            if b" 101 " not in buffer[:20]:
                self.accepted.set_exception(ConnectionError(repr(buffer[:80])))
                return
            self.accepted.set_result(None)
            start = end + 4
        size = len(buffer)
        while size - start >= 2:
            length, head = buffer[start + 1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(buffer[start + 2 : start + 4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(buffer[start + 2 : start + 10], "big"), 10
            stop = start + head + length
            if stop > size:
                break
            kind = buffer[start] & 0x0F
            if kind <= 2:
                self._on_message(self, buffer[start + head : stop])
            elif kind == 9:
                self._write(10, buffer[start + head : stop])
            elif kind == 8:
                self.closed = int.from_bytes(buffer[start + head : start + head + 2], "big")
            start = stop
        self._buffer = buffer[start:]

    def send(self, text: str | bytes) -> None:
        """Send a message: text for str, binary for bytes."""
        data = text.encode() if isinstance(text, str) else text
        self._write(1 if isinstance(text, str) else 2, data)

    def _write(self, kind: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = bytes([0x80 | kind, 0x80 | size])
        elif size < 65536:
            head = bytes([0x80 | kind, 0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | kind, 0x80 | 127]) + size.to_bytes(8, "big")
        self._transport.write(head + b"\0\0\0\0" + data)  # a mask of zeros masks nothing

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.closed = self.closed or 0
        if not self.accepted.done():
            self.accepted.set_exception(ConnectionError("the connection was cut"))

    def close(self) -> None:
        """Cut the connection."""
        self._transport.abort()


def handshake(path: str, port: int, headers: dict[str, str]) -> bytes:
    """Return a websocket handshake."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        **headers,
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"GET {path} HTTP/1.1\r\n{text}\r\n".encode()


async def connect_many(
    port: int,
    users: list[str],
    on_message: OnMessage,
    *,
    service: str = "bench",
    path: str = "/ws/{service}/{user}/",
    headers: dict[str, str] | None = None,
    at_once: int = 64,
) -> tuple[list[LoadSocket], float]:
    """Open a socket per user; return them, and the seconds until the last was accepted."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(at_once)

    async def connect(user: str) -> LoadSocket:
        cookie = {"Cookie": f"service={service}; user={user}", **(headers or {})}
        request = handshake(path.format(service=service, user=user), port, cookie)
        async with gate:
            _, socket = await loop.create_connection(
                lambda: LoadSocket(user, request, on_message), "127.0.0.1", port
            )
            await asyncio.wait_for(socket.accepted, 60)
        return socket

    begin = time.perf_counter()
    sockets = list(await asyncio.gather(*map(connect, users)))
    return sockets, time.perf_counter() - begin
