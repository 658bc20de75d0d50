"""The server API on every kind of broker, below ASGI, where it uses the loop's own connection."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient

from tests.contract.conftest import Brokers
from tests.contract.topic_sessions.client import Client
from tests.integration.backends import ROOT, Caller
from tests.support import until
from wsgateway import declared, topic
from wsgateway.broker import runtime
from wsgateway.gateway.hub import get_hub
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import Resume, Unsubscribed

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.api_site.urls")]

ROOM = Topic("room", "42")


@pytest.fixture
def rooms(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.reset()
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(lambda identity, name: "read")


async def test_backend_reaches_a_reader_and_ends_its_right(rooms: None) -> None:
    caller = await sync_to_async(Caller)()
    http = AsyncClient()

    async def post(operation: str, body: Any, **headers: str) -> Any:
        response = await http.post(
            f"{ROOT}{operation}",
            body,
            content_type="application/json",
            headers={**caller.headers, **headers},
        )
        return response.json() if response.content else response.status_code

    async def get(operation: str, **query: Any) -> Any:
        return (await http.get(f"{ROOT}{operation}", query, headers=caller.headers)).json()

    hub = get_hub()
    await hub.open()
    await hub.broker.wait_ready(20)
    await hub.broker.set_up()
    ann = Client(hub)
    await ann.session.start(Resume())
    try:
        await hub.presence.listed()
        await ann.subscribe(ROOM)
        message = {"service": "room", "topic": "42", "text": "hello", "msg_id": "m1"}
        first = await post("publish", message)
        assert await post("publish", message) == {**first, "duplicate": True}
        batch = {"messages": [{**message, "text": f"{n}", "msg_id": f"b{n}"} for n in range(20)]}
        sent = await post("publish-many", batch)
        assert sent["failed"] == 0
        again = await post("publish-many", batch)
        assert again["results"] == [{**each, "duplicate": True} for each in sent["results"]]
        await ann.has("hello", *map(str, range(20)), topic=ROOM)

        page = await get("history/topic", service="room", topic="42", limit=2)
        assert [each["text"] for each in page["messages"]] == ["18", "19"]
        note = {"service": "service1", "user": "ann", "base64": "/w=="}
        receipt = await post("publish", note)
        page = await get("history/user", service="service1", user="ann")
        assert [(each["offset"], each["base64"]) for each in page["messages"]] == [
            (receipt["offset"], "/w==")
        ]
        assert (await get("online", service="service1"))["users"] == {"ann": 1}
        readers = await get("readers", service="room", topic="42")
        assert readers["readers"] == [{"service": "service1", "user": "ann", "sockets": 1}]
        services = {each["service"]: each for each in (await get("stats"))["services"]}
        assert services["service1"]["sockets"] == 1

        assert await post("revoke", {"service": "room", "topic": "42"}) == 204
        await until(lambda: ann.told(Unsubscribed, ROOM), what="the right has ended")
        closed = await post("disconnect", {"service": "service1", "user": "ann"})
        assert closed == {"sockets": 1, "silent": []}
    finally:
        await ann.session.stop()
        await hub.close()
