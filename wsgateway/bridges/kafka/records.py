"""What aiokafka's records are to a bridge, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aiokafka import errors

from wsgateway.bridges.bus import Record
from wsgateway.bridges.headers import CUT_HEADER, PLACE_HEADER, REASON_HEADER
from wsgateway.exceptions import reason_of

if TYPE_CHECKING:
    from wsgateway.bridges.names import Source

__all__ = ["dead_letters", "read_record", "why_unreadable", "write_headers"]

TOMBSTONE = "record has no value, which marks a deletion in Kafka; produce an empty value instead"
MAX_REASON = 2000
"""Characters of a reason that are kept."""


def read_record(raw: Any, source: Source, cluster: str, lane: str, receipt: object) -> Record:
    """Return a record as a bridge knows it.

    Args:
        raw: aiokafka's ConsumerRecord. Its key and its value may be None.
        source: What its topic holds.
        cluster: The cluster's id.
        lane: The partition's name.
        receipt: Goes into the record.
    """
    topic, partition, offset = raw.topic, raw.partition, raw.offset
    return Record(
        key=(raw.key or b"").decode("utf-8", "backslashreplace"),
        target=source.target,
        service=source.service,
        payload=raw.value or b"",
        headers=_headers(raw.headers),
        # A recreated topic counts from 0 again, at another time
        id=f"{cluster}/{topic}/{partition}/{offset}/{raw.timestamp}",
        lane=lane,
        place=f"{topic}, partition {partition}, offset {offset}",
        receipt=receipt,
        flaw=TOMBSTONE if raw.value is None else "",
    )


def _headers(raw: Any) -> dict[str, str]:
    found = {}
    for name, value in raw:
        try:
            found[name] = (value or b"").decode()
        except UnicodeDecodeError:
            found.pop(name, None)  # the last one counts, and it is not text
    return found


def why_unreadable(error: Exception) -> str:
    """Say why a batch of records cannot be read, and what helps."""
    if isinstance(error, errors.UnsupportedCodecError):
        return (
            f"its compression needs a package ({error.args[0]}); install cramjam beside the bridge"
        )
    return f"{type(error).__name__}: {reason_of(error)}"


def write_headers(headers: Any) -> list[tuple[str, bytes]]:
    """Return headers as Kafka takes them."""
    return [(name, value.encode()) for name, value in headers.items()]


def dead_letters(
    raw: Any, place: str, reason: str
) -> Iterator[tuple[str, bytes, list[tuple[str, bytes]]]]:
    """Yield what to store of a record that is set aside: all of it, and then less and less.

    Args:
        raw: aiokafka's ConsumerRecord.
        place: Where it is.
        reason: Why it is set aside.

    Yields:
        What is left out, the value, and the headers: its own, and why.
    """
    ours = {
        REASON_HEADER: reason[:MAX_REASON].encode("utf-8", "backslashreplace"),
        PLACE_HEADER: place.encode(),
    }
    value = raw.value or b""
    own = [each for each in raw.headers if each[0] not in (*ours, CUT_HEADER)]
    note = f"payload of {len(value)} bytes left out: it does not fit here. It is in {place}"
    yield "", value, [*own, *ours.items()]
    for cut in ("payload", "headers", "payload headers"):
        kept = [] if "headers" in cut else own
        said = [*ours.items(), (CUT_HEADER, cut.encode())]
        yield cut, note.encode() if "payload" in cut else value, [*kept, *said]
