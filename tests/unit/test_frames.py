"""Payload and kind to frame, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.frames import EVENT, Frame


@given(st.one_of(st.text(), st.binary()))
def test_frame_survives_the_way_with_its_kind(data: str | bytes) -> None:
    frame = Frame.of(data)
    assert frame.kind == ("text" if isinstance(data, str) else "binary")
    assert frame.data == data
    assert Frame.parse(frame.payload, frame.kind) == frame


@given(st.binary())
def test_without_a_kind_utf8_is_text_and_the_rest_binary(payload: bytes) -> None:
    frame = Frame.parse(payload, None)
    assert frame.payload == payload
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        assert frame.data == payload
        assert not frame.text
    else:
        assert frame.data == text
        assert frame.text


@given(st.binary(), st.one_of(st.none(), st.sampled_from(["text", "binary"]), st.text()))
def test_parse_returns_or_raises_malformed(payload: bytes, kind: str | None) -> None:
    try:
        frame = Frame.parse(payload, kind)
    except MalformedMessage:
        assert kind is not None
        assert kind != "binary"
    else:
        assert frame.payload == payload
        assert kind in (None, frame.kind)
        assert isinstance(frame.data, str) is frame.text


@pytest.mark.parametrize(
    ("payload", "kind", "text"),
    [
        (b"\xff", "text", "says text but the payload is not UTF-8"),
        (b"\xed\xa0\x80", "text", "says text but the payload is not UTF-8"),  # a surrogate
        (b"x", "TEXT", "'TEXT' is neither text nor binary"),
        (b"x", "", "'' is neither text nor binary"),
        (b"x", EVENT, "sockets get only {'type': 'ws.message', 'text': <str>}"),
    ],
)
def test_malformed(payload: bytes, kind: str, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        Frame.parse(payload, kind)


def test_empty_frames_keep_their_kind() -> None:
    assert Frame.of("") == (b"", True)
    assert Frame.of(b"") == (b"", False)
    assert Frame.parse(b"", "binary").data == b""
    assert Frame.parse(b"", None).data == ""


def test_of_copies_what_could_change() -> None:
    data = bytearray(b"x")
    frame = Frame.of(data)  # type: ignore[arg-type]
    data[0] = 0
    assert frame.payload == b"x"
