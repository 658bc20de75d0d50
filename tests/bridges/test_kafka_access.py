"""Logins, TLS and rights of KafkaBus; passwords stay secret."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.authority import Authority
from tests.bridges.kafka_server import PASSWORD, STRANGER, USER, KafkaServer
from tests.bridges.kafka_service import Service, Taken, bridge_to, service_on
from tests.bridges.sides import opened, told_without
from tests.support import until
from wsgateway.bridges.bus import Bus
from wsgateway.bridges.kafka import KafkaBus, access
from wsgateway.bridges.kafka.access import Access
from wsgateway.bridges.kafka.consumer import Consumer
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
        f"Kafka at {kafka.address('SASL_PLAINTEXT')} refuses the login of 'ann' with {sasl}; check "
        "the username and the password of bridge 'warehouse'"
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
    tries, topics = 0, Consumer._topics

    async def counted(consumer: Consumer) -> Any:
        nonlocal tries
        tries += 1
        return await topics(consumer)

    monkeypatch.setattr(Consumer, "_topics", counted)
    login = {"username": USER, "password": "a-wrong-one"}
    bridge = bridge_to(kafka, prefix=prefix, listener="SASL_PLAINTEXT", **login)
    async with opened(bridge, set_up=False) as bus:
        Taken(bus)
        await until(lambda: tries > 3)
    said = [each for each in caplog.messages if "refuses the login" in each]
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
    assert "has a certificate that cannot be trusted" in text
    assert "'ca' of bridge 'warehouse'" in text


async def test_certificate_that_is_not_there_is_named(kafka: KafkaServer, prefix: str) -> None:
    bridge = bridge_to(kafka, prefix=prefix, listener="SSL", ca="/nowhere/ca.pem")
    text = await told(KafkaBus(bridge).set_up, BusMisconfigured)
    assert text.startswith("cannot read the certificates of bridge 'warehouse' (/nowhere/ca.pem)")


@pytest.mark.parametrize(
    ("listener", "spoken", "said"),
    [
        ("PLAINTEXT", {"listener": "SSL"}, "check the port"),
        ("SSL", {}, "whether it wants a login or TLS"),
        ("SASL_PLAINTEXT", {}, "whether it wants a login or TLS"),
        ("PLAINTEXT", LOGIN, "does not take a login with PLAIN"),
    ],
)
async def test_wrong_port_is_told(
    kafka: KafkaServer, prefix: str, listener: str, spoken: dict[str, str], said: str
) -> None:
    bridge = bridge_to(kafka, prefix=prefix, **spoken)
    server = bridge.servers[0]._replace(port=kafka.ports[listener])
    bus = KafkaBus(replace(bridge, servers=(server,)))
    assert said in await told(bus.set_up, BusError)


async def test_user_without_rights_is_told_which(kafka: KafkaServer, prefix: str) -> None:
    async with opened(bridge_to(kafka, prefix=prefix)):
        pass
    options = {"listener": "SASL_PLAINTEXT", "username": STRANGER, "password": PASSWORD}
    bridge = bridge_to(kafka, prefix=prefix, **options)
    async with opened(bridge, set_up=False) as bus:
        assert "does not let the bridge's user see the topic" in await told(
            bus.ready, BusMisconfigured
        )
        assert "see the topic" in await told(
            lambda: bus.produce("orders", "ann", b"", {}), BusMisconfigured
        )
        other = KafkaBus(bridge_to(kafka, prefix=f"{prefix}x", **options))
        assert "does not create the topic" in await told(other.set_up, BusMisconfigured)


async def test_server_that_is_not_there_is_told(
    kafka: KafkaServer, prefix: str, free_port: int
) -> None:
    bridge = bridge_to(kafka, prefix=prefix)
    bus = KafkaBus(replace(bridge, servers=(bridge.servers[0]._replace(port=free_port),)))
    text = await told(bus.set_up, BusUnavailable)
    assert text.startswith(f"cannot reach Kafka at 127.0.0.1:{free_port}: ")
