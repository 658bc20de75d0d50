"""Channel messages as bytes: envelope, compression, splitting. Pure.

An envelope is one byte that no text can hold, flags, the time of sending, the length of the
channel's name, the name, and the body. It stands in the payload because headers cost a
receiver two thirds of its rate. Whatever does not begin with that byte is a plain frame that
somebody published without this package.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from time import time as clock

from wsgateway.exceptions import MalformedMessage

__all__ = [
    "COMPRESS_OVER",
    "CONTROL",
    "FRAME",
    "HEAD",
    "Joiner",
    "body",
    "claim",
    "claimed",
    "compress",
    "framed",
    "head",
    "identity",
    "is_claim",
    "is_enveloped",
    "name",
    "pack",
    "sent_at",
    "split",
    "stamp",
]

MAGIC = 0xC1
"""Legal neither in UTF-8 nor in msgpack."""
COMPRESSED = 1
CONTROL = 2
PART = 4
FRAME = 8
"""The content is a plain frame that came without an envelope."""
CLAIM = 16
"""The content says where the whole envelope is stored; see `blobs`."""

_HEAD = struct.Struct(">BBdH")
HEAD = _HEAD.size
head = _HEAD.unpack_from
"""Returns an envelope's first byte, flags, time of sending, and the length of the name."""
_TIME = struct.Struct(">d")
_PART = struct.Struct(">16sHH")
_CLAIM = struct.Struct(">16sH")
MAX_PARTS = 0xFFFF
JOIN_LIMIT = 64 * 1024 * 1024
"""Bytes that unfinished split messages may hold."""


COMPRESS_OVER = 1000 * 1000
"""Bytes from which a message is compressed; what is still too big for one message is split."""


def pack(time: float, name: bytes, content: bytes, flags: int = 0) -> bytes:
    """Return the envelope of *content*.

    Args:
        time: When it is sent, seconds of the epoch.
        name: The channel's name; empty for a group's message.
        content: The serialized message.
        flags: `CONTROL` for what is not a message.
    """
    return _HEAD.pack(MAGIC, flags, time, len(name)) + name + content


def is_enveloped(data: bytes) -> bool:
    """Say whether *data* is an envelope; otherwise it is a plain frame."""
    return len(data) >= HEAD and data[0] == MAGIC


def framed(data: bytes) -> bytes:
    """Return *data*; if it is a plain frame, in an envelope."""
    return data if is_enveloped(data) else pack(clock(), b"", data, FRAME)


def is_part(data: bytes) -> bool:
    """Say whether the envelope *data* holds only a part of a message."""
    return bool(data[1] & PART)


def is_control(data: bytes) -> bool:
    """Say whether the envelope *data* is for the layer itself."""
    return bool(data[1] & CONTROL)


def is_claim(data: bytes) -> bool:
    """Say whether the envelope *data* stands for one that is stored elsewhere."""
    return bool(data[1] & CLAIM)


def sent_at(data: bytes) -> float:
    """Return when the envelope *data* was sent."""
    time: float = _TIME.unpack_from(data, 2)[0]
    return time


def _content(data: bytes) -> int:
    """Return where the content of the envelope *data* begins."""
    return HEAD + (data[10] << 8 | data[11])


def name(data: bytes) -> bytes:
    """Return the channel's name in the envelope *data*."""
    return data[HEAD : _content(data)]


def body(data: bytes, limit: int) -> bytes:
    """Return the content of the envelope *data*.

    Args:
        data: An envelope, joined if it was split.
        limit: Bytes that it may have once decompressed.

    Raises:
        MalformedMessage: It is damaged or exceeds *limit*.
    """
    content = data[_content(data) :]
    if not data[1] & COMPRESSED:
        return content
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(content, limit + 1)
    except zlib.error as exc:
        raise MalformedMessage(f"a compressed channel message is damaged: {exc}") from exc
    if len(content) > limit or not inflater.eof:
        raise MalformedMessage(f"a channel message exceeds {limit} bytes once decompressed")
    return content


def compress(data: bytes) -> bytes:
    """Return the envelope *data* with its content compressed, or *data* if that saves nothing."""
    start = _content(data)
    packed = zlib.compress(data[start:], 1)
    if len(packed) >= len(data) - start:
        return data
    return data[:1] + bytes([data[1] | COMPRESSED]) + data[2:start] + packed


def split(data: bytes, identity: bytes, limit: int) -> Iterator[bytes]:
    """Cut the envelope *data* into envelopes of at most *limit* bytes.

    Args:
        data: What is too big for one message.
        identity: 16 random bytes.
        limit: Bytes, well above the size of an envelope's head and name.
    """
    start = _content(data)
    start_of_each = data[:1] + bytes([data[1] | PART]) + data[2:start]
    room = limit - len(start_of_each) - _PART.size
    rest = data[start:]
    count = -(-len(rest) // room)
    if count > MAX_PARTS:
        raise ValueError(f"{len(data)} bytes do not fit {MAX_PARTS} messages of {limit} bytes")
    for index in range(count):
        part = rest[index * room : (index + 1) * room]
        yield start_of_each + _PART.pack(identity, index, count) + part


def identity(data: bytes) -> bytes:
    """Return the 16 bytes that all parts of the same message have, from one of them."""
    start = _content(data)
    return data[start : start + 16]


def claim(data: bytes, identity: bytes, count: int) -> bytes:
    """Return the envelope that stands for *data*, which is stored as *count* parts."""
    start = _content(data)
    return data[:1] + bytes([CLAIM]) + data[2:start] + _CLAIM.pack(identity, count)


def stamp(data: bytes, time: float) -> bytes:
    """Return the envelope *data* as if it were sent at *time*."""
    return data[:2] + _TIME.pack(time) + data[10:]


def claimed(data: bytes) -> tuple[bytes, int]:
    """Return identity and number of parts of what the claim *data* stands for.

    Raises:
        MalformedMessage: *data* is not a claim.
    """
    start = _content(data)
    if not is_claim(data) or len(data) != start + _CLAIM.size:
        raise MalformedMessage("a claim for a channel message is cut short")
    found: tuple[bytes, int] = _CLAIM.unpack_from(data, start)
    return found


class Joiner:
    """Joins what `split` cut, for one connection.

    Args:
        limit: Bytes that all unfinished messages may hold; the oldest is given up first.
    """

    def __init__(self, limit: int = JOIN_LIMIT) -> None:
        self._limit = limit
        self.held = 0
        """Bytes of messages that are not complete."""
        self._open: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()

    @property
    def unfinished(self) -> int:
        """Messages that are not complete."""
        return len(self._open)

    def add(self, data: bytes) -> bytes | None:
        """Take a part; return the whole envelope once it is complete.

        Raises:
            MalformedMessage: *data* is not a part.
        """
        start = _content(data)
        try:
            identity, index, count = _PART.unpack_from(data, start)
        except struct.error as exc:
            raise MalformedMessage("a part of a channel message is cut short") from exc
        if index >= count:
            return None
        # The number belongs to it: parts that disagree about that are not of the same message
        key = identity + count.to_bytes(2)
        parts = self._open.setdefault(key, {})
        if index in parts:
            return None
        parts[index] = part = data[start + _PART.size :]
        self.held += len(part)
        if len(parts) == count:
            del self._open[key]
            self.held -= sum(map(len, parts.values()))
            beginning = data[:1] + bytes([data[1] & ~PART]) + data[2:start]
            return beginning + b"".join(parts[number] for number in range(count))
        while self.held > self._limit and len(self._open) > 1:
            _, lost = self._open.popitem(last=False)
            self.held -= sum(map(len, lost.values()))
        return None
