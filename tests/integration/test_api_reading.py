"""Questions to the server API: history, presence, numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.backends import (
    ANN,
    ROOM,
    Caller,
    api_memory,
    caller,
    problem,
)
from wsgateway import send
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.protocol.frames import Frame

__all__ = ["api_memory", "caller"]  # fixtures

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.api_site.urls"),
    pytest.mark.usefixtures("api_memory"),
]


class TestHistory:
    def test_inbox_page_by_page(self, caller: Caller) -> None:
        for number in range(5):
            send("orders", "ann", text=f"{number}")
        send("orders", "ann", bytes=b"\xff")
        newest = caller.get("history/user", service="orders", user="ann", limit=2).json()
        assert newest["messages"][-1].keys() == {"offset", "time", "base64"}
        assert [each.get("text", each.get("base64")) for each in newest["messages"]] == [
            "4",
            "/w==",
        ]
        assert (newest["more"], newest["first"], newest["last"]) == (True, 5, 6)
        assert newest["position"]["offset"] == 6
        older = caller.get(
            "history/user", service="orders", user="ann", limit=9, before=newest["first"]
        ).json()
        assert [each["text"] for each in older["messages"]] == ["0", "1", "2", "3"]
        assert older["more"] is False
        newer = caller.get("history/user", service="orders", user="ann", after=5).json()
        assert [each["offset"] for each in newer["messages"]] == [6]
        empty = caller.get("history/user", service="orders", user="bob").json()
        assert (empty["messages"], empty["first"], empty["last"]) == ([], None, None)

    def test_topic_tells_who_sent_a_message(self, caller: Caller) -> None:
        async def say(broker: Broker) -> None:
            await broker.offer_topic(ROOM, ANN, Frame.of("hi"), "1", direct=True)

        runtime.call_sync(say)
        answer = caller.get("history/topic", service="room", topic="42").json()
        [message] = answer["messages"]
        assert (message["text"], message["sender"]) == ("hi", {"service": "orders", "user": "ann"})

    @pytest.mark.parametrize(
        ("query", "status", "kind", "text"),
        [
            ({"after": 1, "before": 2}, 422, "invalid", "but not both"),
            ({"limit": 0}, 422, "invalid", "limit: Input should be greater than or equal to 1"),
            ({"limit": 1001}, 422, "invalid", "less than or equal to 1000"),
            ({"after": "x"}, 422, "invalid", "after: Input should be a valid integer"),
            ({"after": -1}, 422, "invalid", "after"),
            ({"before": 2**63}, 422, "invalid", "before"),
            ({"service": "nowhere"}, 404, "service-unknown", "does not exist"),
            ({"service": "room"}, 404, "service-unknown", "has topics, not users"),
            ({"user": "ü" * 200}, 422, "invalid", "400 bytes"),
            ({"limt": 5}, 422, "invalid", "limt: unknown parameter"),
            ({"request": 5}, 422, "invalid", "request: unknown parameter"),
            ({"limit": [5, 6]}, 422, "invalid", "limit: given twice"),
        ],
    )
    def test_wrong_questions(
        self, caller: Caller, query: dict[str, Any], status: int, kind: str, text: str
    ) -> None:
        response = caller.get("history/user", **{"service": "orders", "user": "ann", **query})
        assert text in problem(response, status, kind)["detail"]

    def test_ephemeral_topic_has_none(self, caller: Caller) -> None:
        response = caller.get("history/topic", service="pointer", topic="1")
        assert "ephemeral" in problem(response, 422, "invalid")["detail"]


def test_stats_are_of_the_keys_services(caller: Caller) -> None:
    one = Caller("stats", services=("orders",))
    assert [each["service"] for each in one.get("stats").json()["services"]] == ["orders"]
    everything = caller.get("stats").json()
    assert {"orders", "service1"} <= {each["service"] for each in everything["services"]}
    assert everything["silent"] == []
    problem(Caller("publish").get("stats"), 403, "forbidden")
