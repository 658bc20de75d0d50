"""Addresses of NATS servers, and the order in which they are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.broker.addresses import MAX_ANNOUNCED, Address, ServerList


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost", Address("localhost", 4222)),
        ("h:1", Address("h", 1)),
        ("nats://h", Address("h", 4222)),
        ("tls://h:4443/", Address("h", 4443, tls=True)),
        ("nats://u:p@h", Address("h", 4222, user="u", password="p")),
        ("u:p@h:1", Address("h", 1, user="u", password="p")),
        ("nats://u:@h", Address("h", 4222, user="u")),
        ("nats://t0ken@h", Address("h", 4222, token="t0ken")),
        ("nats://a%40b:p%2Fq%3A%2C%25@h", Address("h", 4222, user="a@b", password="p/q:,%")),
        ("nats://t%2Fk@h", Address("h", 4222, token="t/k")),
        ("nats://u:p@ss@h", Address("h", 4222, user="u", password="p@ss")),
        ("[::1]:5", Address("::1", 5)),
        ("nats://h:6379", Address("h", 6379)),
        ("nats:1", Address("nats", 1)),
        ("nats:p@h", Address("h", 4222, user="nats", password="p")),
        ("nats://u:p ;q@h", Address("h", 4222, user="u", password="p ;q")),
        ("nats://u:p@[2001:db8::1]", Address("2001:db8::1", 4222, user="u", password="p")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    """Percent-encoded passwords were sent as they stand in the URL."""
    assert Address.parse(url) == address


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_password_can_be_written(user: str, password: str) -> None:
    from urllib.parse import quote

    try:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:
        return
    address = Address.parse(f"nats://{login}@h:1")
    assert (address.user, address.password, address.netloc) == (user, password, "h:1")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ws://h", "scheme 'ws': NATS over websockets is not supported"),
        ("wss://h", "scheme 'wss': NATS over websockets is not supported"),
        ("redis://u:s3cret@h", "scheme 'redis': that is a Redis server"),
        ("rediss://:s3cret@h:6379/0", "scheme 'rediss': that is a Redis server"),
        ("unix:///run/redis.sock", "scheme 'unix': NATS does not listen on Unix sockets"),
        ("http://h:8222", "scheme 'http': that is a web address; NATS' port for clients is 4222"),
        ("postgres://h", "scheme 'postgres'"),
        ("u:s3cret@h:6379", "port 6379 is where Redis listens"),
        ("h:26379", "port 26379 is where Redis listens"),
        ("nats//localhost:4222", "the colon after nats is missing"),
        ("TLS//u:s3cret@h", "the colon after TLS is missing"),
        ("nats:h:4222", "// is missing after nats:"),
        ("tls:/h", "// is missing after tls:"),
        ("//h:4222", "nats: is missing before //"),
        ("://h", "scheme ''"),
        ("nats://a nats://b", "two URLs without a comma"),
        ("nats://u:s3cret@a;nats://b", "two URLs without a comma"),
        ("a b", "the host is not valid"),
        ("nats://", "no host"),
        ("4222", "no host"),
        ("nats://u:s3cret@", "no host"),
        ("nats://h:port", "the port is not a number from 1 to 65535"),
        ("nats://h:0", "the port is not a number from 1 to 65535"),
        ("nats://h:99999", "the port is not a number from 1 to 65535"),
        ("nats://[::1", "the host is not valid"),
        ("nats://u:s3cret\u2100@h", "the host is not valid"),
        ("nats://u:s3/cret@h", "write / as %2F"),
        ("nats://u:s3#cret@h", "write / as %2F"),
    ],
)
def test_what_is_no_address(url: str, text: str) -> None:
    with pytest.raises(ValueError) as error:
        Address.parse(url)
    assert text in str(error.value)
    assert "cret" not in str(error.value)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(url: str) -> None:
    try:
        address = Address.parse(url)
    except ValueError:
        return
    assert address.host


def test_url_is_without_the_login() -> None:
    assert Address.parse("tls://u:p@[::1]:7").url == "tls://[::1]:7"
    assert Address.parse("nats://tok@h").url == "nats://h:4222"


def servers(*urls: str, discover: bool = True) -> ServerList:
    return ServerList(map(Address.parse, urls), discover=discover, shuffle=list.reverse)


def order(known: ServerList) -> list[str]:
    return [address.netloc for address in known.order()]


def test_configured_servers_come_first_each_part_shuffled() -> None:
    """Discovered ones were tried first, two seconds each."""
    known = servers("a:1", "b:1")
    known.hear(["c:1", "a:1", "d:1"], known.configured[0])
    assert order(known) == ["b:1", "a:1", "d:1", "c:1"]


def test_what_is_announced_replaces_what_was_announced_before() -> None:
    """Twelve rolling restarts of seven servers left forty addresses."""
    known = servers("a:1")
    for number in range(40):
        known.hear([f"10.0.0.{number}:1", "10.0.1.1:1"], known.configured[0])
    assert order(known) == ["a:1", "10.0.1.1:1", "10.0.0.39:1"]
    known.hear([], known.configured[0])
    assert order(known) == ["a:1"]


def test_announcements_are_bounded_and_nonsense_in_them_is_skipped() -> None:
    known = servers("a:1")
    known.hear(
        [None, 7, "", "x:y", {}, "ws://h", *(f"h{n}:1" for n in range(999))], Address("a", 1)
    )
    assert len(known.announced) == MAX_ANNOUNCED
    assert {address.port for address in known.announced} <= {1, 4222}


def test_announcements_can_be_ignored() -> None:
    known = servers("a:1", discover=False)
    known.hear(["b:1"], known.configured[0])
    assert order(known) == ["a:1"]


def test_announced_servers_take_login_and_certificate_name_of_who_announced_them() -> None:
    via = Address.parse("tls://u:p%40@nats.example.com:1")
    known = ServerList([via])
    known.hear(["10.0.0.1:2", "[fd00::2]:3", "other.example.com:4"], via)
    assert known.announced == [
        Address("10.0.0.1", 2, True, "u", "p@", "", "nats.example.com"),
        Address("fd00::2", 3, True, "u", "p@", "", "nats.example.com"),
        Address("other.example.com", 4, True, "u", "p@", "", ""),
    ]
    assert known.announced[0].sibling("10.0.0.9:2").tls_name == "nats.example.com"
