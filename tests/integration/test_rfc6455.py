"""What RFC 6455 says about frames and close codes, over plain TCP, on each implementation.

Every socket here is a raw socket of the gateway, whose service sends back what it gets. When an
echo arrives, its message has gone through the server, the gateway and NATS both ways.

`DEVIATIONS` names what an implementation does otherwise and no option of it changes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.support import Gateway
from wsgateway.broker.embedded import EmbeddedServer

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LIMIT = 100_000
"""The gateway's own limit, WSGATEWAY_MAX_MESSAGE_SIZE."""
SERVER_LIMIT = 1_048_576
"""The servers' limit: daphne's default."""
SERVERS = {
    "daphne": "daphne",
    "uvicorn": f"uvicorn --ws websockets-sansio --ws-max-size {SERVER_LIMIT}",
    "uvicorn-legacy": f"uvicorn --loop asyncio --ws websockets --ws-max-size {SERVER_LIMIT}",
    "uvicorn-wsproto": f"uvicorn --loop asyncio --ws wsproto --ws-max-size {SERVER_LIMIT}",
}
WITHOUT_WSPROTO = pytest.mark.skipif(
    find_spec("wsproto") is None, reason="wsproto is not installed (requirements-dev.txt)"
)
TIMEOUT = 8.0
"""Below the time for which an implementation that closes badly waits for the client."""

counter = itertools.count()


# -- frames ----------------------------------------------------------------------------------


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x11\x22\x33\x44",
    form: int | None = None,
    length: int | None = None,
) -> bytes:
    """Return a frame of a client.

    Args:
        mask: None: not masked.
        form: How the length is written: itself, 126 (two bytes) or 127 (eight); None: the shortest.
        length: What the header says; None: the truth.
    """
    length = len(payload) if length is None else length
    form = form or (length if length < 126 else 126 if length < 65536 else 127)
    head = bytes((fin << 7 | rsv << 4 | opcode, (mask is not None) << 7 | form))
    head += {126: struct.pack("!H", length & 0xFFFF), 127: struct.pack("!Q", length)}.get(form, b"")
    if mask is None:
        return head + payload
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)])
    return head + mask + (int.from_bytes(payload) ^ key).to_bytes(len(payload))


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Message(NamedTuple):
    """A frame of the server, which never fragments."""

    opcode: int
    payload: bytes


def closed(code: int, reason: bytes = b"") -> Message:
    return Message(CLOSE, struct.pack("!H", code) + reason)


