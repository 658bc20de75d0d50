"""The receiving side of a bridge: order, what it does not try again, what it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.bridges.fake_bus import FakeBus
from wsgateway.bridges import outage
from wsgateway.bridges.config import Bridge, Server
from wsgateway.bridges.receiving import Receiving
from wsgateway.broker.messages import Receipt
from wsgateway.counters import BridgeCounters
from wsgateway.exceptions import (
    BrokerUnavailable,
    BusMisconfigured,
    MessageTooBig,
    QueueFull,
    ServiceUnknown,
    TopicsUnknown,
)
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import Address, Inbox, Topic

BRIDGE = Bridge("b", "ws", "kafka", (Server("localhost", 9092),), ("orders", "room"))


class Store:
    """A broker of which a bridge needs one method; holds each publish until it is let go."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.ids: list[str | None] = []  # of `begun`
        self.stored: list[tuple[Address, bytes, dict[str, Any]]] = []
        self.errors: dict[bytes, BaseException] = {}
        self.held: set[bytes] = set()
        self.changed = asyncio.Condition()

    async def publish(self, address: Address, payload: bytes, **options: Any) -> Receipt:
        self.begun.append(payload)
        self.ids.append(options["msg_id"])
        async with self.changed:
            self.changed.notify_all()
            await self.changed.wait_for(lambda: payload not in self.held)
        if payload in self.errors:
            raise self.errors[payload]
        self.stored.append((address, payload, options))
        return Receipt(len(self.stored), False)

    async def let_go(self, payload: bytes) -> None:
        async with self.changed:
            self.held.discard(payload)
            self.changed.notify_all()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.stored]


class Rig:
    def __init__(self) -> None:
        self.bus, self.store, self.counted = FakeBus(), Store(), BridgeCounters()
        broker: Any = self.store
        self.receiving = Receiving(BRIDGE, self.bus, broker, self.counted)
        self.receiving.start()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        for payload in list(made.store.held):
            await made.store.let_go(payload)
        await made.receiving.stop(5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSES", Backoff(0.001, 1.0, 0.001, jitter=0))


async def test_records_of_a_key_are_published_one_after_the_other() -> None:
    async with rig() as it:
        it.store.held.add(b"1")
        for payload in "123":
            it.bus.hand_out(payload)
        await it.until(lambda: it.store.begun)
        assert (it.store.begun, it.bus.acked, it.counted.receiving) == ([b"1"], [], 3)
        await it.store.let_go(b"1")
        await it.until(lambda: len(it.bus.acked) == 3)
        assert it.store.payloads == [b"1", b"2", b"3"]
        assert it.bus.acked == ["1", "2", "3"]
        assert (it.counted.received, it.counted.receiving) == (3, 0)


async def test_keys_do_not_wait_for_each_other() -> None:
    async with rig() as it:
        it.store.errors[b"1"] = QueueFull("full")
        it.bus.hand_out("1", "orders.ann")
        it.bus.hand_out("2", "orders.ann")
        it.bus.hand_out("3", "orders.bob")
        await it.until(lambda: it.bus.acked == ["3"] and it.counted.receive_failures > 3)
        assert it.receiving.trouble == "full"
        del it.store.errors[b"1"]
        await it.until(lambda: it.bus.acked == ["3", "1", "2"])
        assert it.receiving.trouble == ""
        assert it.bus.aside == []


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), QueueFull("full")])
async def test_record_is_tried_again_in_place_with_the_same_id(error: Exception) -> None:
    async with rig() as it:
        it.store.errors[b"1"] = error
        it.bus.hand_out("1")
        await it.until(lambda: it.store.begun.count(b"1") >= 3)
        del it.store.errors[b"1"]
        await it.until(lambda: it.bus.acked == ["1"])
        assert it.store.stored[0][2]["msg_id"] == "ws.recv.0.0"


async def test_record_without_an_id_is_tried_again_with_one() -> None:
    """The first try may be stored although nobody says so: another id stored it twice."""
    async with rig() as it:
        it.store.errors[b"1"] = BrokerUnavailable("no answer")
        it.bus.hand_out("1", has_id=False)
        it.bus.hand_out("2", has_id=False)
        await it.until(lambda: it.store.begun.count(b"1") >= 3)
        del it.store.errors[b"1"]
        await it.until(lambda: it.bus.acked == ["1", "2"])
        *tries, other = it.store.ids
        assert all(tries)
        assert len(set(tries)) == 1
        assert other not in tries


