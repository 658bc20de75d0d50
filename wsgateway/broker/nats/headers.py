"""NATS headers as bytes. Source: NATS ADR-4.

nats-py parses every header into a dict, which costs two thirds of its receive rate; delivery
needs two or three values only, and finds them here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from wsgateway.broker.messages import check_headers

__all__ = [
    "answer_status",
    "decode",
    "encode",
    "find",
    "find_int",
    "find_text",
    "find_time",
    "status",
]

_LINE = b"NATS/1.0\r\n"
_STATUS = b"NATS/1.0 "
_SEQUENCE = b"\r\nNats-Sequence:"
MAX_DIGITS = 20
"""Digits of the longest number that the server writes, an unsigned one of 64 bits."""


def encode(pairs: Mapping[str, str]) -> bytes:
    """Return the wire form of *pairs*; b"" for none.

    Raises:
        ValueError: A name or value that would break the line.
    """
    if not pairs:
        return b""
    lines = "\r\n".join([f"{name}: {value}" for name, value in pairs.items()])
    if lines.count("\r") != len(pairs) - 1 or lines.count("\n") != len(pairs) - 1:
        check_headers(pairs)
    for name in pairs:
        if ":" in name or not name.strip():
            check_headers(pairs)
    return b"%b%b\r\n\r\n" % (_LINE, lines.encode())


def find(raw: bytes | None, name: bytes) -> bytes | None:
    """Return the last value of header *name*, or None.

    The last one counts: the server appends its own headers behind the publisher's, so nobody
    can forge ``Nats-Sequence``.
    """
    if raw is None:
        return None
    start = raw.rfind(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return raw[start : raw.find(b"\r\n", start)].strip()


def find_text(raw: bytes | None, name: bytes) -> str | None:
    """Return the last value of header *name* as text, whatever its bytes, or None."""
    value = find(raw, name)
    return None if value is None else value.decode("utf-8", "replace")


def find_int(raw: bytes | None, name: bytes) -> int | None:
    """Return the last value of header *name* as a number, or None."""
    value = find(raw, name)
    if value is None or not value.isdigit() or len(value) > MAX_DIGITS:
        return None
    return int(value)


def find_time(raw: bytes | None) -> dt.datetime | None:
    """Return when the server stored the message with these headers, or None."""
    value = find(raw, b"Nats-Time-Stamp")
    return None if value is None else dt.datetime.fromisoformat(value.decode())


def status(raw: bytes | None) -> int | None:
    """Return the status that the first line carries (``NATS/1.0 404 …``); or None.

    Only the server's own answers have one. A publisher may begin a message's headers with
    such a line too, and it is stored (NATS 2.11), so ask this only where no stored message
    comes: see `answer_status`.
    """
    if raw is None or not raw.startswith(_STATUS):
        return None
    code = raw[9:12]
    return int(code) if len(code) == 3 and code.isdigit() else None


def answer_status(raw: bytes | None) -> int | None:
    """Return the status of an answer to a direct get; None if it is a stored message.

    The server appends ``Nats-Sequence`` to each stored message, and to nothing else.
    """
    code = status(raw)
    return None if code is None or (raw is not None and _SEQUENCE in raw) else code


def decode(raw: bytes | None) -> dict[str, str]:
    """Return all headers; of a repeated one the last."""
    if raw is None:
        return {}
    pairs = {}
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            pairs[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return pairs
