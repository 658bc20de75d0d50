"""`wsgateway.broker.nats.headers`: whatever the bytes are, data stays data."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.rawnats import POISON, UNREADABLE
from wsgateway.broker.nats import headers as hdrs

NAMES = [b"Nats-Sequence", b"Ws-Frame", b"A", b"", b"\xff"]
lines = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda name, value: name + b":" + value,
        st.sampled_from(NAMES),
        st.one_of(st.binary(max_size=12), st.integers(0).map(lambda n: b" %d" % n)),
    ),
)
starts = st.sampled_from(
    [b"NATS/1.0", b"NATS/1.0 503", b"NATS/1.0 2", b"NATS/1.0 404 No", b"junkjunk 503", b""]
)
blocks = st.one_of(
    st.none(),
    st.binary(max_size=60),
    st.builds(lambda start, rest: b"\r\n".join([start, *rest]), starts, st.lists(lines)),
    st.sampled_from(POISON + UNREADABLE),
)


@given(blocks)
def test_nothing_is_raised(raw: bytes | None) -> None:
    for name in NAMES:
        value, number = hdrs.find(raw, name), hdrs.find_int(raw, name)
        assert value is None or isinstance(value, bytes)
        assert number is None or 0 <= number < 10**20
        hdrs.find_text(raw, name)
    assert hdrs.status(raw) is None or 0 <= (hdrs.status(raw) or 0) <= 999
    for key, text in hdrs.decode(raw).items():
        assert isinstance(key, str)
        assert isinstance(text, str)


@given(blocks, st.integers(1, 2**64 - 1))
@example(b"NATS/1.0 503", 1)
@example(b"NATS/1.0 404 A", 1)
def test_what_the_server_appends_counts(raw: bytes | None, sequence: int) -> None:
    """It takes the last two bytes away, whatever they are, and goes on from there."""
    begin = b"NATS/1.0\r\n" if raw is None else raw[:-2]
    ours = b"Nats-Stream: S\r\nNats-Subject: s.a\r\nNats-Sequence: %d\r\n\r\n" % sequence
    stored = begin + ours
    assert hdrs.find_int(stored, b"Nats-Sequence") == sequence
    assert hdrs.find(stored, b"Nats-Subject") == b"s.a"
    assert hdrs.decode(stored)["Nats-Sequence"] == str(sequence)
    assert hdrs.answer_status(stored) is None


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"NATS/1.0 404 Message Not Found\r\n\r\n", 404),
        (b"NATS/1.0 408 Malformed Request\r\n\r\n", 408),
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 503\r\nNats-Subject: $JS.API.DIRECT.GET.NOPE\r\n\r\n", 503),  # 2.15
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 15\r\n\r\n", 204),
        (b"NATS/1.0 204 EOB\r\nNats-Last-Sequence: 1\r\nNats-UpTo-Sequence: 1\r\n\r\n", 204),
        (b"NATS/1.0\r\nA: b\r\n\r\n", None),
        (None, None),
    ],
)
def test_status_of_the_servers_own_answers(raw: bytes | None, code: int | None) -> None:
    """As NATS 2.11.0 and 2.15.1 write them."""
    assert hdrs.answer_status(raw) == hdrs.status(raw) == code


text = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
names = st.from_regex(r"[!-9;-~]{1,12}", fullmatch=True)


@given(st.dictionaries(names, text.map(str.strip), max_size=5))
def test_both_ways(pairs: dict[str, str]) -> None:
    raw = hdrs.encode(pairs)
    assert hdrs.decode(raw) == pairs
    for name, value in pairs.items():
        assert hdrs.find_text(raw, name.encode()) == value


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3))
def test_encode_writes_lines_that_are_read_back_or_refuses(pairs: dict[str, str]) -> None:
    try:
        raw = hdrs.encode(pairs)
    except ValueError:
        return
    assert raw.count(b"\r\n") == (len(pairs) + 2 if pairs else 0)
    assert set(hdrs.decode(raw)) == set(pairs)
