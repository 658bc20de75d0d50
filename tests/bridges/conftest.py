"""Fixtures: the brokers that bridges lead to. One of each runs for all tests of a process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.bridges import kafka_server, rabbitmq
from tests.bridges.kafka_server import KafkaServer
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import AmqpSide, KafkaSide, Side


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A broker of Kafka. A test that stops or kills it starts it again before it ends."""
    reason = kafka_server.why_not()
    if reason:
        pytest.skip(f"no Kafka: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="wsgateway-kafka-") as folder,
        kafka_server.kafka_cluster(Path(folder)) as servers,
    ):
        yield servers[0]


@pytest.fixture
def kafka_brokers() -> Iterator[list[KafkaServer]]:
    """Three brokers of Kafka for this test alone."""
    reason = kafka_server.why_not()
    if reason:
        pytest.skip(f"no Kafka: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="wsgateway-kafka-") as folder,
        kafka_server.kafka_cluster(Path(folder), 3) as servers,
    ):
        yield servers


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ. A test that stops or kills it starts it again before it ends."""
    reason = rabbitmq.why_not()
    if reason:
        pytest.skip(f"no RabbitMQ: {reason}")
    with tempfile.TemporaryDirectory(prefix="wsgateway-rabbitmq-") as folder:
        server = RabbitServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.close()


@pytest.fixture(params=["kafka", "amqp"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    """The services' end of a bus, below a prefix of the test's own."""
    server = request.getfixturevalue("kafka" if request.param == "kafka" else "rabbit")
    await asyncio.to_thread(server.start)  # whatever the test before did
    made: Side = KafkaSide(server) if request.param == "kafka" else AmqpSide(server)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def _running_bus(request: pytest.FixtureRequest) -> None:
    """Let a test begin with a bus that runs, whatever the test before did."""
    for name in ("kafka", "rabbit"):
        if name in request.fixturenames:
            request.getfixturevalue(name).start()
