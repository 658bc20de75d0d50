"""`wsgateway.broker.nats.reader`: whatever the pieces are, the messages are the same."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.broker.nats.reader import MAX_LINE, Reader

TOKEN = st.text("abc.$_-", min_size=1, max_size=8).map(str.encode)
Message = tuple[bytes, bytes, bytes, bytes | None]


class Abortable(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = 0

    def abort(self) -> None:
        self.aborted += 1


class Wire:
    """A reader and what it handed over, in order."""

    def __init__(self) -> None:
        self.seen: list[Message | bytes] = []
        self.ends: list[Exception | None] = []
        self.transport = Abortable()
        self.reader = Reader(
            {7: lambda *message: self.seen.append(message)},
            self.seen.append,
            self.ends.append,
            asyncio.Protocol(),
        )

    def feed(self, *pieces: bytes) -> None:
        self.reader.start(self.transport, b"")
        for piece in pieces:
            self.reader.feed(piece)


def wire_form(item: Message | bytes) -> bytes:
    if isinstance(item, bytes):
        return item + b"\r\n"
    subject, reply, data, headers = item
    middle = b" " + reply + b" " if reply else b" "
    if headers is None:
        return b"MSG %b 7%b%d\r\n%b\r\n" % (subject, middle, len(data), data)
    size = len(headers)
    return b"HMSG %b 7%b%d %d\r\n%b%b\r\n" % (
        subject, middle, size, size + len(data), headers, data
    )  # fmt: skip


messages = st.tuples(
    TOKEN,
    st.one_of(st.just(b""), TOKEN),
    st.one_of(st.binary(max_size=60), st.just(b"\r\nMSG x 7 1\r\n"), st.just(bytes(3000))),
    st.one_of(st.none(), st.just(b"NATS/1.0\r\nA: b\r\n\r\n"), st.just(b"NATS/1.0 503\r\n\r\n")),
)
controls = st.sampled_from([b"PING", b"PONG", b"+OK", b"-ERR 'x'", b'INFO {"a": 1}'])


@given(st.lists(st.one_of(messages, controls), max_size=8), st.data())
def test_pieces_do_not_matter(items: list[Message | bytes], data: st.DataObject) -> None:
    stream = b"".join(map(wire_form, items))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    wire = Wire()
    wire.feed(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    assert wire.seen == items


def test_every_single_byte() -> None:
    items: list[Message | bytes] = [
        (b"a.b", b"r", b"hello", None),
        b"PING",
        (b"a", b"", b"", b"NATS/1.0\r\n\r\n"),
        (b"a", b"re.ply", b"x\r\n", b"NATS/1.0\r\nK: v\r\n\r\n"),
    ]
    wire = Wire()
    wire.feed(*(bytes([byte]) for byte in b"".join(map(wire_form, items))))
    assert wire.seen == items


def test_nothing_is_handed_over_before_the_start() -> None:
    wire = Wire()
    wire.reader.feed(b"lo\r\n")
    wire.reader.feed(b"PING\r\n")
    assert wire.seen == []
    wire.reader.start(asyncio.Transport(), b"MSG a 7 5\r\nhel")
    assert wire.seen == [(b"a", b"", b"hello", None), b"PING"]


def test_a_large_message_in_pieces() -> None:
    wire = Wire()
    payload = bytes(range(256)) * 256 * 1024  # 64 MB
    stream = b"MSG a 7 %d\r\n%b\r\nPING\r\n" % (len(payload), payload)
    size = 64 * 1024
    wire.feed(*(stream[start : start + size] for start in range(0, len(stream), size)))
    assert wire.seen == [(b"a", b"", payload, None), b"PING"]


def test_unknown_subscription_is_skipped() -> None:
    wire = Wire()
    wire.feed(b"MSG a 8 1\r\nx\r\nMSG a 7 1\r\ny\r\n")
    assert wire.seen == [(b"a", b"", b"y", None)]


@pytest.mark.parametrize(
    "line",
    [
        b"MSG\r\n",
        b"MSG a 7 x\r\n",
        b"HMSG a 7 y 3\r\nabc\r\n",
        b"MSG a seven 1\r\nx\r\n",
        b"MSG a 7 -13\r\n",  # begins with itself again, for ever
        b"MSG a 7 99999999999\r\n",  # waits, and keeps what comes
        b"HMSG a 7 -1 3\r\nabc\r\n",
        b"HMSG a 7 9 3\r\nabc\r\n",
        b"x" * (MAX_LINE + 1),
    ],
    ids=lambda line: repr(line[:24]),
)
def test_nonsense_aborts_the_connection_and_is_read_no_further(line: bytes) -> None:
    wire = Wire()
    wire.feed(line, b"PING\r\n")
    assert wire.transport.aborted == 1
    assert wire.seen == []


numbers = st.one_of(
    st.integers(-40, 40), st.sampled_from([2**31, 2**63, 10**30]), st.just("1_0"), st.just("+3")
)
junk = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"M", b"H", b"MSG ", b"HMSG ", b"PING\r\n"]),
    st.builds(lambda size: b"MSG a 7 %b\r\n" % str(size).encode(), numbers),
    st.builds(lambda a, b: f"HMSG a 7 {a} {b}\r\n".encode(), numbers, numbers),
    messages.map(wire_form),
)


@given(st.lists(junk, max_size=10).map(b"".join), st.data())
def test_junk_neither_raises_nor_hangs_and_its_pieces_do_not_matter(
    stream: bytes, data: st.DataObject
) -> None:
    """``MSG a 7 -13`` made the reader begin with the same line again and again."""
    whole, pieces = Wire(), Wire()
    whole.feed(stream)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    pieces.feed(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    assert pieces.seen == whole.seen
    assert pieces.transport.aborted == whole.transport.aborted


def test_control_that_fails_aborts_the_connection() -> None:
    """Only some exceptions were expected; the others left the reader in the middle of a line."""

    def control(line: bytes) -> None:
        raise KeyError(line)

    reader = Reader({}, control, lambda error: None, asyncio.Protocol())
    transport = Abortable()
    reader.start(transport, b"INFO {}\r\n")
    assert transport.aborted == 1


def test_end_is_reported() -> None:
    wire = Wire()
    error = ConnectionResetError()
    wire.reader.connection_lost(error)
    assert wire.ends == [error]
