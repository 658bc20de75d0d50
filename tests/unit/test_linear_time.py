"""No parser takes time that grows with the square of what it is sent.

Each gets an input that would keep a quadratic one busy for minutes, and may use seconds of the
processor: the machine may be slow, and the clock of others' work does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from wsgateway import handshake
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.reader import Reader
from wsgateway.exceptions import WsGatewayError
from wsgateway.layer import wire
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Subjects, decode_token, encode_token

LONG = 1_000_000
ENOUGH = 10.0
"""Seconds of processor time."""


def feed_single_bytes(data: bytes) -> None:
    reader = Reader({}, lambda line: None, lambda error: None, asyncio.Protocol())
    reader.start(asyncio.Transport(), b"")
    for start in range(0, len(data), 4):
        reader.feed(data[start : start + 4])


def join_parts(count: int) -> None:
    joiner = wire.Joiner()
    for index in range(count):
        part = b"i" * 16 + index.to_bytes(2) + count.to_bytes(2) + b"x"
        joiner.add(wire.pack(1.0, b"", part, wire.PART))


def cookie(text: bytes) -> None:
    handshake.cookie({"headers": [(b"cookie", text)]}, "user")


CASES: dict[str, Callable[[], Any]] = {
    "client: deep": lambda: protocol.parse_client('{"type":' + "[" * LONG),
    "client: digits": lambda: protocol.parse_client('{"type":"ack","offset":' + "1" * LONG + "}"),
    "client: fields": lambda: protocol.parse_client(
        "{" + ",".join(f'"{n}":1' for n in range(100_000)) + "}"
    ),
    "client: backslashes": lambda: protocol.parse_client('{"type":"' + "\\" * LONG),
    "client: id": lambda: protocol.parse_client('{"type":"message","id":"' + "x" * LONG + '"}'),
    "server: bytes": lambda: protocol.parse_server(
        '{"type":"message","offset":1,"bytes":"' + "=" * LONG + '"}'
    ),
    "resume": lambda: protocol.parse_resume(b"offset=" + b"%" * LONG),
    "resume: fields": lambda: protocol.parse_resume(b"a&" * LONG),
    "cookies": lambda: cookie(b"user=" + b'"\\' * LONG),
    "cookies: many": lambda: cookie(b"a=b;" * 200_000),
    "query": lambda: handshake.parameter({"query_string": b"a=%00&" * 200_000}, "token"),
    "headers: many": lambda: hdrs.decode(b"NATS/1.0\r\n" + b"A: b\r\n" * 200_000),
    "headers: find": lambda: hdrs.find(b"\r\nNats-Sequence" * 100_000, b"Nats-Sequence"),
    "token": lambda: decode_token("=41" * LONG),
    "token: name": lambda: encode_token("\0" * LONG),
    "subject": lambda: Subjects().parse("ws.recv." + "." * LONG),
    "frame": lambda: Frame.parse(b"\xc3\xa4" * LONG + b"\xff", None),
    "reader: messages": lambda: feed_single_bytes(b"MSG a 1 4\r\nabcd\r\n" * 50_000),
    "reader: one line": lambda: feed_single_bytes(b"PING" * 10_000),
    "reader: large": lambda: feed_single_bytes(b"MSG a 1 1000000\r\n" + bytes(LONG)),
    "parts": lambda: join_parts(60_000),
    "envelope": lambda: wire.body(wire.compress(wire.pack(1.0, b"", bytes(LONG))), 100),
}


@pytest.mark.parametrize("name", CASES)
def test_long_input_takes_no_long_time(name: str) -> None:
    began = time.process_time()
    with contextlib.suppress(WsGatewayError):
        CASES[name]()
    assert time.process_time() - began < ENOUGH
