"""Messages as people read them: JSON indented, text as it is, bytes as a dump."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgpack
from django.utils.dateparse import parse_datetime

from wsgateway.broker.messages import Stored
from wsgateway.exceptions import MalformedMessage
from wsgateway.layer import durable
from wsgateway.protocol.frames import EVENT
from wsgateway.protocol.strict_json import refuse_constant, unique
from wsgateway.readable import visible

__all__ = ["PREVIEW", "WHOLE", "Shown", "shown"]

PREVIEW = 2_000
"""Characters of a message in the list."""
SUMMARY = 100
"""Characters of a message in one line."""
WHOLE = 256_000
"""Characters of a message on a page of its own."""
EVENT_LIMIT = 4_000_000
"""Bytes of an event once decompressed."""
TOO_LONG = 8
"""Times the limit: longer JSON is not parsed to show its beginning."""
WIDTH = 16
"""Bytes in a line of a dump, which takes 76 characters."""
LINE = 76


@dataclass(frozen=True, slots=True)
class Shown:
    """A message of an inbox, to be read.

    Attributes:
        message: The message.
        kind: ``JSON``, ``text``, ``binary``, ``event`` or ``malformed``.
        time: When it was stored; None: not known.
        size: Bytes.
        text: What to show.
        cut: Whether *text* is only its beginning.
    """

    message: Stored
    kind: str
    time: datetime | None
    size: int
    text: str
    cut: bool

    @property
    def summary(self) -> str:
        """Its beginning in one line."""
        line = " ".join(self.text[: 4 * SUMMARY].split())
        return f"{line[:SUMMARY]}…" if self.cut or len(line) > SUMMARY else line

    @property
    def is_short(self) -> bool:
        """Whether that is all."""
        return self.summary == self.text

    @property
    def is_dump(self) -> bool:
        """Whether its lines must not be broken."""
        return self.kind in ("binary", "malformed")


def shown(message: Stored, limit: int) -> Shown:
    """Return *message* in at most *limit* characters."""
    kind, text = _read(message, limit)
    time = parse_datetime(message.time)
    return Shown(
        message, kind, time, len(message.payload), visible(text[:limit]), len(text) > limit
    )


def _read(message: Stored, limit: int) -> tuple[str, str]:
    if message.kind == EVENT:
        return _event(message, limit)
    try:
        frame = message.frame
    except MalformedMessage:
        return "malformed", _dump(message.payload, limit)
    if not frame.text:
        return "binary", _dump(message.payload, limit)
    text = frame.payload.decode()
    pretty = _pretty(text, limit) if len(text) < limit * TOO_LONG else None
    return ("text", text) if pretty is None else ("JSON", pretty)


def _event(message: Stored, limit: int) -> tuple[str, str]:
    """Read an event of the channel layer, unless the layer encrypts or has its own serializer."""
    try:
        event = durable.event_of(message, msgpack.unpackb, EVENT_LIMIT)
        return "event", _indented(event, limit)
    except Exception:  # anybody may have published it
        return "event", _dump(message.payload, limit)


def _pretty(text: str, limit: int) -> str | None:
    """Return JSON with indentation; None if *text* is something else, or would not stay the same.

    What other parsers may read otherwise is shown as it is: a name given twice, ``1.10``.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(
            text, parse_float=_same, parse_constant=refuse_constant, object_pairs_hook=unique
        )
        return _indented(value, limit)
    except (ValueError, RecursionError):
        return None


def _indented(value: Any, limit: int) -> str:
    """Return JSON with indentation, or only a little more than *limit* characters of it.

    The indentation of deep JSON can be a thousand times as long as the message.
    """
    encoder = json.JSONEncoder(indent=2, ensure_ascii=False, default=repr)
    parts, size = [], 0
    for part in encoder.iterencode(value):
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return "".join(parts)


def _same(digits: str) -> float:
    value = float(digits)
    if repr(value) != digits:
        raise ValueError("would be written otherwise")
    return value


def _dump(data: bytes, limit: int) -> str:
    """Return *data* as ``hexdump -C`` shows it, up to a little more than *limit* characters."""
    return "\n".join(_lines(data[: (limit // LINE + 2) * WIDTH]))


def _lines(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), WIDTH):
        part = data[start : start + WIDTH]
        ascii_ = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{start:08x}  {part.hex(' '):<{WIDTH * 3 - 1}}  {ascii_}"
