"""Rights to topics that end while a gateway has lost NATS: no subscription outlives its right."""

from __future__ import annotations

from typing import Any

import pytest

import wsgateway
from tests.acceptance.proxy import proxy_to
from tests.support import until
from wsgateway import declared, topics
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Topic
from wsgateway.topics.rights import Rights

ANN, BOB = Identity("chat", "ann"), Identity("chat", "bob")
ROOM = Topic("room", "42")


class Subscription:
    is_reading = True

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.topic = ROOM
        self.changes: list[str | None] = []

    def change_access(self, access: str | None) -> None:
        self.changes.append(access)


async def test_gateway_that_was_reconnecting_ends_what_was_revoked(
    broker: NatsBroker,
    nats_settings: Any,
    nats_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    members = {"ann", "bob"}

    @wsgateway.topic("room")
    async def allow(identity: Identity, name: str) -> str | None:
        return "read" if identity.user in members else None

    async with proxy_to(nats_server.port) as proxy:
        nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{proxy.port}"
        away = broker_from_settings(wsgateway_settings)
        nats_settings.NATS_BROKER_URL = nats_server.url
        runtime.reset()
        await away.open()
        rights = Rights(away)
        ann, bob = Subscription(ANN), Subscription(BOB)
        token = topics.token("room", "42", user="ann")
        assert await rights.acquire(ann, token) == "read"
        assert await rights.acquire(bob) == "read"

        proxy.deaf = True
        await proxy.cut()
        members.clear()
        await topics.arevoke("room", "42", user="ann")
        await topics.arecheck("room", "42")
        assert ann.changes == bob.changes == []

        proxy.deaf = False
        await until(lambda: ann.changes == bob.changes == [None], 20, what="it heard of both")
        assert await rights.access(ANN, ROOM, token) is None
        rights.close()
        await away.close()
