"""What `Broker.offer` promises, and which services exist, on every implementation."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, offsets, text
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import REPLY_TO_HEADER
from wsgateway.exceptions import (
    BrokerUnavailable,
    QueueFull,
    ServiceUnknown,
)
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox


class TestOffer:
    async def test_offers_go_out_in_the_order_of_the_calls(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        futures = [broker.offer(ANN, text(f"{n}"), f"id {n}") for n in range(500)]
        receipts = await asyncio.gather(*futures)
        assert [r.offset for r in receipts] == sorted({r.offset for r in receipts})
        assert await brokers.sent(broker, ANN) == [b"%d" % n for n in range(500)]

    async def test_same_id_is_stored_once(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        first = await broker.offer(ANN, text("first"), "a")
        assert await other.offer(ANN, text("second"), "a") == (first.offset, True)
        assert await brokers.sent(broker, ANN) == [b"first"]

    async def test_ids_of_both_ways_are_apart(self, brokers: Brokers, broker: Broker) -> None:
        await broker.publish(ANN, b"down", msg_id="a")
        assert not (await broker.offer(ANN, text("up"), "a")).duplicate
        assert await brokers.sent(broker, ANN) == [b"up"]

    async def test_full_queue_refuses(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_SEND_MAX_MESSAGES = 2
        broker = await brokers.open()
        for number in range(2):
            await broker.offer(ANN, text(f"{number}"), f"{number}")
        with pytest.raises(QueueFull):
            await broker.offer(ANN, text("2"), "2")
        assert await brokers.sent(broker, ANN) == [b"0", b"1"]
        # A repetition of what is stored adds nothing, so it is not refused.
        assert (await broker.offer(ANN, text("0"), "0")).duplicate

    async def test_cancelled_future_harms_no_other(self, brokers: Brokers, broker: Broker) -> None:
        futures = [broker.offer(ANN, text(f"{n}"), f"{n}") for n in range(5)]
        futures[1].cancel()
        futures[3].cancel()
        for number in (0, 2, 4):
            assert (await futures[number]).offset > 0
        await until(lambda: brokers.waiting(broker) == 0, what="nothing waits")

    async def test_not_open_yet(self, brokers: Brokers) -> None:
        with pytest.raises(BrokerUnavailable):
            brokers.new().offer(ANN, text("x"), "x")

    async def test_full_queue_of_one_service_leaves_the_others_alone(
        self, brokers: Brokers
    ) -> None:
        """One user who sent to a service that nobody ran filled the queue of all services."""
        brokers.settings.WSGATEWAY_SEND_MAX_MESSAGES = 2
        broker = await brokers.open()
        for number in range(2):
            await broker.offer(ANN, text(f"{number}"), f"{number}")
        with pytest.raises(QueueFull):
            await broker.offer(BOB, text("x"), "x")
        other = Inbox("service1", "ann")
        await broker.offer(other, text("y"), "y")
        assert await brokers.sent(broker, other) == [b"y"]

    async def test_full_queue_of_one_user_leaves_the_others_alone(self, brokers: Brokers) -> None:
        """One user's backlog refused everybody's messages to the same service."""
        brokers.settings.WSGATEWAY_SEND_MAX_MESSAGES_PER_USER = 2
        broker = await brokers.open()
        for number in range(2):
            await broker.offer(ANN, text(f"{number}"), f"{number}")
        with pytest.raises(QueueFull):
            await broker.offer(ANN, text("2"), "2")
        await broker.offer(BOB, text("x"), "x")
        assert await brokers.sent(broker, ANN) == [b"0", b"1"]
        assert await brokers.sent(broker, BOB) == [b"x"]


class TestServices:
    async def test_declared_ones_exist_and_others_do_not(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_SERVICES = ["orders", "Orders", "a.b", "a b", "ä"]
        broker = await brokers.open()
        for service in brokers.settings.WSGATEWAY_SERVICES:
            assert broker.known_service(service) is True
            assert await broker.service_exists(service)
            inbox = Inbox(service, "ann")
            await broker.offer(inbox, text(service), f"id {len(service)}")
            assert await brokers.sent(broker, inbox) == [service.encode()]
        for service in ("order", "ORDERS", "a", "*", "x" * 255, "a_b"):
            assert not await broker.service_exists(service)
            assert broker.known_service(service) is False

    async def test_publishing_to_one_that_does_not_exist_is_refused(self, broker: Broker) -> None:
        """It was stored, and nobody could ever read it."""
        with pytest.raises(ServiceUnknown, match="WSGATEWAY_SERVICES") as error:
            await broker.publish(Inbox("ordres", "ann"), b"x")
        assert error.value.service == "ordres"
        assert "did you mean 'orders'?" in str(error.value)
        assert 'restart, or run "manage.py setup_streams"' in str(error.value)
        assert (await broker.inboxes.position()).last == 0

    async def test_any_exists_where_the_setting_says_so(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_SERVICES = ["*"]
        broker = await brokers.open()
        assert broker.known_service("whatever") is True
        inbox = Inbox("whatever", "ann")
        await broker.offer(inbox, text("x"), "x")
        assert await brokers.sent(broker, inbox) == [b"x"]

    async def test_without_the_setting_what_is_registered_exists(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_SERVICES = None
        broker = await brokers.open()
        assert await broker.service_exists("demo")
        assert not await broker.service_exists("orders")

    async def test_longest_names_that_need_most_escapes(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_SERVICES = ["*"]  # a stream of its own could not have this name
        broker = await brokers.open()
        longest = "*" * 255
        inbox = Inbox(longest, longest)
        receipt = await broker.publish(inbox, b"x", headers={REPLY_TO_HEADER: "x" * 255})
        assert await offsets(broker, inbox) == [receipt.offset]
        await broker.save_cursor(inbox, longest, receipt.offset)
        assert await broker.load_cursor(inbox, longest) == receipt.offset
        assert (await broker.offer(inbox, text("x"), "x" * 1000)).offset > 0

    async def test_inboxes_of_durable_groups_always_exist(self, broker: Broker) -> None:
        assert broker.known_service(GROUP_SERVICE) is True
