"""The same suite runs on every broker; here is what differs between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.backup import back_up, restore
from tests.faults.traffic import stored
from wsgateway.broker import memory
from wsgateway.broker.base import Broker
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Inbox, Topic


class Brokers(ABC):
    """Makes brokers that share a store, as processes do. Set limits before the first one.

    Args:
        settings: pytest-django's; change them to change what the streams allow.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self._made: list[Broker] = []

    @abstractmethod
    def make(self) -> Broker:
        """Return a broker that is not open."""

    @abstractmethod
    async def sent(self, broker: Any, inbox: Inbox) -> list[bytes]:
        """Return what waits for the service, in order."""

    @abstractmethod
    async def publish_raw(
        self, broker: Any, topic: Topic, payload: bytes, headers: dict[str, str]
    ) -> None:
        """Store a message in a topic as any program may that speaks to the broker."""

    @abstractmethod
    async def renew(self, broker: Any, service: str | None = None) -> None:
        """Delete a stream and make it again: that of a service's topics; None: the inboxes'."""

    @abstractmethod
    async def back_up(self, broker: Any) -> Any:
        """Return a copy of the inbox stream, for `restore`."""

    @abstractmethod
    async def restore(self, broker: Any, backup: Any) -> None:
        """Put the inbox stream back as it was; what was stored since is gone."""

    @abstractmethod
    async def keep(self, broker: Any, count: int) -> None:
        """Let the inbox stream keep *count* messages per inbox, whatever the settings say."""

    @abstractmethod
    def waiting(self, broker: Any) -> int:
        """Return how many answers *broker* still waits for."""

    def new(self) -> Broker:
        """Return a broker that is not open, and is closed at the end."""
        broker = self.make()
        self._made.append(broker)
        return broker

    async def open(self) -> Broker:
        """Return a broker that is ready."""
        broker = self.new()
        await broker.open()
        await broker.wait_ready()
        return broker

    async def close(self) -> None:
        for broker in self._made:
            await broker.close()


class MemoryBrokers(Brokers):
    def make(self) -> Broker:
        return MemoryBroker.from_settings(wsgateway_settings)

    async def sent(self, broker: Any, inbox: Inbox) -> list[bytes]:
        return [
            waiting.payload
            for waiting in broker.store.queues[inbox.service]
            if waiting.inbox == inbox
        ]

    async def publish_raw(
        self, broker: Any, topic: Topic, payload: bytes, headers: dict[str, str]
    ) -> None:
        broker.store.keep(topic, payload, headers=headers)

    async def renew(self, broker: Any, service: str | None = None) -> None:
        store = broker.store
        (store.topics[service] if service else store.inboxes).start_over()

    async def back_up(self, broker: Any) -> Any:
        return broker.store.inboxes.received.last

    async def restore(self, broker: Any, backup: Any) -> None:
        broker.store.inboxes.lose_tail(backup)

    async def keep(self, broker: Any, count: int) -> None:
        broker.store.inboxes.max_messages = count

    def waiting(self, broker: Any) -> int:
        return 0


class NatsBrokers(Brokers):
    def make(self) -> Broker:
        return broker_from_settings(wsgateway_settings)

    async def sent(self, broker: Any, inbox: Inbox) -> list[bytes]:
        return await stored(broker, "send", inbox)

    async def publish_raw(
        self, broker: Any, topic: Topic, payload: bytes, headers: dict[str, str]
    ) -> None:
        await broker.jetstream.publish(broker.subjects.topic(topic), payload, headers)

    async def renew(self, broker: Any, service: str | None = None) -> None:
        assert isinstance(broker, NatsBroker)
        subjects = broker.subjects
        name = subjects.topic_stream(service) if service else subjects.stream("recv")
        await broker.jetstream.api(f"STREAM.DELETE.{name}")
        await broker.set_up()

    async def back_up(self, broker: Any) -> Any:
        return await back_up(broker, broker.subjects.stream("recv"))

    async def restore(self, broker: Any, backup: Any) -> None:
        await restore(broker, broker.subjects.stream("recv"), backup)

    async def keep(self, broker: Any, count: int) -> None:
        stream = broker.subjects.stream("recv")
        info = await broker.jetstream.api(f"STREAM.INFO.{stream}")
        config = {**info["config"], "max_msgs_per_subject": count}
        await broker.jetstream.api(f"STREAM.UPDATE.{stream}", config)

    def waiting(self, broker: Any) -> int:
        return int(broker.connection.requests_waiting)


@pytest.fixture(params=["memory", "nats"])
async def brokers(
    request: pytest.FixtureRequest,
    settings: Any,
    nats_server: EmbeddedServer,
    prefix: str,
) -> AsyncIterator[Brokers]:
    """A factory of brokers that share one store."""
    settings.PUBSUB_BROKER = request.param
    settings.NATS_BROKER_URL = nats_server.url
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_STORAGE = "memory"
    memory.reset_shared_store()
    made = MemoryBrokers(settings) if request.param == "memory" else NatsBrokers(settings)
    yield made
    await made.close()


@pytest.fixture
async def broker(brokers: Brokers) -> Broker:
    """A broker that is ready."""
    return await brokers.open()


@pytest.fixture
async def other(brokers: Brokers, broker: Broker) -> Broker:
    """Another one on the same store, as in another process."""
    return await brokers.open()
