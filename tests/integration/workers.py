"""What the tests of services share: a worker in the test's loop, and clients' messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from wsgateway import declared
from wsgateway.broker.base import Broker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.worker import Worker


@pytest.fixture
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what other tests and the project have registered."""
    declared.discover()  # or the first test that does would put the project's here, for good
    monkeypatch.setattr(declared, "registered", {})


@asynccontextmanager
async def serving(broker: Broker, name: str = "orders") -> AsyncIterator[Worker]:
    worker = Worker(declared.registered[name], broker)
    worker.start()
    await worker.ready()
    try:
        yield worker
    finally:
        await worker.stop(5.0)


async def offer(broker: Broker, text: str | bytes, user: str = "ann", **headers: str) -> None:
    """Do what a gateway does with a client's frame."""
    inbox = Inbox("orders", user)
    msg_id = f"{user}-{text[:50]!r}"
    await broker.offer(
        inbox, Frame.of(text), msg_id, {k.replace("_", "-"): v for k, v in headers.items()}
    )


async def answers(broker: Broker, user: str = "ann") -> list[Any]:
    return (await broker.inboxes.read_after(Inbox("orders", user), 0, limit=100)).messages
