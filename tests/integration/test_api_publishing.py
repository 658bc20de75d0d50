"""Publishing by HTTP: what is stored, what a replay returns, what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.integration.backends import (
    HELLO,
    ROOM,
    Caller,
    api_memory,
    caller,
    problem,
    stored,
)
from wsgateway import send
from wsgateway.api import admission
from wsgateway.broker import runtime
from wsgateway.broker.memory import MemoryBroker
from wsgateway.exceptions import BrokerForbidden, BrokerUnavailable, QueueFull
from wsgateway.protocol.subjects import Inbox, Topic

__all__ = ["api_memory", "caller"]  # fixtures

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.api_site.urls"),
    pytest.mark.usefixtures("api_memory"),
]


def without_none(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


class TestPublish:
    @pytest.mark.parametrize(
        ("payload", "data"),
        [
            ({"text": "a\r\nb ☃"}, "a\r\nb ☃"),
            ({"text": ""}, ""),
            ({"json": {"n": [1, 2.5, None]}}, '{"n":[1,2.5,null]}'),
            ({"json": None}, "null"),
            ({"json": "text"}, '"text"'),
            ({"base64": base64.b64encode(b"\xff\x00").decode()}, b"\xff\x00"),
            ({"base64": ""}, b""),
        ],
    )
    def test_stores_text_json_and_bytes(
        self, caller: Caller, payload: dict[str, Any], data: object
    ) -> None:
        response = caller.post("publish", {"service": "orders", "user": "ann", **payload})
        assert response.json() == {"offset": 1, "duplicate": False}
        assert stored() == [data]

    @pytest.mark.parametrize("name", ["42", "a/b", "..", "ann@example.com", "ünï", "a b\n", "*"])
    def test_any_name_will_do(self, caller: Caller, name: str) -> None:
        for target, address in (
            ({"service": "orders", "user": name}, Inbox("orders", name)),
            ({"service": "room", "topic": name}, Topic("room", name)),
        ):
            assert caller.post("publish", {**target, "text": "x"}).status_code == 200
            assert stored(address) == ["x"]

    def test_ephemeral_topic_has_no_offset(self, caller: Caller) -> None:
        body = {"service": "pointer", "topic": "1", "text": "x"}
        assert caller.post("publish", body).json() == {"offset": 0, "duplicate": False}

    def test_replay_returns_the_first_receipt_and_says_so(self, caller: Caller) -> None:
        body = {**HELLO, "msg_id": "m1"}
        assert caller.post("publish", body).json() == {"offset": 1, "duplicate": False}
        again = {"offset": 1, "duplicate": True}
        assert caller.post("publish", body).json() == again
        assert caller.post("publish", HELLO, Idempotency_Key="m1").json() == again
        assert caller.post("publish", HELLO, Idempotency_Key='"m1"').json() == again
        assert caller.post("publish", body, Idempotency_Key="m1").json() == again
        assert stored() == ["hello"]

    @pytest.mark.parametrize(
        "other", [{"text": "other"}, {"base64": "aGVsbG8="}, {"json": "hello"}, {"text": ""}]
    )
    def test_id_of_another_message_is_refused(self, caller: Caller, other: dict[str, Any]) -> None:
        """A backend that counted its ids wrong was told that its messages were stored."""
        caller.post("publish", {**HELLO, "msg_id": "m1"})
        body = {"service": "orders", "user": "ann", **other}
        for refused in (
            caller.post("publish", {**body, "msg_id": "m1"}),
            caller.post("publish", body, Idempotency_Key="m1"),
        ):
            assert "stored at offset 1" in problem(refused, 422, "id-reused")["detail"]
        assert stored() == ["hello"]

    def test_same_json_written_in_another_order_is_the_same_message(self, caller: Caller) -> None:
        body = {"service": "orders", "user": "ann", "msg_id": "m1"}
        caller.post("publish", {**body, "json": {"a": 1, "b": [True, 2]}})
        again = caller.post("publish", {**body, "json": {"b": [True, 2], "a": 1}})
        assert again.json() == {"offset": 1, "duplicate": True}
        other = caller.post("publish", {**body, "json": {"b": [1, 2], "a": 1}})
        problem(other, 422, "id-reused")

    def test_replay_of_a_message_that_is_gone_counts_as_the_same(self, caller: Caller) -> None:
        caller.post("publish", {**HELLO, "msg_id": "m1"})
        assert runtime.call_sync(lambda broker: broker.operations.delete(Inbox("orders", "ann"), 1))
        response = caller.post("publish", {**HELLO, "text": "other", "msg_id": "m1"})
        assert response.json() == {"offset": 1, "duplicate": True}

    def test_nobody_is_called_anonymous(self, caller: Caller) -> None:
        """The message was stored for 7 days, where nobody ever reads."""
        refused = problem(caller.post("publish", {**HELLO, "user": "(anonymous)"}), 422, "invalid")
        assert "publish to a topic" in refused["detail"]
        topic = {"service": "room", "topic": "(anonymous)", "text": "x"}
        assert caller.post("publish", topic).status_code == 200

    def test_id_belongs_to_a_key_and_a_target(self, caller: Caller) -> None:
        """Two backends that count from 1 must not suppress each other's messages."""
        send("orders", "ann", text="django's", msg_id="m1")
        body = {**HELLO, "msg_id": "m1"}
        for sender in (caller, Caller()):
            for target in ({"user": "ann"}, {"user": "bob"}):
                assert not sender.post("publish", {**body, **target}).json()["duplicate"]
            topics_own = {"service": "room", "topic": "ann", "text": "hello", "msg_id": "m1"}
            assert not sender.post("publish", topics_own).json()["duplicate"]
        assert stored() == ["django's", "hello", "hello"]

    def test_two_ids_that_differ_are_refused(self, caller: Caller) -> None:
        body = {**HELLO, "msg_id": "m1"}
        refused = problem(caller.post("publish", body, Idempotency_Key="m2"), 422, "invalid")
        assert "differ" in refused["detail"]
        assert stored() == []

    @pytest.mark.parametrize(
        ("change", "pointer", "text"),
        [
            ({"text": None}, "#", "exactly one of text, json or base64 (got none)"),
            ({"json": 0}, "#", "exactly one of text, json or base64 (got text and json)"),
            ({"topic": "42"}, "#", "exactly one of user or topic (got user and topic)"),
            ({"user": None}, "#", "exactly one of user or topic (got none)"),
            ({"user": ""}, "#/user", "at least 1 character"),
            ({"user": 7}, "#/user", "valid string"),
            ({"user": "x" * 256}, "#/user", "at most 255 characters"),
            ({"service": ["orders"]}, "#/service", "valid string"),
            ({"text": {"a": 1}}, "#/text", "valid string"),
            ({"text": None, "base64": "%%%"}, "#/base64", "match pattern"),
            ({"ttl": "60"}, "#/ttl", "valid number"),
            ({"ttl": True}, "#/ttl", "valid number"),
            ({"ttl": 0.5}, "#/ttl", "greater than or equal to 1"),
            ({"ttl": 1e300}, "#/ttl", "less than or equal to"),
            ({"msg_id": "a b"}, "#/msg_id", "match pattern"),
            ({"msg_id": "a\r\nNats-Rollup: all"}, "#/msg_id", "match pattern"),
            ({"txet": "hello"}, "#/txet", "not permitted"),
        ],
    )
    def test_wrong_value_is_named(
        self, caller: Caller, change: dict[str, Any], pointer: str, text: str
    ) -> None:
        body = without_none({**HELLO, **change})
        document = problem(caller.post("publish", body), 422, "invalid")
        [value] = document["errors"]
        assert value["pointer"] == pointer
        assert text in value["detail"]
        assert value["detail"] in document["detail"]
        assert stored() == []

    def test_name_of_too_many_bytes_is_refused(self, caller: Caller) -> None:
        document = problem(caller.post("publish", {**HELLO, "user": "ü" * 200}), 422, "invalid")
        assert "400 bytes exceeds 255 bytes" in document["detail"]

    @pytest.mark.parametrize(
        ("target", "text"),
        [
            ({"service": "order"}, "service 'order' does not exist; did you mean 'orders'?"),
            ({"service": "room"}, "service 'room' has topics, not users"),
            ({"service": "orders", "topic": "1", "user": None}, "has users, not topics"),
        ],
    )
    def test_service_that_does_not_exist(
        self, caller: Caller, target: dict[str, Any], text: str
    ) -> None:
        response = caller.post("publish", without_none({**HELLO, **target}))
        assert text in problem(response, 404, "service-unknown")["detail"]

    def test_message_that_is_too_large(self, caller: Caller, settings: Any) -> None:
        settings.WSGATEWAY_MAX_MESSAGE_SIZE = 4
        document = problem(caller.post("publish", HELLO), 413, "too-large")
        text = "message of 5 bytes exceeds WSGATEWAY_MAX_MESSAGE_SIZE (4 bytes)"
        assert document["detail"] == text

    @pytest.mark.parametrize(
        ("error", "status", "kind", "after"),
        [
            (BrokerUnavailable("no answer"), 503, "broker-unavailable", "1"),
            (QueueFull("the stream is full"), 429, "queue-full", "5"),
            (BrokerForbidden("Permissions Violation"), 500, "misconfigured", None),
        ],
    )
    def test_broker_that_fails_is_a_problem(
        self,
        caller: Caller,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        status: int,
        kind: str,
        after: str | None,
    ) -> None:
        async def fail(*arguments: Any, **options: Any) -> None:
            raise error

        monkeypatch.setattr(MemoryBroker, "publish", fail)
        response = caller.post("publish", HELLO)
        assert problem(response, status, kind)["detail"] == str(error)
        assert response.headers.get("Retry-After") == after


