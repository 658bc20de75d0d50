"""NATS headers as bytes. Source: NATS ADR-4.

nats-py parses every header into a dict, which costs two thirds of its receive rate; delivery
needs two or three values only, and finds them here.
"""

from __future__ import annotations

from collections.abc import Mapping

from wsgateway.broker.base import check_headers

__all__ = ["decode", "encode", "find", "find_int", "status"]

_LINE = b"NATS/1.0\r\n"


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
    """Return the last value of header *name*; None without.

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


def find_int(raw: bytes | None, name: bytes) -> int | None:
    """Return the last value of header *name* as a number; None without."""
    value = find(raw, name)
    return int(value) if value is not None and value.isdigit() else None


def status(raw: bytes | None) -> int | None:
    """Return the status that the first line carries (``NATS/1.0 404 …``); None without."""
    if raw is None or raw[8:9] != b" ":
        return None
    code = raw[9:12]
    return int(code) if code.isdigit() else None


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
