"""Reads messages that aio-pika cannot decode. One of them would end every connection, forever.

AMQP says that names are UTF-8, and RabbitMQ does not check. A routing key in another encoding makes
aio-pika give up the connection, and so does a timestamp in nanoseconds, because Python has no such
year. RabbitMQ then delivers the same message on the next connection.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp import decode, encode
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal
from yarl import URL

__all__ = ["MARK", "TolerantTransport", "repaired"]

MARK = "Ws-Unreadable"
"""Stands for all headers of a message if they cannot be read."""

HEAD = struct.Struct(">BHI")
"""Begins a frame: type, channel, and the size of its payload. One byte ends it."""
METHOD, CONTENT = 1, 2
"""Types of frames. A delivery is one of each, and then frames with the body."""
DELIVER = struct.pack(">HH", 60, 60)
"""Begins the payload of a delivery: the class and the method."""
PROPERTIES = struct.Struct(">HHQH")
"""Begins the payload of a content header: class, weight, size of the body, and which follow."""
KINDS = (
    *("shortstr",) * 2,
    *("table", "octet", "octet"),
    *("shortstr",) * 4,
    "timestamp",
    *("shortstr",) * 4,
)
"""How each property is encoded, from the highest bit of the flags on."""


class TolerantTransport(TransportFactory):
    """Opens connections whose reader repairs what pamqp, below aio-pika, cannot decode."""

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        inner = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await inner.create(url, **kwargs)
        return cast("asyncio.StreamReader", _Reader(reader)), writer


class _Reader:
    """What aiormq uses of a reader; it reads the parts of a frame one after the other."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._frame = b""  # what is left of the current one

    def at_eof(self) -> bool:
        return self._reader.at_eof()

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        if not self._frame:
            head = await self._reader.readexactly(HEAD.size)
            if head.startswith(b"AMQP"):  # of a server that speaks another version
                return head[:n]
            type_, _, size = HEAD.unpack(head)
            rest = await self._reader.readexactly(size + 1)
            self._frame = head + rest if type_ > CONTENT else repaired(head + rest)
        part, self._frame = self._frame[:n], self._frame[n:]
        return part


def repaired(frame: bytes) -> bytes:
    """Return a frame, without what pamqp cannot decode of it."""
    try:
        unmarshal(frame)
    except (PAMQPException, ValueError, OverflowError, RecursionError):
        type_, channel, size = HEAD.unpack_from(frame)
        payload = frame[HEAD.size : HEAD.size + size]
        if type_ == METHOD and payload.startswith(DELIVER):
            payload = _repaired_delivery(payload)
        elif type_ == CONTENT:
            payload = _repaired_properties(payload)
        return HEAD.pack(type_, channel, len(payload)) + payload + frame[-1:]
    return frame


def _repaired_delivery(payload: bytes) -> bytes:
    """Write backslash escapes in the names of the exchange and the routing key."""
    exchange = 4 + 1 + payload[4] + 9  # behind the consumer's tag, the delivery's, and a flag
    key = exchange + 1 + payload[exchange]
    names = payload[exchange + 1 : key], payload[key + 1 :]
    texts = [name.decode(errors="backslashreplace").encode()[:255] for name in names]
    return payload[:exchange] + b"".join(bytes([len(text)]) + text for text in texts)


def _repaired_properties(payload: bytes) -> bytes:
    """Leave out each property that cannot be decoded, and say so if it is the headers."""
    class_, weight, body, flags = PROPERTIES.unpack_from(payload)
    at, kept, parts = PROPERTIES.size, 0, []
    for number, kind in enumerate(KINDS):
        flag = 1 << (15 - number)
        if not flags & flag:
            continue
        part = payload[at : at + _length(kind, payload, at)]
        at += len(part)
        try:
            decode.by_type(part, kind)
        except (ValueError, OverflowError, OSError, RecursionError):
            if kind != "table":
                continue
            part = encode.field_table({MARK: "1"})
        kept |= flag
        parts.append(part)
    return PROPERTIES.pack(class_, weight, body, kept) + b"".join(parts)


def _length(kind: str, payload: bytes, at: int) -> int:
    if kind == "shortstr":
        return 1 + payload[at]
    if kind == "table":
        return 4 + int.from_bytes(payload[at : at + 4])
    return {"octet": 1, "timestamp": 8}[kind]
