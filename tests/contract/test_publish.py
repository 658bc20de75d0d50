"""What `Broker.publish` promises, on every implementation."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, eventually, fill, offsets, text
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import MAX_HEADERS, MAX_TTL, Stored
from wsgateway.exceptions import (
    MessageTooBig,
    NameRefused,
)
from wsgateway.outgoing import Outgoing
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox


class TestPublish:
    async def test_offsets_rise_over_all_inboxes(self, broker: Broker, other: Broker) -> None:
        got = []
        for number in range(10):
            publisher = broker if number % 2 else other
            got.append((await publisher.publish(ANN if number % 3 else BOB, b"x")).offset)
        assert got == sorted(set(got))
        assert got[0] > 0

    async def test_same_id_is_stored_once(self, broker: Broker, other: Broker) -> None:
        first = await broker.publish(ANN, b"first", msg_id="a")
        assert not first.duplicate
        for again in (broker, other):
            assert await again.publish(ANN, b"second", msg_id="a") == (first.offset, True)
        batch = await broker.inboxes.read_after(ANN, 0, limit=10)
        assert [m.payload for m in batch.messages] == [b"first"]

    async def test_ids_are_compared_within_an_inbox(self, broker: Broker) -> None:
        """The server compares ids across the stream: bob's message vanished, for ann had its id."""
        first = await broker.publish(ANN, b"x", msg_id="a")
        second = await broker.publish(BOB, b"x", msg_id="a")
        assert not second.duplicate
        assert second.offset > first.offset
        assert await broker.inboxes.count(BOB) == 1

    async def test_inbox_that_nobody_can_have_is_refused(self, broker: Broker) -> None:
        """Readers who are not logged in share this name, so it was an inbox of strangers."""
        with pytest.raises(NameRefused, match="publish to a topic"):
            await broker.publish(Inbox("orders", "(anonymous)"), b"x")
        with pytest.raises(NameRefused, match="publish to a topic"):
            Outgoing("orders", "(anonymous)", text="x").prepare()

    async def test_without_an_id_equal_messages_are_different(self, broker: Broker) -> None:
        for _ in range(2):
            assert not (await broker.publish(ANN, b"same")).duplicate
        assert await broker.inboxes.count(ANN) == 2

    async def test_id_is_forgotten_after_the_window(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_DUPLICATE_WINDOW = 0.3
        broker = await brokers.open()
        first = await broker.publish(ANN, b"x", msg_id="a")

        async def again() -> bool:
            return not (await broker.publish(ANN, b"x", msg_id="a")).duplicate

        await eventually(again, "the id is taken again")
        assert len(await offsets(broker, ANN, first.offset)) == 1

    async def test_ttl_ends_a_message_and_only_that(self, broker: Broker) -> None:
        await broker.publish(ANN, b"short", ttl=1)
        await broker.publish(BOB, b"short", ttl=1.5)
        await broker.publish(BOB, b"stays", ttl=60)
        seen: list[Stored] = []
        broker.inboxes.watch(ANN, seen.append)

        async def gone() -> bool:
            return await broker.inboxes.count(ANN) == 0 and await broker.inboxes.count(BOB) == 1

        await eventually(gone, "both are gone")
        assert await offsets(broker, ANN) == []
        assert await broker.inboxes.last_offsets([ANN]) == {}
        # What is gone is no longer "the one before".
        receipt = await broker.publish(ANN, b"next")
        await until(lambda: seen, what="the next one")
        assert (seen[0].offset, seen[0].previous) == (receipt.offset, 0)

    @pytest.mark.parametrize(
        "ttl", [0, 0.5, -1, math.inf, -math.inf, math.nan, 1e300, 10**400, MAX_TTL + 1]
    )
    async def test_ttl_out_of_range_is_refused(self, broker: Broker, ttl: float) -> None:
        """An infinite one raised OverflowError, which ended the outbox' relay; nan was stored."""
        with pytest.raises(ValueError, match=r"between 1 and \d+ seconds"):
            await broker.publish(ANN, b"x", ttl=ttl)
        assert await broker.inboxes.count(ANN) == 0

    @pytest.mark.parametrize("ttl", ["60", True, dt.timedelta(seconds=60), Decimal(60)])
    async def test_ttl_that_is_not_a_number_is_refused(self, broker: Broker, ttl: Any) -> None:
        with pytest.raises(TypeError, match="number of seconds"):
            await broker.publish(ANN, b"x", ttl=ttl)
        assert await broker.inboxes.count(ANN) == 0

    async def test_longest_ttl_is_stored(self, broker: Broker) -> None:
        receipt = await broker.publish(ANN, b"x", ttl=MAX_TTL)
        assert await offsets(broker, ANN) == [receipt.offset]

    async def test_age_ends_a_message(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 0.3
        broker = await brokers.open()
        last = (await fill(broker, ANN, 3))[-1]

        async def gone() -> bool:
            return await broker.inboxes.count(ANN) == 0

        await eventually(gone, "all are gone")
        position = await broker.inboxes.position()
        assert (position.first, position.last) == (last + 1, last)

    async def test_oldest_goes_first_at_the_limit(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_INBOX_MAX_MESSAGES = 3
        broker = await brokers.open()
        all_of_bob = await fill(broker, BOB, 2)
        all_of_ann = await fill(broker, ANN, 5)
        assert await offsets(broker, ANN) == all_of_ann[2:]
        assert await broker.inboxes.count(ANN) == 3
        assert await offsets(broker, BOB) == all_of_bob

    async def test_too_big(self, broker: Broker) -> None:
        with pytest.raises(MessageTooBig, match="exceeds"):
            await broker.publish(ANN, bytes(3_000_000))
        with pytest.raises(MessageTooBig, match="exceeds"):
            await broker.offer(ANN, Frame(bytes(3_000_000), False), "big")
        # Neither harmed anything, and what the setting allows fits.
        assert (await broker.publish(ANN, bytes(1_000_000))).offset > 0
        await broker.offer(ANN, Frame(bytes(1_000_000), False), "fits")

    @pytest.mark.parametrize(
        "headers",
        [{"a": "b\r\nNats-Rollup: all"}, {"a\nb": "c"}, {"": "c"}, {"a:b": "c"}],
    )
    async def test_headers_that_would_break_the_line_are_refused(
        self, broker: Broker, headers: dict[str, str]
    ) -> None:
        with pytest.raises(ValueError, match="header"):
            await broker.publish(ANN, b"x", headers=headers)
        with pytest.raises(ValueError, match="header"):
            broker.offer(ANN, text("x"), "id", headers)
        with pytest.raises(ValueError, match="header"):
            await broker.publish(ANN, b"x", msg_id="a\r\nb: c")
        assert await broker.inboxes.count(ANN) == 0

    @pytest.mark.parametrize(
        "headers",
        [
            {"Nats-Rollup": "sub"},
            {"nats-ttl": "1s"},
            {"Nats-Msg-Id": "1"},
            {"a": 1},
            {1: "a"},
            {"a": "\0"},
            {"a": "\ud800"},
            {"a": "x" * 70_000},
            ["a"],
            "a",
        ],
    )
    async def test_headers_that_cannot_be_stored_are_refused(
        self, broker: Broker, headers: Any
    ) -> None:
        """``Nats-…`` headers tell the server what to do; some replace the caller's id."""
        with pytest.raises(ValueError):
            await broker.publish(ANN, b"x", headers=headers)
        assert await broker.inboxes.count(ANN) == 0

    async def test_headers_as_large_as_allowed_are_stored(self, broker: Broker) -> None:
        headers = {"a": "x" * (MAX_HEADERS - 5)}
        receipt = await broker.publish(ANN, b"x", headers=headers, msg_id="i" * 255, ttl=60)
        assert await offsets(broker, ANN) == [receipt.offset]

    async def test_address_that_cannot_be_a_subject_is_refused(self, broker: Broker) -> None:
        for inbox in (Inbox("", "ann"), Inbox("orders", "x" * 300), Inbox("a", "\ud800")):
            with pytest.raises(NameRefused):
                await broker.publish(inbox, b"x")
