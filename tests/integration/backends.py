"""What tests of the server API share: a backend that calls it, and what it stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from wsgateway import declared, topic
from wsgateway.api import keys
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.models import ApiKey
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.testing.isolation import empty_store

__all__ = [
    "ANN",
    "HELLO",
    "JSON",
    "ROOM",
    "ROOT",
    "Caller",
    "api_memory",
    "caller",
    "problem",
    "stored",
]

ROOT = "/api/gateway/v1/"
ANN, ROOM = Inbox("orders", "ann"), Topic("room", "42")
JSON = "application/json"
HELLO = {"service": "orders", "user": "ann", "text": "hello"}


@pytest.fixture
def api_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty broker, with a service of users and two of topics."""
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(lambda identity, name: "read")
    topic("pointer", durable=False)(lambda identity, name: "read")
    empty_store()
    yield
    empty_store()


class Caller:
    """A backend with a key."""

    def __init__(self, *actions: str, services: tuple[str, ...] = ("*",), rate: float = 0) -> None:
        name = f"backend {ApiKey.objects.count()}"
        self.row, self.key = keys.create(name, services, actions or keys.ACTIONS, rate)
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.client = Client()

    def post(self, operation: str, body: Any, **headers: str) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            f"{ROOT}{operation}", data, content_type=JSON, headers={**self.headers, **given}
        )

    def get(self, operation: str, **query: Any) -> Any:
        return self.client.get(f"{ROOT}{operation}", query, headers=self.headers)


@pytest.fixture
def caller(db: None, api_memory: None) -> Caller:
    """A backend that may do everything."""
    return Caller()


def stored(address: Address = ANN) -> list[str | bytes]:
    """Return what an inbox or a topic holds."""

    async def read(broker: Broker) -> list[str | bytes]:
        batch = await broker.log(address).read_after(address, 0, limit=100)
        return [message.frame.data for message in batch.messages]

    return runtime.call_sync(read)


def problem(response: Any, status: int, kind: str) -> dict[str, Any]:
    """Return the problem document that a response has to be."""
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    document: dict[str, Any] = json.loads(response.content)
    assert document["type"] == f"urn:problem-type:wsgateway:{kind}"
    assert document["status"] == status
    return document
