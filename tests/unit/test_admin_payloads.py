"""Messages as the admin shows them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgpack
import pytest

from wsgateway.admin.payloads import PREVIEW, WHOLE, Shown, shown
from wsgateway.broker.messages import Stored
from wsgateway.readable import visible


def read(payload: bytes, kind: str | None = None, limit: int = PREVIEW) -> Shown:
    return shown(Stored(7, None, payload, kind, "2026-01-02T03:04:05.678901234Z"), limit)


def test_json_is_indented() -> None:
    found = read(b'{"a":[1,2.5,"\xc3\xa9"]}')
    assert (found.kind, found.size, found.cut) == ("JSON", 18, False)
    assert found.text == '{\n  "a": [\n    1,\n    2.5,\n    "é"\n  ]\n}'
    assert found.summary == '{ "a": [ 1, 2.5, "é" ] }'
    assert not found.is_short


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        "[1.10]",
        "[1e400]",
        "[NaN]",
        "[" * 100_000,
        "[" + "9" * 5_000 + "]",
        '{"a":',
        "{braces}",
    ],
)
def test_what_indentation_would_change_is_shown_as_it_is(text: str) -> None:
    found = read(text.encode(), limit=200_000)
    assert (found.kind, found.text) == ("text", text)


def test_text_is_shown_as_it_is() -> None:
    found = read("größer\n<b>".encode())
    assert (found.kind, found.text, found.is_short) == ("text", "größer\n<b>", False)
    assert read(b"hello").is_short


def test_characters_that_could_deceive_are_written_out() -> None:
    assert visible("a\u202eb\x00\x1b[31m\n\tc") == "a\\u202eb\\u0000\\u001b[31m\n\tc"
    assert visible("👩‍💻 é") == "👩‍💻 é"
    assert read("x\u202ey".encode()).text == "x\\u202ey"


def test_bytes_are_dumped() -> None:
    found = read(bytes(range(20)) + b"AZ\xff", "binary")
    assert found.kind == "binary"
    assert found.text.splitlines() == [
        "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
        "00000010  10 11 12 13 41 5a ff                             ....AZ.",
    ]
    assert read(b"\xff\xfe").kind == "binary"


def test_text_that_is_none_is_dumped() -> None:
    assert read(b"\xff", "text").kind == "malformed"
    assert read(b"a", "strange").kind == "malformed"


def test_event_is_shown_as_json() -> None:
    found = read(msgpack.packb({"type": "chat.message", "n": 1, "raw": b"\x00"}), "event")
    assert found.kind == "event"
    assert found.text.startswith('{\n  "type": "chat.message",\n  "n": 1,')


@pytest.mark.parametrize("payload", [b"\xc1", b"\xfe" * 30, b""])
def test_event_that_cannot_be_read_is_dumped(payload: bytes) -> None:
    assert read(payload, "event").kind == "event"


@pytest.mark.parametrize("payload", [b"x" * 5_000, b"\xff" * 5_000, b'{"a":"%s"}' % (b"y" * 9_000)])
def test_only_the_beginning_of_what_is_long(payload: bytes) -> None:
    found = read(payload)
    assert (len(found.text), found.cut, found.size) == (PREVIEW, True, len(payload))


@pytest.mark.parametrize("kind", ["text", "event"])
def test_deep_json_takes_little_memory(kind: str) -> None:
    """Its indentation took 150 MB, of which 256 kB are shown."""
    deep: Any = [1] * 250_000
    for _ in range(300):
        deep = [deep]
    text, event = json.dumps(deep).encode(), msgpack.packb({"type": "x", "a": deep})
    payload = text if kind == "text" else event
    tracemalloc.start()
    try:
        found = read(payload, kind, WHOLE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(found.text), found.cut) == (WHOLE, True)
    assert peak < 30_000_000


def test_time_is_known() -> None:
    found = read(b"")
    assert str(found.time) == "2026-01-02 03:04:05.678901+00:00"
    assert shown(Stored(7, None, b"", None), 10).time is None
