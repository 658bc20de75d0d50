"""A publisher that speaks NATS' protocol itself, and so sends headers that no client would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

__all__ = ["POISON", "RawPublisher", "raw_publisher"]

POISON: tuple[bytes, ...] = (
    # NATS 2.11 stores a status line; later ones strip it
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\nA: b\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 408\r\nNats-Pending-Messages: 5\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    # These every one stores: the line looks like a status to a lenient reader, or is cut short
    b"junkjunk 503\r\n\r\n",
    b"junkjunk 204\r\nNats-Num-Pending: 0\r\n\r\n",
    b"NATS/1.0 503",
    b"NATS/1.0 404 A",
    b"NATS/1.0\r\nA: b",
    b"NATS/1.0\r\nA: b\r\n\r\nNats-Sequence: 9\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 99\r\nno end",
    b"\r\n\r\n\r\n\r\n",
    b"\r\n",
    b"NATS/1.0\r\n\r\n",
    # What the server sets, set by the publisher
    b"NATS/1.0\r\nNats-Sequence: 999\r\nNats-Last-Sequence: 998\r\nNats-Subject: x.y\r\n\r\n",
    b"NATS/1.0\r\nNats-Num-Pending: 99\r\nNats-Time-Stamp: \xff\r\nNats-Stream: X\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: " + b"9" * 5000 + b"\r\n\r\n",
    # Ours, but senseless
    b"NATS/1.0\r\nWs-Frame: text\r\nWs-Frame: text\r\n\r\n",
    b"NATS/1.0\r\nWs-Reply-To: not an id\r\nWs-Error: \xff\r\n\r\n",
    b"NATS/1.0\r\nWs-Reply-To: " + b"x" * 30_000 + b"\r\n\r\n",
    b"NATS/1.0\r\nWs-Error: refused\r\n\r\n",
    b"NATS/1.0\r\nWs-Client-Id: a\nb\r\nWs-Request: \x00\r\nWs-Device: =ZZ\r\n\r\n",
    # Nobody's
    b"NATS/1.0\r\nA: \xff\xfe\r\n\xff: b\r\n: c\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n",
    b"NATS/1.0\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
)
"""Headers that harm nothing: a message with any of them is delivered as if it had none."""

UNREADABLE: tuple[bytes, ...] = (
    b"NATS/1.0\r\nWs-Frame: junk\r\n\r\n",
    b"NATS/1.0\r\nWs-Frame: text\r\nWs-Frame: \xff\r\n\r\n",
    b"NATS/1.0\r\nWs-Frame: " + b"x" * 40_000 + b"\r\n\r\n",
)
"""Headers that say that the payload is something else: the message is skipped."""


class RawPublisher:
    """One connection. `publish` waits for JetStream's answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def publish(self, subject: str, payload: bytes, headers: bytes = b"") -> dict[str, Any]:
        """Return JetStream's answer to one message."""
        size = len(headers)
        command = f"HPUB {subject} _INBOX.raw {size} {size + len(payload)}\r\n".encode()
        if not headers:
            command = f"PUB {subject} _INBOX.raw {len(payload)}\r\n".encode()
        self._writer.write(command + headers + payload + b"\r\n")
        while True:
            line = await asyncio.wait_for(self._reader.readuntil(b"\r\n"), 10)
            if line.startswith((b"MSG ", b"HMSG ")):
                data = await self._reader.readexactly(int(line.split()[-1]) + 2)
                answer: dict[str, Any] = json.loads(data)
                return answer
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            assert not line.startswith(b"-ERR"), line


@asynccontextmanager
async def raw_publisher(url: str) -> AsyncIterator[RawPublisher]:
    """Connect to the server at *url*."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\nSUB _INBOX.raw 1\r\n')
    try:
        yield RawPublisher(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
