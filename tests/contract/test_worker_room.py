"""Users who wait behind a message that is tried again do not keep other users out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.workers import no_services, offer, serving
from tests.support import until
from wsgateway import Message, Retry
from wsgateway.broker.base import Broker
from wsgateway.exceptions import QueueFull
from wsgateway.services import RetryPolicy, registry
from wsgateway.services import worker as worker_module

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services")


class Handled:
    """A service that handles one user at a time; some messages are tried again until it is open."""

    def __init__(self, pause: float) -> None:
        self.texts: list[str] = []
        self.tries: dict[str, int] = {}
        self.open = False

        @registry.service("orders", concurrency=1, retry=RetryPolicy(attempts=1000))
        async def handle(message: Message) -> None:
            self.tries[message.text] = message.attempt
            if message.text.startswith("again") and not self.open:
                raise Retry(after=pause)
            self.texts.append(message.text)


async def test_users_behind_a_message_that_is_tried_again_keep_nobody_out(broker: Broker) -> None:
    """Each counted as in hand, so eight of them were all that a worker could hold."""
    handled = Handled(pause=3600.0)
    async with serving(broker) as worker:
        users = [f"user-{number}" for number in range(worker_module.IN_HAND + 2)]
        for user in users:
            await offer(broker, f"again {user}", user=user)
        await until(lambda: worker.counts["retried"] == len(users))
        for user in users:
            await offer(broker, f"behind {user}", user=user)
        await offer(broker, "free", user="free")
        await until(lambda: handled.texts == ["free"])


async def test_backlog_too_large_to_keep_goes_back_to_the_queue(
    broker: Broker, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user's messages, behind the one that was tried again, took all the room there was.

    Empty messages counted for nothing, so any number of them was kept.
    """
    settings.WSGATEWAY_ACK_WAIT = 0.4
    monkeypatch.setattr(worker_module, "MAX_WAITING", 3 * worker_module.OVERHEAD)
    monkeypatch.setattr(worker_module, "PATIENCE", 0.1)
    handled = Handled(pause=1.0)
    async with serving(broker) as worker:
        await offer(broker, "again")
        await until(lambda: worker.counts["retried"])
        for number in range(20):
            await offer(broker, f"{number}")
        await offer(broker, "free", user="free")
        await until(lambda: handled.texts)
        assert handled.texts == ["free"]
        assert worker.in_hand < 20
        handled.open = True
        await until(lambda: len(handled.texts) == 22)
    assert handled.texts[1:] == ["again", *(str(number) for number in range(20))]
    assert [text for text, tries in handled.tries.items() if tries > 1] == ["again"]


async def test_users_whose_dead_letters_cannot_be_stored_keep_nobody_out(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stream of dead letters full, eight of them were all that a worker could hold."""
    texts: list[str] = []
    add, is_full = type(broker.dead_letters).add, True

    async def fail(self: Any, *args: Any, **options: Any) -> None:
        if is_full:
            raise QueueFull("the stream is full")
        await add(self, *args, **options)

    monkeypatch.setattr(type(broker.dead_letters), "add", fail)

    @registry.service("orders", concurrency=1, retry=RetryPolicy(attempts=1))
    async def handle(message: Message) -> None:
        if message.text == "bad":
            raise ValueError
        texts.append(message.text)

    async with serving(broker) as worker:
        for number in range(worker_module.IN_HAND + 2):
            await offer(broker, "bad", user=f"user-{number}")
        await offer(broker, "good", user="free")
        await until(lambda: texts)
        is_full = False
        await until(lambda: worker.counts["dead-lettered"] == worker_module.IN_HAND + 2)
        await until(lambda: worker.in_hand == 0)