class Peer:
    """A client that sends what it is told.

    Args:
        port: Where the server listens.
        headers: Of the handshake, with ``_`` for ``-``; None leaves one out.
    """

    def __init__(self, port: int, **headers: str | None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        user = f"u{next(counter)}"
        self.key = base64.b64encode(os.urandom(16)).decode()
        wanted: dict[str, str | None] = {
            "Host": "127.0.0.1",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self.key,
            "Cookie": f"service=s; user={user}",
        }
        wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"GET /ws/s/{user}/ HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in wanted.items() if value is not None]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()

    def close(self) -> None:
        with contextlib.closing(self._socket):
            self._file.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> Message | None:
        """Return the next frame; None at the end of the connection.

        Raises:
            ConnectionResetError: The connection was reset.
        """
        head = self._file.read(2)
        if not head:
            return None
        first, size = head
        assert first & 0x80, "the server's frame is a fragment"
        assert not first & 0x70, "reserved bits are set without an extension"
        assert size < 128, "the server's frame is masked"
        if size == 126:
            (size,) = struct.unpack("!H", self._file.read(2))
            assert size > 125, "the length is not in its shortest form"
        elif size == 127:
            (size,) = struct.unpack("!Q", self._file.read(8))
            assert size > 65535, "the length is not in its shortest form"
        assert first & 0x0F < 8 or size < 126, "a control frame is too long"
        return Message(first & 0x0F, self._file.read(size))

    def answer(self) -> None:
        """Answer the server's close frame; the server may be gone already."""
        with contextlib.suppress(BrokenPipeError):
            self.send(closing(1000))


# -- the service that echoes -----------------------------------------------------------------


class Echo:
    """A service that publishes for each user what that user sent: a few lines of NATS' protocol."""

    def __init__(self, url: str, prefix: str) -> None:
        parts = urlsplit(url)
        self._prefix = prefix
        self._socket = socket.create_connection((parts.hostname, parts.port), TIMEOUT)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
        self._socket.sendall(f"SUB {prefix}.send.> 1\r\nPING\r\n".encode())
        while self._file.readline() != b"PONG\r\n":
            pass
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._file.close()
        self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # `close` was called
            self._echo()

    def _echo(self) -> None:
        while line := self._file.readline():
            words = line.decode().split()
            if words[0] == "PING":
                self._socket.sendall(b"PONG\r\n")
            elif words[0] == "HMSG":  # HMSG subject 1 reply headers total
                data = self._file.read(int(words[-1]) + 2)
                self._answer(words[1], data[: int(words[-2])], data[int(words[-2]) : -2])

    def _answer(self, subject: str, headers: bytes, payload: bytes) -> None:
        kind = b"text" if b"Ws-Frame: text" in headers else b"binary"
        kept = b"NATS/1.0\r\nWs-Frame: " + kind + b"\r\n\r\n"
        to = subject.replace(f"{self._prefix}.send.", f"{self._prefix}.recv.")
        sizes = f"{len(kept)} {len(kept) + len(payload)}"
        self._socket.sendall(f"HPUB {to} {sizes}\r\n".encode() + kept + payload + b"\r\n")


@pytest.fixture(scope="module")
def prefix() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=WITHOUT_WSPROTO if "wsproto" in name else ()) for name in SERVERS
    ],
)
def server(
    request: pytest.FixtureRequest,
    nats_server: EmbeddedServer,
    tmp_path_factory: pytest.TempPathFactory,
    prefix: str,
) -> Iterator[tuple[str, Gateway]]:
    """One server for all cases."""
    folder = tmp_path_factory.mktemp(request.param)
    values = {
        "NATS_BROKER_URL": nats_server.url,
        "WSGATEWAY_PREFIX": prefix,
        "WSGATEWAY_MAX_MESSAGE_SIZE": str(LIMIT),
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
    }
    gateway = Gateway(folder, values, SERVERS[request.param]).start()
    echo = Echo(nats_server.url, prefix)
    try:
        yield request.param, gateway
    finally:
        echo.close()
        gateway.stop()
    # Uvicorn itself logs a traceback for text that is not UTF-8.
    own = gateway.output.count("Invalid UTF-8 sequence received from client.")
    assert gateway.output.count("Traceback") == own


@pytest.fixture
def peer(server: tuple[str, Gateway]) -> Iterator[Peer]:
    """A socket that is open."""
    peer = Peer(server[1].port)
    try:
        assert peer.status == 101
        yield peer
    finally:
        peer.close()


# -- what is sent, and what has to come back -------------------------------------------------


class Case(NamedTuple):
    """What a client writes, and what it then reads.

    A number is the code of a close frame with which the server ends the connection by itself.
    """

    written: Sequence[bytes]
    read: Sequence[Message | int]


def echoed(payload: bytes, opcode: int = BINARY) -> Case:
    return Case([frame(opcode, payload)], [Message(opcode, payload)])


def refused(code: int, *written: bytes) -> Case:
    return Case(written, [code])


HELLO, ECHO = frame(TEXT, b"hello"), Message(TEXT, b"hello")
SNOW = "\N{SNOWMAN}".encode()
WIDE = "\N{SNOWMAN}\N{GRINNING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}".encode()

