"""A gateway with topics, on every kind of broker, and a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import wsgateway
from tests.contract.topic_sessions.client import Client
from wsgateway import Message, declared
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.gateway.hub import Hub
from wsgateway.identity import Identity
from wsgateway.protocol.v1 import Resume


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, brokers: Any) -> dict[tuple[str, str], str | None]:
    """Declares rooms, which everybody may write but the secret ones; returns exceptions."""
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    exceptions: dict[tuple[str, str], str | None] = {}

    @wsgateway.topic("room", queue=True)
    async def allow(identity: Identity, name: str) -> str | None:
        default = None if name.startswith("secret") else "write"
        return exceptions.get((identity.user, name), default)

    wsgateway.topic("cursor", durable=False, direct=True)(allow)
    wsgateway.topic("board", direct=True)(allow)
    wsgateway.topic("news")(allow)

    @wsgateway.topic("hall")
    class Hall:
        def allow(self, identity: Identity, name: str) -> str:
            return "write"

        async def handle(self, message: Message) -> None:
            await message.publish(text=f"{message.user_name}: {message.text}")
            await message.reply(text="published")

    return exceptions


@pytest.fixture
async def hub(rules: Any, brokers: Any) -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), brokers.make()))
    await hub.open()
    await hub.broker.wait_ready(20)
    await hub.broker.set_up()
    yield hub
    await hub.close()


@pytest.fixture
async def ann(hub: Hub) -> AsyncIterator[Client]:
    client = Client(hub)
    await client.session.start(Resume())
    yield client
    await client.session.stop()