class TestPublishMany:
    def test_each_message_has_a_receipt_or_a_problem(self, caller: Caller) -> None:
        some = Caller("publish", services=("orders", "room", "nowhere"))
        messages: list[Any] = [
            {**HELLO, "text": "first"},
            {**HELLO, "service": "nowhere"},
            {**HELLO, "service": "service1"},
            {"service": "room", "topic": "42", "json": [1]},
            {**HELLO, "ttl": "soon"},
            "nothing",
            {**HELLO, "text": "last", "msg_id": "m1"},
            {**HELLO, "text": "last", "msg_id": "m1"},
        ]
        answer = some.post("publish-many", {"messages": messages}).json()
        results = [
            result["problem"]["type"].rpartition(":")[2]
            if "problem" in result
            else result["duplicate"]
            for result in answer["results"]
        ]
        assert results == [
            False,
            "service-unknown",
            "forbidden",
            False,
            "invalid",
            "invalid",
            False,
            True,
        ]
        assert answer["failed"] == 4
        assert answer["results"][4]["problem"]["errors"][0]["pointer"] == "#/ttl"
        assert "errors" not in answer["results"][1]["problem"]
        assert "problem" not in answer["results"][0]
        assert stored() == ["first", "last"]
        assert stored(ROOM) == ["[1]"]

    def test_batch_that_is_sent_again_is_stored_once(self, caller: Caller) -> None:
        """Its messages have no ids of their own; equal ones are not taken for one."""
        body = {"messages": [HELLO, HELLO, {**HELLO, "user": "bob"}]}
        for duplicate in (False, True):
            answer = caller.post("publish-many", body, Idempotency_Key="batch-1").json()
            assert [each["duplicate"] for each in answer["results"]] == [duplicate] * 3
        assert stored() == ["hello", "hello"]

    def test_id_of_another_message_is_refused(self, caller: Caller) -> None:
        first, other = {**HELLO, "msg_id": "m1"}, {**HELLO, "msg_id": "m1", "text": "other"}
        answer = caller.post("publish-many", {"messages": [first, other, first]}).json()
        assert answer["failed"] == 1
        assert answer["results"][1]["problem"]["type"].endswith(":id-reused")
        assert answer["results"][2] == {"offset": 1, "duplicate": True}
        assert stored() == ["hello"]

    def test_rest_of_a_batch_is_not_taken_for_its_beginning(self, caller: Caller) -> None:
        """Each message's place was its id, so the rest counted as stored and was lost."""
        first, second = HELLO, {**HELLO, "text": "again"}
        batch = {"messages": [first, {**second, "ttl": -1}]}
        answer = caller.post("publish-many", batch, Idempotency_Key="batch-1").json()
        assert answer["failed"] == 1
        rest = {"messages": [second]}
        for duplicate in (False, True):
            answer = caller.post("publish-many", rest, Idempotency_Key="batch-1").json()
            assert [each["duplicate"] for each in answer["results"]] == [duplicate]
        assert stored() == ["hello", "again"]

    def test_broker_that_is_away_is_a_problem_of_the_request(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*arguments: Any, **options: Any) -> None:
            raise BrokerUnavailable("no answer")

        monkeypatch.setattr(runtime, "call", fail)
        response = caller.post("publish-many", {"messages": [HELLO]})
        problem(response, 503, "broker-unavailable")

    def test_broker_that_goes_away_in_between(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is stored by then has its receipt, so only the rest is sent again."""
        monkeypatch.setattr("wsgateway.publish.CHUNK", 2)
        call, calls = runtime.call, []

        async def fail_later(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > 1:
                raise BrokerUnavailable("no answer")
            return await call(*arguments)

        monkeypatch.setattr(runtime, "call", fail_later)
        answer = caller.post("publish-many", {"messages": [HELLO] * 5}).json()
        assert [each.get("offset") for each in answer["results"]] == [1, 2, None, None, None]
        kinds = {each["problem"]["status"] for each in answer["results"][2:]}
        assert kinds == {503}

    def test_size_of_a_batch_is_limited(self, caller: Caller) -> None:
        for messages in ([], [HELLO] * 1001):
            problem(caller.post("publish-many", {"messages": messages}), 422, "invalid")

    def test_each_message_counts_for_the_rate(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch may exceed what is left, and the next request waits for it."""
        monkeypatch.setattr(admission, "rates", admission.Rates(lambda: 100.0))
        slow = Caller(rate=1)
        assert slow.post("publish-many", {"messages": [HELLO] * 30}).json()["failed"] == 0
        response = slow.post("publish", HELLO)
        problem(response, 429, "too-many-requests")
        assert response.headers["Retry-After"] == "21"
