"""What a record means that a service produced. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from wsgateway.bridges.headers import ABOUT_CLIENTS
from wsgateway.bridges.names import parse_key
from wsgateway.broker.messages import REPLY_TO_HEADER
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.frames import FRAME_HEADER, Frame

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Record
    from wsgateway.protocol.subjects import Address

__all__ = ["Publication", "Unusable", "address_of", "publication_of"]

ID, TTL = "nats-msg-id", "nats-ttl"
"""Headers that mean the same as on a message in NATS."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


class Unusable(ValueError):
    """A record that can never be delivered; the text says why."""


class Publication(NamedTuple):
    """What is published because of a record.

    Attributes:
        payload: Its bytes.
        kind: ``text`` or ``binary``.
        msg_id: Names it, within its address; None: nothing does.
        ttl: Seconds that it is kept; None: as long as the stream keeps messages.
        headers: Others.
        is_reply: Whether it answers a client's request.
    """

    payload: bytes
    kind: str
    msg_id: str | None
    ttl: float | None
    headers: dict[str, str]
    is_reply: bool


def address_of(record: Record, services: Collection[str]) -> Address:
    """Return where a record belongs.

    Args:
        record: The record.
        services: Those that its bridge carries.

    Raises:
        Unusable: Nowhere.
    """
    try:
        address = parse_key(record.target, record.service, record.key)
    except NameRefused as exc:
        raise Unusable(str(exc)) from exc
    if address.service not in services:
        raise Unusable(
            f"its key names the service {address.service!r}, which this bridge does not list; add "
            "it to the bridge's 'services', or correct the key"
        )
    return address


def publication_of(record: Record) -> Publication:
    """Return what to publish.

    Raises:
        ValueError: It cannot be published.
    """
    if record.flaw:
        raise Unusable(record.flaw)
    headers = {}
    kind, msg_id, ttl, is_reply = None, record.id, None, False
    for name, value in record.headers.items():
        lower = name.lower()
        if lower == FRAME_HEADER.lower():
            kind = value
        elif lower == ID:
            msg_id = value
        elif lower == TTL:
            ttl = _seconds(value)
        elif lower not in ABOUT_CLIENTS:
            headers[name] = value
            is_reply = is_reply or lower == REPLY_TO_HEADER.lower()
    frame = Frame.parse(record.payload, kind)
    return Publication(record.payload, frame.kind, msg_id, ttl, headers, is_reply)


def _seconds(value: str) -> float:
    found = _DURATION.match(value)
    if found is None:
        raise Unusable(f"header Nats-TTL is {value[:40]!r}; write seconds, or '30s', '5m' or '12h'")
    return float(found[1]) * _UNITS[found[2]]
