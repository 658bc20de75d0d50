"""What WSGATEWAY_BRIDGES may say, and what the errors say about the rest."""

from __future__ import annotations

from typing import Any

import pytest

from wsgateway.bridges.config import Bridge, Server, bridge_flaws, bridge_of


def made(**options: Any) -> Bridge:
    given = {"url": "kafka://localhost", "services": ["orders"], **options}
    assert bridge_flaws({"warehouse": given}) == ""
    return bridge_of("warehouse", given, "ws")


def flaw(**options: Any) -> str:
    given = {"url": "kafka://localhost", "services": ["orders"], **options}
    return bridge_flaws({"b": given}).removeprefix("'b': ")


def test_defaults() -> None:
    bridge = made()
    assert bridge.bus == "kafka"
    assert bridge.servers == (Server("localhost", 9092),)
    assert bridge.group == "ws.bridge.warehouse"
    assert bridge.sends
    assert bridge.receives
    assert not bridge.is_encrypted


@pytest.mark.parametrize(
    ("url", "where", "encrypted"),
    [
        ("kafka://a:1,b:2", "kafka://a:1,b:2", False),
        ("kafka+ssl://a,[::1]:2", "kafka+ssl://a:9093,[::1]:2", True),
        ("amqp://a", "amqp://a:5672", False),
        ("amqps://u:p%40ss@a/prod", "amqps://a:5671/prod", True),
        ("amqp://a/", "amqp://a:5672", False),
        ("amqp://a/%2F", "amqp://a:5672", False),
    ],
)
def test_url_says_where_the_bus_is(url: str, where: str, encrypted: bool) -> None:
    bridge = made(url=url)
    assert bridge.where == where
    assert bridge.is_encrypted is encrypted


def test_virtual_host_is_unescaped() -> None:
    assert made(url="amqp://a/%2Fteam%2Fb").vhost == "/team/b"


def test_login_may_stand_in_the_url_or_beside_it() -> None:
    assert made(url="amqp://ann:p%40ss@a").password == "p@ss"
    beside = made(username="ann", password="secret")
    assert (beside.username, beside.password) == ("ann", "secret")


def test_login_that_the_environment_leaves_empty_is_none() -> None:
    assert made(username="", password="").username == ""


def test_repr_shows_no_credential() -> None:
    bridge = made(url="amqps://ann:hunter2@a", services=["orders"])
    assert "hunter2" not in f"{bridge!r} {bridge.where}"
    assert "ann" not in repr(bridge)


@pytest.mark.parametrize(
    ("direction", "sends", "receives"), [("send", True, False), ("receive", False, True)]
)
def test_direction(direction: str, sends: bool, receives: bool) -> None:
    bridge = made(direction=direction)
    assert (bridge.sends, bridge.receives) == (sends, receives)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "kakfa://a"}, "'url' has the unknown scheme 'kakfa': did you mean kafka://?"),
        ({"url": "localhost:9092"}, "'url' has no scheme"),
        ({"url": 7}, "'url' must be a URL such as"),
        ({"url": "kafka://"}, "'url' must name hosts and ports"),
        ({"url": "kafka://a:x"}, "'url' must name hosts and ports"),
        ({"url": "kafka://a:1,"}, "'url' must name hosts and ports"),
        ({"url": "kafka://a:1/x"}, "'url' has a path"),
        ({"url": "amqp://a?heartbeat=1"}, "'url' holds '?' or '#'"),
        ({"services": "orders"}, "'services' must be a list"),
        ({"services": []}, "'services' must be a list"),
        ({"services": ["a", "a"]}, "'services' lists 'a' twice"),
        ({"direction": "recieve"}, "'direction' is 'recieve': did you mean 'receive'?"),
        ({"sasl": "scram-sha-256"}, "'sasl' is 'scram-sha-256': did you mean"),
        ({"sasl": "PLAIN"}, "'sasl' needs a username and a password"),
        ({"pasword": "x"}, "'pasword' is unknown: did you mean 'password'?"),
        ({"username": "ann"}, "has a username, but no password"),
        ({"password": "x"}, "has a password, but no username"),
        ({"queues": 2}, "'queues' is an option of amqp, but the URL means kafka"),
        ({"url": "amqp://a", "partitions": 2}, "'partitions' is an option of kafka"),
        ({"ca": "/ca.pem"}, "'ca' needs an encrypted connection; begin the URL with kafka+ssl://"),
        ({"url": "amqps://a", "cert": "/c.pem"}, "'cert' and 'key' belong together"),
        ({"concurrency": 0}, "'concurrency' is 0, but must be 1 to 10000"),
        ({"group": "a b"}, "'group' must be at most 128 of"),
    ],
)
def test_flaw_says_what_to_write(options: dict[str, Any], text: str) -> None:
    assert flaw(**options).startswith(text)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "kakfa://ann:hunter2@a"},
        {"url": "ann:hunter2@a"},
        {"url": "ann:hunter2@a://b"},
        {"url": "kafka://ann:hunter2#@a"},
        {"url": "amqp://ann:12/hunter2@a"},
        {"url": "kafka://ann:hunter2@a:x"},
        {"url": "kafka://ann:hunter2@a,ann:hunter2@b"},
        {"url": "kafka://ann:hunter2@a", "password": "hunter2", "username": "ann"},
        {"url": "kafka://a", "password": ["hunter2"]},
    ],
)
def test_flaw_shows_no_credential(options: dict[str, Any]) -> None:
    text = flaw(**options)
    assert text
    assert "hunter2" not in text


def test_bridge_needs_url_services_and_a_plain_name() -> None:
    assert bridge_flaws({"b": {}}) == "'b': lacks 'url' and 'services'"
    assert bridge_flaws({"b": "kafka://a"}) == "'b': must be a dict with 'url' and 'services'"
    assert "name it with at most 64" in bridge_flaws({"a b": {}})
