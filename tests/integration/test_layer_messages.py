"""What a message may hold: refused by the sender, or received as it was sent."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.layers import Make, drain, layers, receive
from wsgateway.layer.serializers import (
    MAX_DEPTH,
    BaseMessageSerializer,
    JSONSerializer,
    MsgPackSerializer,
    registry,
)


class Loose(BaseMessageSerializer):
    """A user's format that writes more than it reads."""

    def as_bytes(self, message: Any) -> bytes:
        return json.dumps(message, default=repr).encode()

    def from_bytes(self, message: bytes) -> Any:
        value = json.loads(message)
        if "7" in str(value):
            raise LookupError("seven")
        return value


@pytest.fixture
def loose() -> Iterator[str]:
    registry.register_serializer("loose", Loose)
    yield "loose"
    del registry.classes["loose"]


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


def nested(depth: int, kind: type = list) -> Any:
    """Return containers within each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"x": value}
    return value


ITSELF: list[Any] = []
ITSELF.append(ITSELF)

REFUSED: list[tuple[str, Any, type[Exception]]] = [
    ("key", {7: "x"}, TypeError),
    ("key in a list", [{"a": {None: "x"}}], TypeError),
    ("key that is a tuple", ({(1, 2): "x"},), TypeError),
    ("key that is a float", {"a": {1.5: "x"}}, TypeError),
    ("set", {1, 2}, TypeError),
    ("date", datetime.date(2026, 1, 1), TypeError),
    ("object", object(), TypeError),
    ("lone surrogate", "\ud800", ValueError),
    ("lone surrogate in a key", {"\ud800": 1}, ValueError),
    ("lists", nested(1100), ValueError),
    ("dicts", nested(1100, dict), ValueError),
    ("very deep", nested(20_000), ValueError),
    ("itself", ITSELF, ValueError),
]
OF_MSGPACK = [("large int", 2**64, OverflowError), ("small int", [-(2**63) - 1], OverflowError)]
OF_JSON = [
    ("bytes", b"x", TypeError),
    ("bytes as a key", {b"x": 1}, TypeError),
    ("NaN", float("nan"), ValueError),
    ("infinity", [float("-inf")], ValueError),
]


@pytest.mark.parametrize(
    ("format", "value", "error"),
    [
        pytest.param(format, value, error, id=f"{format}: {name}")
        for format, cases in (("msgpack", OF_MSGPACK), ("json", OF_JSON))
        for name, value, error in REFUSED + cases
    ],
)
async def test_what_cannot_be_received_is_refused_at_the_sender(
    make: Make, format: str, value: Any, error: type[Exception]
) -> None:
    """``{"by_id": {7: "x"}}`` was sent without an error, and never arrived."""
    layer = make(serializer_format=format)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("service.user", channel)
    for call in (
        layer.send(channel, {"type": "x", "n": value}),
        layer.send("work", {"type": "x", "n": value}),
        layer.group_send("group", {"type": "x", "n": value}),
        layer.group_send("service.user", {"type": "x", "n": value}),
    ):
        with pytest.raises(error):
            await call
    for name in (channel, "work"):
        await layer.send(name, {"type": "the.end"})  # and nothing of it came
        assert await receive(layer, name) == {"type": "the.end"}


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
async def test_a_frame_that_cannot_be_received_is_refused_at_the_sender(
    make: Make, text: str
) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        await make().group_send("service.user", {"type": "ws.message", "text": text})


async def test_a_key_of_the_message_itself_that_is_not_a_string(make: Make) -> None:
    message: dict[Any, Any] = {"type": "x", 7: "x"}
    with pytest.raises(TypeError, match="key of type int"):
        await make().group_send("group", message)


@pytest.mark.parametrize("format", ["msgpack", "json"])
async def test_the_deepest_message_arrives(make: Make, format: str) -> None:
    layer = make(serializer_format=format)
    channel = await layer.new_channel()
    for kind in (list, dict):
        await layer.send(channel, {"type": "x", "n": nested(MAX_DEPTH - 1, kind)})
        assert await drain(layer, channel, 1) == [nested(MAX_DEPTH - 1, kind)]


@pytest.mark.parametrize("keys", [None, ["secret"]])
async def test_a_format_of_ones_own_that_cannot_read_what_it_wrote(
    make: Make, loose: str, keys: Any
) -> None:
    layer = make(serializer_format=loose, symmetric_encryption_keys=keys)
    channel = await layer.new_channel()
    with pytest.raises(ValueError, match=r"cannot read what it made.*LookupError"):
        await layer.send(channel, {"type": "x", "n": 7})
    await layer.send(channel, {"type": "x", "n": 8})
    assert await drain(layer, channel, 1) == [8]


KEYS = st.one_of(st.text(), st.integers(), st.none(), st.binary(), st.floats())
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.binary(),
        st.sets(st.integers()),
        st.datetimes(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner)),
    max_leaves=8,
)


@pytest.mark.parametrize("serializer", [MsgPackSerializer(), JSONSerializer()])
@given(value=VALUES)
def test_whatever_is_written_is_read_as_it_was(
    serializer: BaseMessageSerializer, value: Any
) -> None:
    try:
        data = serializer.serialize({"type": "x", "n": value})
    except (TypeError, ValueError, OverflowError):
        return
    again = serializer.deserialize(data)
    assert repr(again["n"]) == repr(value)  # repr, because NaN is not equal to itself
