"""The handler of a service with a webhook: what it makes of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.workers import answers, no_services, offer
from tests.receiver import SECRET, Receiver, Request, answer, receiving
from tests.support import until
from wsgateway.broker.memory import MemoryBroker, reset_shared_store
from wsgateway.broker.work import Job
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerUnavailable, QueueFull
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.message import Message
from wsgateway.services.registry import Service, get_service
from wsgateway.services.webhooks import WebhookFailed, WebhookHandler
from wsgateway.services.worker import Worker
from wsgateway.webhooks.config import webhook_of

__all__ = ["no_services"]  # a fixture

ANN = Inbox("orders", "ann")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def broker(settings: Any) -> AsyncIterator[MemoryBroker]:
    settings.PUBSUB_BROKER = "memory"
    reset_shared_store()
    broker = MemoryBroker.from_settings(wsgateway_settings)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
async def handler(receiver: Receiver) -> AsyncIterator[WebhookHandler]:
    options = {"url": receiver.url, "secret": SECRET, "allow_private": ["127.0.0.0/8"]}
    handler = WebhookHandler(webhook_of(options).endpoint)
    yield handler
    await handler.close()


def message(broker: MemoryBroker, number: int = 1) -> Message:
    return Message(Job(ANN, b"tea", {}, sequence=number, id=f"s.{number}.0"), broker)


async def test_endpoint_may_ask_to_wait_for_an_hour_at_most(
    broker: MemoryBroker, receiver: Receiver, handler: WebhookHandler
) -> None:
    """A day, as it once could: a proxy's mistake held up a user's messages for as long."""
    receiver.answers = lambda request: answer(503, Retry_After="86400")
    with pytest.raises(WebhookFailed) as caught:
        await handler(message(broker))
    assert caught.value.after == 3600.0


async def test_reply_that_cannot_be_stored_is_stored_later_and_not_asked_for_again(
    broker: MemoryBroker,
    receiver: Receiver,
    handler: WebhookHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message was posted again each second, uncounted, and handled each time."""
    publish, fails = MemoryBroker.publish, [QueueFull("x"), BrokerUnavailable("x"), QueueFull("x")]

    async def fail(self: MemoryBroker, *args: Any, **options: Any) -> Any:
        if fails:
            raise fails.pop()
        return await publish(self, *args, **options)

    monkeypatch.setattr(MemoryBroker, "publish", fail)
    receiver.answers = lambda request: answer(200, {"n": len(receiver.requests)})
    worker = Worker(Service("orders", handler, {}, 16), broker)
    worker.start()
    await offer(broker, "tea")
    await offer(broker, "milk")
    await until(lambda: worker.counts["done"] == 2)
    await worker.stop(5.0)
    assert fails == []
    assert worker.counts == {"done": 2}
    assert [each.payload for each in await answers(broker)] == [b'{"n": 1}', b'{"n": 2}']
    assert [request.text for request in receiver.requests] == ["tea", "milk"]


@pytest.mark.usefixtures("no_services")
async def test_slow_endpoint_is_not_taken_for_a_handler_that_hangs(
    broker: MemoryBroker, receiver: Receiver, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With a time-out above ACK_WAIT, the log said to give the service a time-out."""
    settings.WSGATEWAY_ACK_WAIT = 0.2
    settings.WSGATEWAY_SERVICES = None
    options = {"url": receiver.url, "secret": SECRET, "allow_private": ["127.0.0.0/8"]}
    settings.WSGATEWAY_WEBHOOKS = {"orders": options}

    async def reply(request: Request) -> bytes:
        await asyncio.sleep(0.5)
        return answer()

    receiver.answers = reply
    worker = Worker(get_service("orders"), broker)
    worker.start()
    await offer(broker, "tea")
    await until(lambda: worker.counts["done"])
    await worker.stop(5.0)
    assert "has been running" not in caplog.text
