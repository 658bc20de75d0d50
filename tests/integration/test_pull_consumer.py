"""The pull consumer that services' queues and normal channels share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.workers import no_services, offer
from tests.support import until
from wsgateway.broker.nats import channels, pull_consumer, work_queue
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")


class Taking:
    """Takes messages of a service or a channel, each as text, and stores them there."""

    def __init__(self, broker: NatsBroker, kind: str) -> None:
        self._broker = broker
        self._kind = kind
        self._room = 10
        self.texts: list[str] = []

    @property
    def consumer(self) -> str:
        """Its stream and its name."""
        subjects = self._broker.subjects
        if self._kind == "service":
            return f"{subjects.queue('orders')}.{subjects.consumer('orders')}"
        return f"{subjects.stream('chan')}.work"

    async def store(self, text: str) -> None:
        if self._kind == "service":
            await offer(self._broker, text)
        else:
            await self._broker.channels.ensure(100)
            await self._broker.channels.put("work", text.encode(), 60.0, 100)

    async def __aenter__(self) -> Taking:
        self._taking: Any
        if self._kind == "service":
            self._taking = self._broker.work_queue(
                "orders", lambda job: self._on_message(job.payload), lambda _: None, 30.0
            )
            self._taking.open(self._room)
        else:
            self._taking = self._broker.channels.take(
                "work", 100, lambda: self._room, lambda data, _: self._on_message(data)
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._taking.close()

    def _on_message(self, data: bytes) -> None:
        self._room -= 1
        self.texts.append(data.decode())

    async def came(self, *texts: str) -> None:
        await until(lambda: len(self.texts) >= len(texts), 20, f"{texts} came")
        assert self.texts == list(texts)


@pytest.fixture(params=["service", "channel"])
def taking(request: pytest.FixtureRequest, broker: NatsBroker) -> Taking:
    return Taking(broker, request.param)


class Requests:
    """The requests for messages of one connection.

    Attributes:
        count: How many there were.
        created: How often the consumer was made, or found.
        lost: How many are to be lost on their way, as when the consumer's leader dies.
    """

    def __init__(self, broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.created = 0
        self.lost = 0
        self._publish = broker.connection.publish
        monkeypatch.setattr(broker.connection, "publish", self._watch)

    def _watch(self, subject: str, payload: bytes, *args: Any, **kwargs: Any) -> None:
        self.created += ".CONSUMER.CREATE." in subject
        if ".MSG.NEXT." in subject:
            self.count += 1
            if self.count <= self.lost:
                return
        self._publish(subject, payload, *args, **kwargs)


@pytest.fixture
def requests(broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> Requests:
    monkeypatch.setattr(work_queue, "PULL_EXPIRES", 0.3)
    monkeypatch.setattr(channels, "PULL_EXPIRES", 0.3)
    monkeypatch.setattr(pull_consumer, "GRACE", 0.2)
    return Requests(broker, monkeypatch)


async def test_request_that_the_server_forgets_is_made_again(
    taking: Taking, requests: Requests
) -> None:
    requests.lost = 2
    await taking.store("one")
    async with taking:
        await taking.came("one")
    assert requests.count > 2


async def test_request_that_expires_is_made_again(taking: Taking, requests: Requests) -> None:
    async with taking:
        await taking.store("one")
        await taking.came("one")
        before = requests.count
        await until(lambda: requests.count > before + 2, 20, "two requests expired")
        await taking.store("two")
        await taking.came("one", "two")
        assert requests.created == 1


async def test_consumer_that_is_deleted_is_made_again(taking: Taking, broker: NatsBroker) -> None:
    async with taking:
        await taking.store("one")
        await taking.came("one")
        await broker.jetstream.api(f"CONSUMER.DELETE.{taking.consumer}")
        await taking.store("two")
        await until(lambda: "two" in taking.texts, 20, "the next one")


async def test_backlog_does_not_cost_a_request_for_each_message(
    broker: NatsBroker, requests: Requests
) -> None:
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    queue = broker.work_queue("orders", jobs.put_nowait, lambda _: None, 30.0)
    for number in range(200):
        await offer(broker, f"{number}")
    queue.open(80)
    try:
        async with asyncio.timeout(20):
            for _ in range(200):
                await queue.ack_now(await jobs.get())
                queue.add_room(1)
    finally:
        await queue.close()
    assert requests.count < 50