@pytest.mark.parametrize(
    ("key", "headers", "reason"),
    [
        ("orders", {}, "is not <service>.<user>"),
        ("", {}, "key '' is not <service>.<user>"),
        ("bills.ann", {}, "names the service 'bills', which this bridge does not list"),
        ("orders.ann", {"Ws-Frame": "pong"}, "is neither text nor binary"),
        ("orders.ann", {"Nats-TTL": "never"}, "header Nats-TTL is 'never'; write seconds"),
    ],
)
async def test_record_that_nobody_can_deliver_is_set_aside(
    key: str, headers: Mapping[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig() as it:
        it.bus.hand_out("bad", key, headers=headers)
        it.bus.hand_out("good")
        await it.until(lambda: set(it.bus.acked) == {"bad", "good"})
        [(payload, why)] = it.bus.aside
        assert payload == "bad"
        assert reason in why
        assert it.counted.set_aside == 1
        assert reason in caplog.text


async def test_record_that_does_not_fit_is_counted_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig() as it:
        it.bus.hand_out("whole", "orders")
        await it.until(lambda: it.bus.acked == ["whole"])
        assert it.counted.cut == 0
        it.bus.unfit = "its payload did not fit"
        it.bus.hand_out("large", "orders")
        await it.until(lambda: it.bus.acked == ["whole", "large"])
        assert (it.counted.set_aside, it.counted.cut) == (2, 1)
    [said] = [each for each in caplog.records if "did not fit" in each.getMessage()]
    assert said.levelname == "ERROR"
    assert "(large)" in said.getMessage()  # its place


async def test_record_that_the_bus_found_wanting_is_set_aside() -> None:
    async with rig() as it:
        it.bus.hand_out("deleted", flaw="it has no value")
        await it.until(lambda: it.bus.acked == ["deleted"])
        assert it.bus.aside == [("deleted", "it has no value")]


@pytest.mark.parametrize("error", [MessageTooBig(2, 1), ServiceUnknown("orders"), KeyError("bug")])
async def test_record_that_the_broker_never_takes_is_set_aside(error: Exception) -> None:
    async with rig() as it:
        it.store.errors[b"1"] = error
        it.bus.hand_out("1")
        it.bus.hand_out("2")
        await it.until(lambda: it.bus.acked == ["1", "2"])
        assert [payload for payload, _ in it.bus.aside] == ["1"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            TopicsUnknown("orders", is_other=True),
            "service 'orders' has users, not topics; produce to 'ws.recv' instead",
        ),
        (
            ServiceUnknown("room", is_other=True),
            "service 'room' has topics, not users; produce to 'ws.topic' instead",
        ),
    ],
)
async def test_record_in_the_wrong_place_says_the_right_one(error: Exception, reason: str) -> None:
    """It named a function in Python, which a service on a bus cannot call."""
    async with rig() as it:
        it.store.errors[b"1"] = error
        it.bus.hand_out("1")
        await it.until(lambda: it.bus.acked == ["1"])
        assert it.bus.aside == [("1", reason)]


async def test_record_is_acknowledged_only_once_it_is_set_aside() -> None:
    async with rig() as it:
        it.bus.error = BusMisconfigured("no topic ws.dead")
        it.bus.hand_out("bad", "orders")
        await it.until(lambda: it.bus.tries >= 3)
        assert it.bus.acked == []
        assert it.counted.receive_failures >= 2
        assert it.receiving.trouble == "no topic ws.dead"
        it.bus.error = None
        await it.until(lambda: it.bus.acked == ["bad"])
        assert it.receiving.trouble == ""