CASES: dict[str, Case] = {
    # Data frames (5.2, 5.6)
    "text": echoed(b"hello", TEXT),
    "binary": echoed(bytes(range(256))),
    "empty text": echoed(b"", TEXT),
    "empty binary": echoed(b""),
    "several frames in one write": Case(
        [HELLO + frame(BINARY, b"\xff") + HELLO], [ECHO, Message(BINARY, b"\xff"), ECHO]
    ),
    "frame byte by byte": Case([bytes((byte,)) for byte in HELLO], [ECHO]),
    "long frame in two parts": Case(
        [frame(BINARY, bytes(70_000))[:40_000], frame(BINARY, bytes(70_000))[40_000:]],
        [Message(BINARY, bytes(70_000))],
    ),
    # Masks (5.1, 5.3)
    "mask of zeros": Case([frame(TEXT, b"hello", mask=bytes(4))], [ECHO]),
    "mask of ones": Case([frame(TEXT, b"hello", mask=b"\xff" * 4)], [ECHO]),
    "unmasked text": refused(1002, frame(TEXT, b"hello", mask=None)),
    "unmasked empty binary": refused(1002, frame(BINARY, mask=None)),
    "unmasked ping": refused(1002, frame(PING, b"x", mask=None)),
    "unmasked close": refused(1002, frame(CLOSE, b"\x03\xe8", mask=None)),
    "unmasked flood": refused(1002, frame(TEXT, b"hello", mask=None) * 50_000),
    # Lengths (5.2)
    **{f"{size} bytes": echoed(os.urandom(size)) for size in (125, 126, 127, 65535, 65536)},
    "two-byte length for 125 bytes": refused(1002, frame(BINARY, bytes(125), form=126)),
    "two-byte length for nothing": refused(1002, frame(BINARY, form=126)),
    "eight-byte length for 65535 bytes": refused(1002, frame(BINARY, bytes(65535), form=127)),
    "length of more than 63 bits": refused(1002, frame(BINARY, length=1 << 63)),
    "message above the gateway's limit": refused(1009, frame(BINARY, bytes(LIMIT + 1))),
    "text above the gateway's limit": refused(1009, frame(TEXT, SNOW * (LIMIT // 3 + 1))),
    "frame above the server's limit": refused(1009, frame(BINARY, bytes(SERVER_LIMIT + 1))),
    "much above the server's limit": refused(1009, frame(BINARY, bytes(4 * SERVER_LIMIT))),
    "fragments above the server's limit": refused(
        1009,
        frame(BINARY, bytes(LIMIT), fin=False),
        *[frame(CONT, bytes(LIMIT), fin=False)] * (SERVER_LIMIT // LIMIT),
    ),
    "length above every limit": refused(
        1009, frame(BINARY, bytes(2 * SERVER_LIMIT), length=1 << 40)
    ),
    # Reserved bits and opcodes (5.2)
    "first reserved bit": refused(1002, frame(TEXT, b"hello", rsv=4)),
    "second reserved bit": refused(1002, frame(TEXT, b"hello", rsv=2)),
    "third reserved bit": refused(1002, frame(BINARY, b"hello", rsv=1)),
    "reserved bit of a ping": refused(1002, frame(PING, b"hello", rsv=4)),
    "reserved bit of a close": refused(1002, frame(CLOSE, b"\x03\xe8", rsv=2)),
    "reserved bit of a continuation": refused(
        1002, frame(TEXT, b"he", fin=False), frame(CONT, b"llo", rsv=4)
    ),
    **{f"opcode {opcode}": refused(1002, frame(opcode, b"x")) for opcode in (3, 7, 11, 15)},
    "opcode 5, fragmented": refused(1002, frame(5, b"x", fin=False)),
    # Fragments (5.4)
    "two fragments": Case([frame(TEXT, b"he", fin=False) + frame(CONT, b"llo")], [ECHO]),
    "fragments of nothing": Case(
        [
            frame(TEXT, fin=False) + frame(CONT, fin=False),
            frame(CONT, b"hello", fin=False),
            frame(CONT),
        ],
        [ECHO],
    ),
    "fragments of a byte each": Case(
        [frame(BINARY, b"\0", fin=False), frame(CONT, b"\0", fin=False) * 998, frame(CONT, b"\0")],
        [Message(BINARY, bytes(1000))],
    ),
    "message after a fragmented one": Case(
        [frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xfe") + HELLO],
        [Message(BINARY, b"\xff\xfe"), ECHO],
    ),
    "continuation of nothing": refused(1002, frame(CONT, b"hello")),
    "unfinished continuation of nothing": refused(1002, frame(CONT, b"hello", fin=False)),
    "continuation after the last fragment": refused(
        1002, frame(TEXT, b"he", fin=False) + frame(CONT, b"llo") + frame(CONT, b"more")
    ),
    "text between fragments": refused(1002, frame(TEXT, b"he", fin=False), HELLO),
    "binary between fragments": refused(
        1002, frame(TEXT, b"he", fin=False), frame(BINARY, b"x", fin=False)
    ),
    # Control frames (5.5)
    "ping": Case([frame(PING, b"\0\xff")], [Message(PONG, b"\0\xff")]),
    "empty ping": Case([frame(PING)], [Message(PONG, b"")]),
    "longest ping": Case([frame(PING, b"p" * 125)], [Message(PONG, b"p" * 125)]),
    "ping byte by byte": Case(
        [bytes((byte,)) for byte in frame(PING, b"x")], [Message(PONG, b"x")]
    ),
    "several pings": Case(
        [b"".join(frame(PING, b"%d" % n) for n in range(9))],
        [Message(PONG, b"%d" % n) for n in range(9)],
    ),
    "pings between fragments": Case(
        [
            frame(TEXT, b"he", fin=False) + frame(PING, b"1"),
            frame(CONT, b"l", fin=False) + frame(PING, b"2"),
            frame(CONT, b"lo"),
        ],
        [Message(PONG, b"1"), Message(PONG, b"2"), ECHO],
    ),
    "pong that nobody asked for": Case([frame(PONG, b"x") + HELLO], [ECHO]),
    "pong between fragments": Case(
        [frame(TEXT, b"he", fin=False) + frame(PONG) + frame(CONT, b"llo")], [ECHO]
    ),
    "too long ping": refused(1002, frame(PING, bytes(126))),
    "too long pong": refused(1002, frame(PONG, bytes(65536))),
    "too long close": refused(1002, closing(1000, b"x" * 124)),
    "fragmented ping": refused(1002, frame(PING, b"x", fin=False), frame(CONT, b"y")),
    "fragmented close": refused(1002, frame(CLOSE, b"\x03", fin=False), frame(CONT, b"\xe8")),
    # UTF-8 (8.1)
    "text of many alphabets": echoed(WIDE, TEXT),
    "text with what is valid and rare": echoed("\0\uffff\ufffe\U0010ffff\ud7ff".encode(), TEXT),
    "code point split over fragments": Case(
        [frame(TEXT, WIDE[:1], fin=False)]
        + [frame(CONT, WIDE[at : at + 1], fin=False) for at in range(1, len(WIDE))]
        + [frame(CONT)],
        [Message(TEXT, WIDE)],
    ),
    "code point split over writes": Case(
        [frame(TEXT, WIDE)[:-3], frame(TEXT, WIDE)[-3:]], [Message(TEXT, WIDE)]
    ),
    "byte that never occurs": refused(1007, frame(TEXT, b"hello\xff")),
    "lone continuation byte": refused(1007, frame(TEXT, b"\x80")),
    "overlong form": refused(1007, frame(TEXT, b"\xc0\xaf")),
    "surrogate": refused(1007, frame(TEXT, b"\xed\xa0\x80")),
    "beyond the last code point": refused(1007, frame(TEXT, b"\xf4\x90\x80\x80")),
    "code point that does not end": refused(1007, frame(TEXT, b"hello" + SNOW[:2])),
    "fragmented code point that does not end": refused(
        1007, frame(TEXT, b"hello", fin=False), frame(CONT, SNOW[:2])
    ),
    "invalid code point split over fragments": refused(
        1007, frame(TEXT, b"\xed", fin=False), frame(CONT, b"\xa0\x80")
    ),
    "invalid in the first of two fragments": refused(
        1007, frame(TEXT, b"\xff", fin=False), frame(CONT, b"x")
    ),
    "binary need not be UTF-8": echoed(b"\xff\xc0\xaf" + SNOW[:2]),
    # Closing (5.5.1, 7.4)
    "close without a code": Case([frame(CLOSE)], [Message(CLOSE, b"")]),
    "close with a reason": Case(
        [closing(1000, "lunch \N{SNOWMAN}".encode())],
        [closed(1000, "lunch \N{SNOWMAN}".encode())],
    ),
    "close with the longest reason": Case([closing(1000, b"x" * 123)], [closed(1000, b"x" * 123)]),
    "close byte by byte": Case([bytes((byte,)) for byte in closing(1000)], [closed(1000)]),
    "close between fragments": Case(
        [frame(TEXT, b"he", fin=False) + closing(1000)], [closed(1000)]
    ),
    "nothing counts after a close": Case(
        [closing(1000) + HELLO + frame(PING, b"x") + frame(3) + closing(1001)], [closed(1000)]
    ),
    "close with one byte": refused(1002, frame(CLOSE, b"\x03")),
    "close with a reason that is not UTF-8": refused(1007, closing(1000, b"\xff")),
    "close with a reason that ends early": refused(1007, closing(1000, SNOW[:2])),
    **{
        f"close with {code}": Case([closing(code)], [closed(code)])
        for code in (1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999)
    },
    **{
        f"close with {code}, which nobody may send": refused(1002, closing(code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
}

DEVIATIONS: dict[tuple[str, str], tuple[Sequence[Message | int], str]] = {
    ("daphne", "close with 1014"): (
        [1002],
        "autobahn and wsproto have a list of codes that ends with 1013; IANA's has 1014",
    ),
    **{
        (server, name): (
            [Message(BINARY, bytes(size))],
            "the library websockets reads lengths that are longer than they need be",
        )
        for server in ("uvicorn", "uvicorn-legacy")
        for name, size in (
            ("two-byte length for 125 bytes", 125),
            ("two-byte length for nothing", 0),
            ("eight-byte length for 65535 bytes", 65535),
        )
    },
    **{
        (server, "length of more than 63 bits"): (
            [1009],
            "the library websockets has no limit of its own for lengths, and compares with ours",
        )
        for server in ("uvicorn", "uvicorn-legacy")
    },
    ("uvicorn", "close between fragments"): (
        [1002],
        "the library websockets wants the message to be complete first",
    ),
}
DEVIATIONS["uvicorn-wsproto", "close with 1014"] = DEVIATIONS["daphne", "close with 1014"]
"""What an implementation does otherwise, and why. Remove a line when its test fails."""


@pytest.mark.parametrize("name", CASES)
def test_frames(server: tuple[str, Gateway], peer: Peer, name: str) -> None:
    """On daphne, and for what came late on uvicorn, a reset came instead of the close frame."""
    written, expected = CASES[name]
    expected, why = DEVIATIONS.get((server[0], name), (expected, ""))
    for data in written:
        peer.send(data)
    got = None
    for wanted in expected:
        got = peer.read()
        if isinstance(wanted, int):
            assert got == closed(wanted, got.payload[2:] if got else b""), why
            peer.answer()
        else:
            assert got == wanted, why
    if got is not None and got.opcode == CLOSE:
        assert peer.read() is None


def test_invalid_text_does_not_fill_the_log(server: tuple[str, Gateway], peer: Peer) -> None:
    """Uvicorn's default implementation logged an ERROR with a traceback for each."""
    peer.send(frame(TEXT, b"\xff"))
    got = peer.read()
    assert got is not None
    assert got == closed(1007, got.payload[2:])
    assert "Traceback" not in server[1].output
    assert "ERROR" not in server[1].output


# -- the handshake (4.2) ---------------------------------------------------------------------


def test_accepted_handshake(peer: Peer) -> None:
    key = peer.key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    assert peer.headers["sec-websocket-accept"] == accept.decode()
    assert peer.headers["upgrade"].lower() == "websocket"
    assert peer.headers["connection"].lower() == "upgrade"
    assert not {"sec-websocket-protocol", "sec-websocket-extensions"} & set(peer.headers)


@pytest.mark.parametrize(
    "headers",
    [{"Sec_WebSocket_Version": "12"}, {"Sec_WebSocket_Version": None}, {"Sec_WebSocket_Key": None}],
    ids=["another version", "no version", "no key"],
)
def test_refused_handshake(server: tuple[str, Gateway], headers: dict[str, str | None]) -> None:
    with contextlib.closing(Peer(server[1].port, **headers)) as peer:
        assert peer.status in (400, 426)
