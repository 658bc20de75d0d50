"""Logins, TLS and rights of KafkaBus; passwords stay secret."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from tests.authority import Authority
from tests.bridges.kafka_server import PASSWORD, STRANGER, USER, KafkaServer
from tests.bridges.kafka_service import Service, Taken, bridge_to, service_on
from tests.bridges.sides import opened, told_without
from tests.support import until
from wsgateway.bridges.bus import Bus
from wsgateway.bridges.config import Bridge, Server
from wsgateway.bridges.kafka import KafkaBus, access
from wsgateway.bridges.kafka.access import Access
from wsgateway.bridges.kafka.cluster import Cluster
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable

SECRETS = (PASSWORD, "a-wrong-one", "the-payload")
LOGIN = {"username": USER, "password": PASSWORD}


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(autouse=True)
def _password_stays_secret() -> Iterator[None]:
    """No test of this file logs a password or a payload, whatever the level."""
    handler = Lines()
    loggers = [logging.getLogger(name) for name in ("aiokafka", "wsgateway")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)
    assert not [line for line in handler.lines if any(secret in line for secret in SECRETS)]


async def carries(bus: Bus, service: Service) -> None:
    """Assert that records go both ways."""
    taken = Taken(bus)
    await bus.produce("orders", "ann", b"the-payload", {})
    await service.produce("orders.ann", b"the-payload")
    await taken.wait(1)
    assert len(await service.read("send.orders", 1)) == 1


@pytest.mark.parametrize(
    ("listener", "sasl"),
    [
        ("SSL", ""),
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_SSL", "SCRAM-SHA-256"),
        ("SASL_SSL", "SCRAM-SHA-512"),
    ],
)
async def test_bridge_logs_in(kafka: KafkaServer, prefix: str, listener: str, sasl: str) -> None:
    options = {"ca": kafka.ca} if listener.endswith("SSL") else {}
    if sasl:
        options |= {**LOGIN, "sasl": sasl}
    else:
        options["cert"], options["key"] = kafka.authority.issue("client")
    bridge = bridge_to(kafka, prefix=prefix, listener=listener, **options)
    async with opened(bridge) as bus, service_on(kafka, prefix) as service:
        await carries(bus, service)


def test_password_is_not_shown_where_it_is_passed_on(kafka: KafkaServer, prefix: str) -> None:
    """aiokafka's functions have it in their variables, which error trackers show."""
    options = Access(bridge_to(kafka, prefix=prefix, **LOGIN)).client_options()
    assert options["sasl_plain_password"] == PASSWORD
    assert PASSWORD not in f"{options} {options['sasl_plain_password']}"


async def told(attempt: Callable[[], Awaitable[object]], error: type[Exception]) -> str:
    """Return what is said of a failure; nothing that is said holds a password."""
    return await told_without(SECRETS, attempt, error)


async def grant(kafka: KafkaServer, kind: str, name: str, right: str) -> None:
    """Let STRANGER do something with a topic or a group."""
    kinds = {"topic": 2, "group": 3}
    rights = {"read": 3, "write": 4, "create": 5, "describe": 8}
    literal, allow = 3, 3
    who = f"User:{STRANGER}", "*"
    wanted = CreateAclsRequest(kinds[kind], name, literal, *who, rights[right], allow)
    async with Access(bridge_to(kafka, prefix="")).connection() as conn:
        answer = await conn.send(wanted)
    assert [code for code, _ in answer.creation_responses] == [0]


@pytest.fixture
async def stranger(kafka: KafkaServer) -> str:
    """STRANGER, without what other tests have granted."""
    any = 1
    every = DeleteAclsRequest(any, None, any, f"User:{STRANGER}", None, any, any)
    async with Access(bridge_to(kafka, prefix="")).connection() as conn:
        answer = await conn.send(every)
    assert [code for code, *_ in answer.filter_responses] == [0]
    return STRANGER


@pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-256"])
async def test_wrong_password_is_told_without_it(
    kafka: KafkaServer, prefix: str, sasl: str
) -> None:
    bridge = bridge_to(
        kafka,
        prefix=prefix,
        listener="SASL_PLAINTEXT",
        username=USER,
        password="a-wrong-one",
        sasl=sasl,
    )
    text = (
        f"Kafka at {kafka.address('SASL_PLAINTEXT')} rejected the login of user 'ann' with {sasl}; "
        "correct 'username', 'password' or 'sasl' of bridge 'warehouse'"
    )
    assert await told(KafkaBus(bridge).set_up, BusMisconfigured) == text
    async with opened(bridge, set_up=False) as bus:
        assert await told(bus.ready, BusMisconfigured) == text
        assert not bus.connected
        assert "a-wrong-one" not in repr(bus) + repr(bridge)