@pytest.mark.parametrize("error", [TypeError("bug"), asyncio.CancelledError()])
async def test_error_that_nobody_expects_strands_no_record(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the key's task, and what was behind it was never acknowledged."""
    async with rig() as it:
        it.bus.error = error
        it.bus.hand_out("bad", "orders")
        it.bus.hand_out("worse", "orders")
        await it.until(lambda: it.bus.tries >= 3)
        it.bus.error = None
        await it.until(lambda: it.bus.acked == ["bad", "worse"])
        assert len(it.bus.aside) == 2
    said = [each for each in caplog.records if "waits to set a record aside" in each.message]
    assert len(said) == 1
    assert (said[0].exc_info is not None) == isinstance(error, TypeError)


async def test_publish_that_is_cancelled_by_nobody_is_tried_again() -> None:
    async with rig() as it:
        it.store.errors[b"1"] = asyncio.CancelledError()
        it.bus.hand_out("1")
        it.bus.hand_out("2")
        await it.until(lambda: it.store.begun.count(b"1") >= 3)
        del it.store.errors[b"1"]
        await it.until(lambda: it.bus.acked == ["1", "2"])
        assert it.bus.aside == []


async def test_acknowledgement_that_fails_strands_no_record() -> None:
    async with rig() as it:
        it.bus.ack_error = TypeError("bug")
        it.bus.hand_out("1")
        it.bus.hand_out("2")
        await it.until(lambda: it.counted.receiving == 0)
        assert it.store.payloads == [b"1", b"2"]


async def test_bridge_takes_no_more_records_than_the_docs_say() -> None:
    async with rig() as it:
        assert (it.bus.room, it.bus.room_bytes) == (512, 64 * 1024 * 1024)


async def test_stop_cancels_what_takes_too_long() -> None:
    async with rig() as it:
        it.store.held.add(b"1")
        it.bus.hand_out("1")
        await it.until(lambda: it.store.begun)
        await it.receiving.stop(0.01)
        assert (it.counted.receiving, it.bus.acked) == (0, [])


async def test_headers_say_how_it_is_published() -> None:
    headers = {
        "Ws-Frame": "binary",
        "nats-msg-id": "mine",
        "Nats-TTL": "5m",
        "Ws-Reply-To": "q1",
        "traceparent": "00-…",
        "Ws-Sender": "orders.ann",
        "Ws-Id": "copied from the request",
    }
    async with rig() as it:
        it.bus.hand_out("1", headers=headers)
        await it.until(lambda: it.bus.acked)
        [(address, _, options)] = it.store.stored
        assert address == Inbox("orders", "ann")
        assert options == {
            "kind": "binary",
            "msg_id": "mine",
            "ttl": 300.0,
            "headers": {"Ws-Reply-To": "q1", "traceparent": "00-…"},
            "reserved": True,
        }


@pytest.mark.parametrize(
    ("headers", "is_reserved"), [({"ws-reply-to": "q1"}, True), ({"Ws-Frame": "text"}, False)]
)
async def test_answer_may_use_the_room_that_is_kept_for_replies(
    headers: Mapping[str, str], is_reserved: bool
) -> None:
    """A nearly full store took the answers of handlers, but none of a service behind a bridge."""
    async with rig() as it:
        it.bus.hand_out("1", headers=headers)
        await it.until(lambda: it.bus.acked)
        assert it.store.stored[0][2]["reserved"] is is_reserved


async def test_topic_and_inbox_of_the_same_name_are_two_addresses() -> None:
    async with rig() as it:
        it.store.held.add(b"1")
        it.bus.hand_out("1", "room.42", target="inbox")
        it.bus.hand_out("2", "room.42", target="topic")
        await it.until(lambda: it.bus.acked == ["2"])
        assert it.store.stored[0][0] == Topic("room", "42")


async def test_lost_lane_is_forgotten_but_what_is_in_flight_ends() -> None:
    async with rig() as it:
        it.store.held.add(b"1")
        it.bus.hand_out("1", lane="0")
        it.bus.hand_out("2", lane="0")
        it.bus.hand_out("3", lane="1")
        await it.until(lambda: it.store.begun == [b"1"])
        it.bus.on_lost("0")
        assert it.counted.receiving == 2
        await it.store.let_go(b"1")
        await it.until(lambda: "3" in it.bus.acked)
        assert it.store.payloads == [b"1", b"3"]


async def test_lost_record_is_not_tried_again() -> None:
    """Another bridge has published it by then, and those behind it: it would come after them."""
    async with rig() as it:
        it.store.errors[b"1"] = BrokerUnavailable("away")
        it.store.held.add(b"1")
        it.bus.hand_out("1", lane="0")
        await it.until(lambda: it.store.begun)
        it.bus.on_lost("0")
        await it.store.let_go(b"1")
        await it.until(lambda: it.counted.receiving == 0)
        assert (it.store.begun, it.bus.acked) == ([b"1"], [])


async def test_stop_finishes_what_is_in_flight_and_leaves_the_rest() -> None:
    async with rig() as it:
        it.store.held.add(b"1")
        it.bus.hand_out("1")
        it.bus.hand_out("2")
        await it.until(lambda: it.store.begun)
        stopping = asyncio.create_task(it.receiving.stop(5))
        await asyncio.sleep(0)
        it.bus.hand_out("3", "orders.bob")
        await it.store.let_go(b"1")
        await stopping
        assert (it.store.begun, it.bus.acked) == ([b"1"], ["1"])


async def test_stop_does_not_wait_for_a_broker_that_is_away() -> None:
    async with rig() as it:
        it.store.errors[b"1"] = BrokerUnavailable("away")
        it.bus.hand_out("1")
        await it.until(lambda: it.store.begun.count(b"1") >= 2)
        async with asyncio.timeout(2):
            await it.receiving.stop(30)
        assert it.bus.acked == []
        assert it.counted.receiving == 0
