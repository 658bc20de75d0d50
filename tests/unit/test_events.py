"""What gateways say when sockets come and go."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.events import CONNECTED, SocketEvent, encode_event, parse_event

EVENT = SocketEvent(
    CONNECTED, "orders", "ann ☃", "phone", "5f0c", "web-1-7-a1b2", "2026-11-26T01:00:00Z"
)


def test_an_event_is_read_as_it_was_written() -> None:
    gone = EVENT._replace(event="disconnected", code=4001, reconnect_after=1.5)
    assert parse_event(encode_event(EVENT)) == EVENT
    assert parse_event(encode_event(gone)) == gone


def test_fields_that_say_nothing_are_left_out() -> None:
    assert json.loads(encode_event(EVENT)) == {
        "event": "connected",
        "service": "orders",
        "user": "ann ☃",
        "device": "phone",
        "connection": "5f0c",
        "gateway": "web-1-7-a1b2",
        "time": "2026-11-26T01:00:00Z",
        "protocol": "",
    }


def test_a_later_version_may_say_more() -> None:
    event = parse_event(b'{"event":"moved","to":[1],"code":"x","reconnect_after":true}')
    assert (event.event, event.code, event.user) == ("moved", None, "")


@pytest.mark.parametrize("after", ["true", "-1", "3601", "1e300", "9" * 400, '"1"'])
def test_a_delay_that_no_gateway_asks_for_says_nothing(after: str) -> None:
    """A large one raised an OverflowError, or kept the user online for ever."""
    event = parse_event(b'{"event":"disconnected","reconnect_after":%s}' % after.encode())
    assert event.reconnect_after is None


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"{}", b'{"event":""}', b'{"event":7}', b"\xff", b"[" * 9999]
)
def test_what_is_not_an_event_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_event(payload)


@given(st.binary())
def test_whatever_comes_is_an_event_or_refused(payload: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_event(payload)