async def test_wrong_password_is_logged_once_for_each_side(
    kafka: KafkaServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What reads records logged it at each of its tries, several times a second."""
    tries, wait_connected = 0, Cluster.wait_connected

    async def counted(cluster: Cluster) -> None:
        nonlocal tries
        tries += 1
        await wait_connected(cluster)

    monkeypatch.setattr(Cluster, "wait_connected", counted)
    login = {"username": USER, "password": "a-wrong-one"}
    bridge = bridge_to(kafka, prefix=prefix, listener="SASL_PLAINTEXT", **login)
    async with opened(bridge, set_up=False) as bus:
        Taken(bus)
        await until(lambda: tries > 3)
    said = [each for each in caplog.messages if "rejected the login" in each]
    assert len(said) == 2
    assert said[1].startswith("bridge warehouse waits to read what services produced: Kafka at ")


def test_what_aiokafka_repeats_does_not_hide_the_lines_of_the_bridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While Kafka was down, there were 36 such lines a minute, without a bridge's name."""
    [discreet] = logging.getLogger("aiokafka.conn").filters
    assert isinstance(discreet, logging.Filter)
    record = logging.makeLogRecord({"msg": "a line of this test", "levelno": logging.ERROR})
    passed = []
    for second in range(121):
        monkeypatch.setattr(f"{access.__name__}.time.monotonic", lambda now=second: now)
        if discreet.filter(record):
            passed.append(second)
    assert passed == [0, 60, 120]


async def test_certificate_of_another_authority_is_refused(
    kafka: KafkaServer, prefix: str, tmp_path: Any
) -> None:
    other = Authority(tmp_path)
    bridge = bridge_to(kafka, prefix=prefix, listener="SSL", ca=str(other.path))
    text = await told(KafkaBus(bridge).set_up, BusMisconfigured)
    assert text.startswith(f"cannot trust the certificate of Kafka at {kafka.address('SSL')}: ")
    assert text.endswith(
        "; set 'ca' of bridge 'warehouse' to the certificate of the authority that signed it"
    )


async def test_certificate_that_is_not_there_is_named(kafka: KafkaServer, prefix: str) -> None:
    bridge = bridge_to(kafka, prefix=prefix, listener="SSL", ca="/nowhere/ca.pem")
    text = await told(KafkaBus(bridge).set_up, BusMisconfigured)
    assert text == (
        "cannot load the certificate files of bridge 'warehouse' (/nowhere/ca.pem): [Errno 2] No "
        "such file or directory; correct 'ca', 'cert' or 'key', or the files"
    )


@pytest.mark.parametrize(
    ("listener", "spoken", "said"),
    [
        (
            "PLAINTEXT",
            {"listener": "SSL"},
            "Kafka at {} closed the connection; bridge 'warehouse' uses TLS, without a login: "
            "check that this port expects the same",
        ),
        (
            "SSL",
            {},
            "Kafka at {} closed the connection; bridge 'warehouse' uses no TLS, without a login: "
            "check that this port expects the same",
        ),
        (
            "SASL_PLAINTEXT",
            {},
            "Kafka at {} closed the connection; bridge 'warehouse' uses no TLS, without a login: "
            "check that this port expects the same",
        ),
        (
            "PLAINTEXT",
            LOGIN,
            "Kafka at {} does not allow logins at this port; change the port in 'url' of bridge "
            "'warehouse', or remove its 'username' and 'password'",
        ),
    ],
)
async def test_wrong_port_is_told(
    kafka: KafkaServer, prefix: str, listener: str, spoken: dict[str, str], said: str
) -> None:
    bridge = bridge_to(kafka, prefix=prefix, **spoken)
    server = bridge.servers[0]._replace(port=kafka.ports[listener])
    bus = KafkaBus(replace(bridge, servers=(server,)))
    assert await told(bus.set_up, BusError) == said.format(kafka.address(listener))


async def test_server_that_does_not_answer_is_told(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "REQUEST_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        server = Server(*deaf.getsockname())
        bridge = Bridge("warehouse", prefix, "kafka", (server,), ("orders",))
        assert await told(KafkaBus(bridge).set_up, BusUnavailable) == (
            f"cannot reach Kafka at {server}: no answer within 0.2 s; check that Kafka is running, "
            "and the servers in 'url' of bridge 'warehouse'"
        )


async def test_connection_is_logged_only_after_an_outage(
    kafka: KafkaServer, prefix: str, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of the log looked like the one that says that the bridge is ready."""
    caplog.set_level(logging.INFO, "wsgateway.bridges")
    bridge = bridge_to(kafka, prefix=prefix)
    async with opened(bridge):
        assert "connected to" not in caplog.text
    away = replace(bridge, servers=(Server("127.0.0.1", free_port),))
    cluster = Cluster(found := Access(away), [])
    looking = asyncio.create_task(cluster.run())
    await until(lambda: "cannot reach" in caplog.text)
    found.bridge = bridge
    await until(lambda: cluster.is_connected)
    assert f"bridge warehouse: reconnected to {bridge.where}" in caplog.messages
    looking.cancel()


async def test_way_to_log_in_that_kafka_does_not_offer_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*args: Any, **options: Any) -> None:
        raise errors.UnsupportedSaslMechanismError("…")

    monkeypatch.setattr(access, "create_conn", refuse)
    servers = (Server("localhost", 9092),)
    bridge = Bridge("warehouse", "ws", "kafka", servers, ("orders",), sasl="SCRAM-SHA-512")
    assert await told(Access(bridge).connection().__aenter__, BusMisconfigured) == (
        "Kafka at localhost:9092 does not allow logins with SCRAM-SHA-512; change 'sasl' of bridge "
        "'warehouse', or the port in its 'url'"
    )


async def test_user_without_rights_is_told_which(
    kafka: KafkaServer, prefix: str, stranger: str
) -> None:
    async with opened(bridge_to(kafka, prefix=prefix)):
        pass
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    bridge = bridge_to(kafka, prefix=prefix, **options)
    cannot_see = "user 'eve' cannot see topic{} in Kafka; grant it Describe on {}, or run "
    run = '"manage.py setup_bridges warehouse" if {} not exist'
    async with opened(bridge, set_up=False) as bus:
        names = ", ".join(f"'{prefix}.{name}'" for name in ("send.orders", "recv", "topic", "dead"))
        assert await told(bus.ready, BusMisconfigured) == (
            cannot_see.format(f"s {names}", "them") + run.format("they do")
        )
        assert await told(
            lambda: bus.produce("orders", "ann", b"", {}), BusMisconfigured
        ) == cannot_see.format(f" '{prefix}.send.orders'", "it") + run.format("it does")
        other = KafkaBus(bridge_to(kafka, prefix=f"{prefix}x", **options))
        text = await told(other.set_up, BusMisconfigured)
        assert text == "; ".join(
            f"user 'eve' may neither see nor create topic '{prefix}x.{name}' in Kafka; grant it "
            "Describe on the topic if it exists, or Create and Describe if it does not"
            for name in ("send.orders", "recv", "topic", "dead")
        )


async def test_topics_that_are_missing_and_hidden_are_told_apart(
    kafka: KafkaServer, prefix: str, stranger: str
) -> None:
    await KafkaBus(bridge_to(kafka, prefix=prefix, sends=False)).set_up()
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    for name in ("send.orders", "recv", "topic"):
        await grant(kafka, "topic", f"{prefix}.{name}", "describe")
    async with opened(bridge_to(kafka, prefix=prefix, **options), set_up=False) as bus:
        assert await told(bus.ready, BusMisconfigured) == (
            f"Kafka has no topic '{prefix}.send.orders'; "
            'run "manage.py setup_bridges warehouse"; '
            f"user 'eve' cannot see topic '{prefix}.dead' in Kafka; grant it Describe on it, or "
            'run "manage.py setup_bridges warehouse" if it does not exist'
        )


async def test_user_who_may_create_topics_but_not_see_them_is_told(
    kafka: KafkaServer, prefix: str, stranger: str
) -> None:
    """`setup_bridges` said after half a minute that Kafka does not answer."""
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    bridge = bridge_to(kafka, prefix=prefix, sends=False, **options)
    for name in ("recv", "topic", "dead"):
        await grant(kafka, "topic", f"{prefix}.{name}", "create")
    assert await told(KafkaBus(bridge).set_up, BusMisconfigured) == "; ".join(
        f"user 'eve' may create topic '{prefix}.{name}' in Kafka, but not see it; grant it "
        "Describe on the topic"
        for name in ("recv", "topic", "dead")
    )


async def test_topic_that_cannot_be_created_keeps_no_other_from_it(
    kafka: KafkaServer, prefix: str, stranger: str
) -> None:
    """`setup_bridges` told of the first one only, as if none had been created."""
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    bridge = bridge_to(kafka, prefix=prefix, sends=False, **options)
    for name in ("recv", "topic", "dead"):
        await grant(kafka, "topic", f"{prefix}.{name}", "describe")
    for name in ("recv", "dead"):
        await grant(kafka, "topic", f"{prefix}.{name}", "create")
    with pytest.raises(BusMisconfigured) as refused:
        await KafkaBus(bridge).set_up()
    assert str(refused.value) == (
        f"user 'eve' may not create topic '{prefix}.topic' in Kafka; grant it Create on the topic, "
        "or on the cluster"
    )
    created, failed, last = refused.value.lines
    assert created.startswith(f"created topic {prefix}.recv: ")
    assert failed == f"failed: {refused.value}"
    assert last.startswith(f"created topic {prefix}.dead: ")


async def test_right_that_is_missing_is_named(
    kafka: KafkaServer, prefix: str, stranger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bridge told to grant the rights that a page lists."""
    await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    for name in ("send.orders", "recv", "topic", "dead"):
        await grant(kafka, "topic", f"{prefix}.{name}", "describe")
    bridge = bridge_to(kafka, prefix=prefix, **options)
    async with opened(bridge, set_up=False) as bus:
        await bus.ready()
        produce = functools.partial(bus.produce, "orders", "ann", b"", {})
        assert await told(produce, BusMisconfigured) == (
            "cannot start sending to Kafka: user 'eve' lacks a right in Kafka; grant it Write on "
            f"topics '{prefix}.send.orders', '{prefix}.dead'; before Kafka 2.8, also "
            "IdempotentWrite on the cluster"
        )
        await grant(kafka, "topic", f"{prefix}.dead", "write")
        assert await told(produce, BusMisconfigured) == (
            f"Kafka did not confirm a record for topic '{prefix}.send.orders': user 'eve' lacks a "
            f"right in Kafka; grant it Write on topic '{prefix}.send.orders'"
        )
        Taken(bus)
        text = f"user 'eve' lacks a right in Kafka; grant it Read on group '{bridge.group}'"
        await until(lambda: text in caplog.text)


async def test_connection_is_shown_as_an_address() -> None:
    conn = AIOKafkaConnection("localhost", 9092)
    error = errors.IllegalSaslStateError(conn)
    assert access.said(error) == "[Error 34] IllegalSaslStateError: localhost:9092"


async def test_topic_that_may_not_be_read_holds_up_no_other(
    kafka: KafkaServer,
    prefix: str,
    stranger: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bridge left its group and joined it again, for as long as the right was missing."""
    monkeypatch.setattr("wsgateway.bridges.kafka.consumer.PARTITION_PAUSE", 0.5)
    caplog.set_level(logging.INFO, "wsgateway.bridges")
    options = {"listener": "SASL_PLAINTEXT", "username": stranger, "password": PASSWORD}
    bridge = bridge_to(kafka, prefix=prefix, sends=False, **options)
    await KafkaBus(bridge_to(kafka, prefix=prefix, sends=False)).set_up()
    for name, right in (("recv", "describe"), ("topic", "read"), ("dead", "describe")):
        await grant(kafka, "topic", f"{prefix}.{name}", right)
    await grant(kafka, "group", bridge.group, "read")
    async with opened(bridge, set_up=False) as bus, service_on(kafka, prefix) as service:
        await bus.ready()
        for n in range(12):
            await service.produce(f"orders.user{n}", b"%d" % n)  # to all three partitions
        taken = Taken(bus)
        text = f"user 'eve' may not read topic '{prefix}.recv' in Kafka. Grant it Read."
        await until(lambda: caplog.text.count(text) > 1)
        for n in range(12, 24):
            await service.produce(f"orders.room{n}", b"%d" % n, to="topic")
        await taken.wait(12)
        await grant(kafka, "topic", f"{prefix}.recv", "read")
        await taken.wait(24)
        assert sorted(map(int, taken.payloads)) == list(range(24))
        assert caplog.text.count("of its group's partitions") == 1


async def test_server_that_is_not_there_is_told(
    kafka: KafkaServer, prefix: str, free_port: int
) -> None:
    bridge = bridge_to(kafka, prefix=prefix)
    bus = KafkaBus(replace(bridge, servers=(bridge.servers[0]._replace(port=free_port),)))
    text = await told(bus.set_up, BusUnavailable)
    assert text.startswith(f"cannot reach Kafka at 127.0.0.1:{free_port}: ")
    assert text.endswith(
        "; check that Kafka is running, and the servers in 'url' of bridge 'warehouse'"
    )
