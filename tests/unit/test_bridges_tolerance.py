"""Frames of RabbitMQ that pamqp cannot decode are repaired, and the others left alone."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pamqp.commands import Basic
from pamqp.exceptions import UnmarshalingException
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from wsgateway.bridges.amqp.tolerance import MARK, repaired

WHOLE: dict[str, Any] = {
    "content_type": "text/plain",
    "headers": {"Ws-Frame": "text", "n": 7},
    "delivery_mode": 2,
    "correlation_id": "c1",
    "message_id": "m1",
    "timestamp": dt.datetime.fromtimestamp(1_800_000_000, dt.UTC),
    "app_id": "shop",
}


def decoded(frame: bytes) -> Any:
    size, channel, found = unmarshal(frame)
    assert (size, channel) == (len(frame), 3)
    return found


def content(before: bytes = b"", after: bytes = b"") -> bytes:
    header = ContentHeader(body_size=11, properties=Basic.Properties(**WHOLE))
    return marshal(header, 3).replace(before, after)


def delivery(exchange: bytes, key: bytes) -> bytes:
    placeholders = "E" * len(exchange), "K" * len(key)
    frame = marshal(Basic.Deliver("tag", 9, True, *placeholders), 3)
    for placeholder, name in zip(placeholders, (exchange, key), strict=True):
        frame = frame.replace(placeholder.encode(), name) if name else frame
    return frame


@pytest.mark.parametrize("frame", [content(), delivery(b"ws.recv", "orders.zoë".encode())])
def test_frame_that_can_be_decoded_is_left_alone(frame: bytes) -> None:
    assert repaired(frame) is frame


@pytest.mark.parametrize(
    ("lost", "before", "after"),
    [
        ("content_type", b"text/plain", b"text/pl\xffin"),
        ("correlation_id", b"c1", b"\xff1"),
        ("message_id", b"m1", b"m\xff"),
        ("timestamp", (1_800_000_000).to_bytes(8), (10**9 * 1_800_000_000).to_bytes(8)),
        ("app_id", b"shop", b"sh\xffp"),
        ("headers", b"Ws-Frame", b"Ws-Fr\xffme"),
    ],
)
def test_only_what_cannot_be_decoded_is_left_out(lost: str, before: bytes, after: bytes) -> None:
    frame = content(before, after)
    with pytest.raises(UnmarshalingException):
        unmarshal(frame)
    found = decoded(repaired(frame))
    assert found.body_size == 11
    expected = {**WHOLE, lost: {MARK: "1"} if lost == "headers" else None}
    assert {name: getattr(found.properties, name) for name in WHOLE} == expected


@pytest.mark.parametrize(
    ("exchange", "key", "names"),
    [
        (b"ws.recv", b"orders.\xff", ("ws.recv", "orders.\\xff")),
        (b"\xe9", b"orders.ann", ("\\xe9", "orders.ann")),
        (b"", b"\xff" * 255, ("", ("\\xff" * 64)[:255])),
    ],
)
def test_names_that_are_not_utf8_get_escapes(
    exchange: bytes, key: bytes, names: tuple[str, str]
) -> None:
    found = decoded(repaired(delivery(exchange, key)))
    assert (found.exchange, found.routing_key) == names
    assert (found.consumer_tag, found.delivery_tag, found.redelivered) == ("tag", 9, True)
