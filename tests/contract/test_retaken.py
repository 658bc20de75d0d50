"""A message that is delivered again while a worker has it: one worker handles it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.workers import no_services, offer, serving
from tests.support import until
from wsgateway import Message
from wsgateway.broker.base import Broker
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.memory.work import MemoryWorkQueue
from wsgateway.broker.nats.work_queue import NatsWorkQueue
from wsgateway.broker.work import Job
from wsgateway.services import registry

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")

COUNT = 20


async def test_user_is_left_to_the_worker_that_has_the_messages_now(
    broker: Broker, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both handled all of the user's messages, side by side.

    A server forgets that messages wait their turn when the leader that was told so dies.
    """
    settings.WSGATEWAY_ACK_WAIT = 3.0
    handled: list[int] = []
    at_once = most = 0
    go_on = asyncio.Event()

    @registry.service("orders", concurrency=4)
    async def handle(message: Message) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        handled.append(int(message.text))
        await asyncio.sleep(0.01)
        at_once -= 1

    queue = MemoryWorkQueue if isinstance(broker, MemoryBroker) else NatsWorkQueue
    hold, holders = queue.hold, []

    def hold_unless_first(self: Any, job: Job) -> None:
        holders.append(self)
        if self is not holders[0]:
            hold(self, job)

    monkeypatch.setattr(queue, "hold", hold_unless_first)
    async with serving(broker) as first:
        for number in range(COUNT):
            await offer(broker, f"{number}")
        await until(lambda: first.in_hand == COUNT)
        async with serving(broker) as second:
            await until(lambda: second.in_hand > 3, 30)
            go_on.set()
            await until(lambda: len(handled) >= COUNT, 30)
            await until(lambda: first.in_hand + second.in_hand == 0, 30)
    assert handled == list(range(COUNT))
    assert most == 1
