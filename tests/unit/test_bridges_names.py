"""Keys and names on a bus."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.bridges.bus import Target
from wsgateway.bridges.names import Names, Source, carry_flaw, key_of, parse_key
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, Topic, encode_token


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_key_names_the_inbox_it_was_made_of(service: str, user: str) -> None:
    key = key_of(service, encode_token(user))
    assert parse_key("inbox", None, key) == Inbox(service, user)
    assert parse_key("inbox", service, encode_token(user)) == Inbox(service, user)
    assert parse_key("topic", None, key) == Topic(service, user)


@given(st.text(max_size=80))
def test_any_key_is_read_or_refused(key: str) -> None:
    for service in (None, "orders"):
        try:
            address = parse_key("inbox", service, key)
        except NameRefused:
            continue
        assert isinstance(address, Inbox)


@pytest.mark.parametrize(
    ("target", "service", "key", "text"),
    [
        ("inbox", None, "", "key '' is not <service>.<user>"),
        ("inbox", None, "orders", "is not <service>.<user>; write one dot"),
        ("topic", None, "a.b.c", "is not <service>.<name>"),
        ("inbox", None, "orders.", "key holds '', which is not an escaped name"),
        ("inbox", None, "orders.zoë", "for that name, write 'zo=C3=AB'"),
        ("inbox", "orders", "a@b.c", "is not one token"),
        ("inbox", "orders", "a@b.c", "for that name, write 'a=40b=2Ec'"),
        ("inbox", None, "orders.a=2eb", "; write its digits in upper case: 'a=2Eb'"),
        ("inbox", "orders", "\\xff", "which is not an escaped name"),
        ("inbox", "orders", "x" * 500, "name of 500 bytes exceeds"),
    ],
)
def test_refused_key_says_how_to_write_it(
    target: Target, service: str | None, key: str, text: str
) -> None:
    with pytest.raises(NameRefused) as caught:
        parse_key(target, service, key)
    assert text in str(caught.value)


def test_names_begin_with_the_prefix() -> None:
    names = Names("acme.ws")
    assert (names.send, names.recv, names.topic, names.dead) == (
        "acme.ws.send",
        "acme.ws.recv",
        "acme.ws.topic",
        "acme.ws.dead",
    )
    assert names.send_topic("orders") == "acme.ws.send.orders"
    assert names.sources(("orders",)) == {
        "acme.ws.recv": Source("inbox", None),
        "acme.ws.topic": Source("topic", None),
        "acme.ws.recv.orders": Source("inbox", "orders"),
        "acme.ws.topic.orders": Source("topic", "orders"),
    }


def test_name_that_a_bus_cannot_carry_is_explained() -> None:
    assert carry_flaw("kafka", "ws", "orders") == carry_flaw("amqp", "ws", "größe") == ""
    assert "Kafka cannot have the topic" in carry_flaw("kafka", "ws", "größe")
    assert "exceeds 249" in carry_flaw("kafka", "ws", "x" * 245)
    assert "exceed 255 bytes" in carry_flaw("amqp", "ws", "x" * 254)
    assert "exceeds 255 bytes" in carry_flaw("amqp", "ws", "x" * 256)
