"""The close codes keep the rules that clients rely on."""

from __future__ import annotations

from wsgateway.protocol.codes import CloseCode


def test_numbers_and_reasons_are_unique_and_fit_a_close_frame() -> None:
    assert len({int(code) for code in CloseCode}) == len(CloseCode.__members__)
    assert len({code.reason for code in CloseCode}) == len(CloseCode.__members__)
    for code in CloseCode:
        assert 4000 <= code < 5000
        assert 0 < len(code.reason.encode()) <= 123


def test_reconnect_follows_from_the_range() -> None:
    assert {code.name for code in CloseCode if code.reconnect} == {
        "SHUTTING_DOWN",
        "TOO_SLOW",
        "NO_PONG",
        "RATE_LIMIT",
        "BROKER_UNAVAILABLE",
        "STREAM_REPLACED",
        "CREDENTIALS_CHANGED",
        "QUEUE_FULL",
        "INTERNAL_ERROR",
    }
    for code in CloseCode:
        assert code.reconnect is (4000 <= code <= 4499)


def test_raw_clients_get_a_code_that_servers_may_send() -> None:
    """RFC 6455 reserves 1005, 1006 and 1015 and leaves 1012 to 1014 to a registry."""
    assert {code.raw for code in CloseCode} == {1008, 1009, 1011, 1012, 1013}


def test_raw_code_says_whether_to_come_back() -> None:
    """After a deploy (1001), a pause or a flood (1008), htmx's extension never reconnected.

    It does after 1011, 1012 and 1013; no client should after 1008 and 1009.
    """
    for code in CloseCode:
        assert (code.raw in (1011, 1012, 1013)) is code.reconnect, code.name
        assert (code.raw in (1008, 1009)) is not code.reconnect, code.name


def test_number_and_text() -> None:
    code = CloseCode(4509)
    assert code is CloseCode.MESSAGE_TOO_BIG
    assert (code.reason, code.raw) == ("message too big", 1009)
