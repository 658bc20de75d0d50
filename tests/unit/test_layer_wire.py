"""Envelopes: what is packed, compressed and split is the same after all of it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.broker.messages import Stored
from wsgateway.exceptions import MalformedMessage
from wsgateway.layer import durable, wire
from wsgateway.layer.envelopes import Envelopes
from wsgateway.layer.serializers import registry


@given(st.floats(0, 4e9), st.binary(max_size=99), st.binary(max_size=2000))
def test_round_trip(time: float, name: bytes, content: bytes) -> None:
    data = wire.pack(time, name, content)
    assert wire.is_enveloped(data)
    assert wire.head(data) == (0xC1, 0, time, len(name))
    assert (wire.sent_at(data), wire.name(data)) == (time, name)
    assert wire.body(data, len(content)) == content


@given(st.binary(max_size=4000), st.integers(60, 500), st.randoms(use_true_random=False))
def test_parts_join_in_any_order_and_twice(content: bytes, limit: int, chance: Any) -> None:
    data = wire.pack(1.0, b"a!b", content)
    parts = list(wire.split(data, b"i" * 16, limit))
    assert all(len(part) <= limit and wire.is_part(part) for part in parts)
    chance.shuffle(parts)
    joiner = wire.Joiner(10_000)
    results = [joiner.add(part) for part in parts[:-1] for _ in range(2)]
    assert not any(results)
    if parts:
        assert joiner.add(parts[-1]) == data
        assert joiner.held == joiner.unfinished == 0


@given(st.binary(max_size=99), st.binary(min_size=16, max_size=16), st.integers(1, 65535))
def test_a_claim_says_where_the_message_is(name: bytes, identity: bytes, count: int) -> None:
    claim = wire.claim(wire.pack(5.0, name, b"content", wire.FRAME), identity, count)
    assert wire.is_enveloped(claim)
    assert (wire.is_claim(claim), wire.is_part(claim), wire.is_control(claim)) == (True, 0, 0)
    assert (wire.sent_at(claim), wire.name(claim)) == (5.0, name)
    assert wire.claimed(claim) == (identity, count)
    later = wire.stamp(claim, 7.0)
    assert (wire.sent_at(later), wire.claimed(later)) == (7.0, (identity, count))


@pytest.mark.parametrize("cut", [1, 17])
def test_a_damaged_claim_is_said(cut: int) -> None:
    claim = wire.claim(wire.pack(5.0, b"name", b""), b"i" * 16, 3)
    for damaged in (claim[:-cut], claim + b"x", wire.pack(5.0, b"name", bytes(18))):
        with pytest.raises(MalformedMessage):
            wire.claimed(damaged)


def test_parts_of_one_message_know_each_other() -> None:
    parts = wire.split(wire.pack(1.0, b"a!b", bytes(1000)), b"i" * 16, 300)
    assert {wire.identity(part) for part in parts} == {b"i" * 16}


def test_unfinished_messages_are_bounded() -> None:
    joiner = wire.Joiner(1000)
    for number in range(100):
        data = wire.pack(1.0, b"", bytes(500))
        joiner.add(next(wire.split(data, bytes([number]) * 16, 300)))
    assert joiner.held <= 1000
    assert joiner.unfinished <= 5


@given(st.binary(max_size=3000))
def test_compression_never_makes_it_longer(content: bytes) -> None:
    data = wire.pack(1.0, b"name", content)
    packed = wire.compress(data)
    assert len(packed) <= len(data)
    assert wire.body(packed, len(content)) == content


def test_a_bomb_is_not_inflated() -> None:
    data = wire.compress(wire.pack(1.0, b"", bytes(10_000_000)))
    assert len(data) < 100_000
    with pytest.raises(MalformedMessage, match="exceeds 1000 bytes"):
        wire.body(data, 1000)


@given(st.binary(max_size=200))
def test_foreign_bytes_raise_nothing_else(data: bytes) -> None:
    data = b"\xc1" + data
    if not wire.is_enveloped(data):
        return
    wire.name(data)
    try:
        wire.body(data, 1000)
        wire.Joiner(1000).add(data)
    except MalformedMessage:
        pass


envelopes = st.builds(
    lambda flags, name, start, content: wire.pack(1.0, name, start + content, flags),
    st.integers(0, 255),
    st.binary(max_size=3),
    st.sampled_from([b"", b"i" * 16, b"i" * 16 + b"\0\1\0\2", b"j" * 16 + b"\0\0\0\0"]),
    st.binary(max_size=30),
)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.binary(max_size=9)), max_size=9))
def test_parts_that_contradict_each_other_raise_nothing(
    parts: list[tuple[int, int, bytes]],
) -> None:
    """Parts of the same name that disagreed about their number raised KeyError."""
    joiner = wire.Joiner(20)
    for index, count, content in parts:
        part = b"i" * 16 + index.to_bytes(2) + count.to_bytes(2) + content
        whole = joiner.add(wire.pack(1.0, b"", part, wire.PART))
        assert whole is None or not wire.is_part(whole)
    counts = {count for index, count, _ in parts if index < count}
    assert joiner.unfinished <= len(counts), "something is kept for what is not a part"
    assert 0 <= joiner.held <= sum(len(content) for _, _, content in parts)
    assert joiner.unfinished or not joiner.held


def _reader(name: str) -> Envelopes:
    async def fetch(claim: bytes) -> bytes | None:
        wire.claimed(claim)
        return None

    return Envelopes(registry.get_serializer(name), 60, 1000, fetch)


READERS = [_reader("msgpack"), _reader("json")]


@given(st.one_of(st.binary(max_size=60), envelopes))
def test_layer_reads_or_skips_whatever_comes(data: bytes) -> None:
    for reader in READERS:
        reader.decode(wire.framed(data))
        for kind in (None, "text", "binary", "event", "junk"):
            stored = Stored(1, 0, data, kind)
            durable.claim_of(stored)
            reader.event_of(stored)


@pytest.mark.parametrize("content", [b"\xffs3cret", b"\xa0s3cret", b"\x92\xa6s3cret\xa1"])
def test_log_of_what_cannot_be_read_does_not_quote_it(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The arguments of `UnicodeDecodeError` and of msgpack's `ExtraData` hold the message."""
    for reader in READERS:
        reader.decode(wire.pack(time.time(), b"chat.1", content))
        reader.event_of(Stored(7, 0, content, "event"))
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "s3cret" not in "".join(str(vars(record)) for record in caplog.records)
    assert {vars(each).get("channel", each.__dict__.get("offset")) for each in caplog.records} == {
        "chat.1",
        7,
    }


@given(st.one_of(envelopes, st.binary(max_size=60)))
def test_claim_is_read_or_malformed(data: bytes) -> None:
    if not wire.is_enveloped(data):
        return
    with contextlib.suppress(MalformedMessage):
        identity, count = wire.claimed(data)
        assert (len(identity), count >= 0) == (16, True)


def test_keys_rotate_without_a_limit_of_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """channels_redis refuses ciphertext older than the expiry; a stored message is older."""
    from cryptography.fernet import InvalidToken

    old = registry.get_serializer("msgpack", symmetric_encryption_keys=["old"], expiry=1)
    both = registry.get_serializer("msgpack", symmetric_encryption_keys=["new", "old"], expiry=1)
    data = old.serialize({"a": 1})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * 365 * 86400)
    assert both.deserialize(data) == {"a": 1}
    with pytest.raises(InvalidToken):
        old.deserialize(both.serialize({"a": 1}))
