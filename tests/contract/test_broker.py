"""What `wsgateway.broker.base.Broker` promises, on every implementation. One class a promise."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.support import until
from wsgateway.broker import memory
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import ERROR_HEADER, MAX_HEADERS, MAX_TTL, REPLY_TO_HEADER, Stored
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerUnavailable,
    MessageTooBig,
    NameRefused,
    QueueFull,
    ServiceUnknown,
)
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox

ANN = Inbox("orders", "ann")
BOB = Inbox("orders", "bob")
CAROL = Inbox("orders", "carol")


def text(data: str) -> Frame:
    return Frame.of(data)


async def fill(broker: Broker, inbox: Inbox, count: int) -> list[int]:
    return [(await broker.publish(inbox, b"%d" % n)).offset for n in range(count)]


async def offsets(broker: Broker, inbox: Inbox, after: int = 0, limit: int = 1000) -> list[int]:
    return [m.offset for m in (await broker.read_after(inbox, after, limit=limit)).messages]


async def eventually(check: Callable[[], Awaitable[Any]], what: str, timeout: float = 20.0) -> Any:
    async with asyncio.timeout(timeout):
        while not (result := await check()):
            await asyncio.sleep(0.02)
    assert result, what
    return result


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
        batch = await broker.read_after(ANN, 0, limit=10)
        assert [m.payload for m in batch.messages] == [b"first"]

    async def test_ids_are_compared_within_an_inbox(self, broker: Broker) -> None:
        """The server compares ids across the stream: bob's message vanished, for ann had its id."""
        first = await broker.publish(ANN, b"x", msg_id="a")
        second = await broker.publish(BOB, b"x", msg_id="a")
        assert not second.duplicate
        assert second.offset > first.offset
        assert await broker.count(BOB) == 1

    async def test_without_an_id_equal_messages_are_different(self, broker: Broker) -> None:
        for _ in range(2):
            assert not (await broker.publish(ANN, b"same")).duplicate
        assert await broker.count(ANN) == 2

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
        broker.watch(ANN, seen.append)

        async def gone() -> bool:
            return await broker.count(ANN) == 0 and await broker.count(BOB) == 1

        await eventually(gone, "both are gone")
        assert await offsets(broker, ANN) == []
        assert await broker.last_offsets([ANN]) == {}
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
        assert await broker.count(ANN) == 0

    @pytest.mark.parametrize("ttl", ["60", True, dt.timedelta(seconds=60), Decimal(60)])
    async def test_ttl_that_is_not_a_number_is_refused(self, broker: Broker, ttl: Any) -> None:
        with pytest.raises(TypeError, match="number of seconds"):
            await broker.publish(ANN, b"x", ttl=ttl)
        assert await broker.count(ANN) == 0

    async def test_longest_ttl_is_stored(self, broker: Broker) -> None:
        receipt = await broker.publish(ANN, b"x", ttl=MAX_TTL)
        assert await offsets(broker, ANN) == [receipt.offset]

    async def test_age_ends_a_message(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 0.3
        broker = await brokers.open()
        last = (await fill(broker, ANN, 3))[-1]

        async def gone() -> bool:
            return await broker.count(ANN) == 0

        await eventually(gone, "all are gone")
        position = await broker.position()
        assert (position.first, position.last) == (last + 1, last)

    async def test_oldest_goes_first_at_the_limit(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_INBOX_MAX_MESSAGES = 3
        broker = await brokers.open()
        all_of_bob = await fill(broker, BOB, 2)
        all_of_ann = await fill(broker, ANN, 5)
        assert await offsets(broker, ANN) == all_of_ann[2:]
        assert await broker.count(ANN) == 3
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
        assert await broker.count(ANN) == 0

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
        assert await broker.count(ANN) == 0

    async def test_headers_as_large_as_allowed_are_stored(self, broker: Broker) -> None:
        headers = {"a": "x" * (MAX_HEADERS - 5)}
        receipt = await broker.publish(ANN, b"x", headers=headers, msg_id="i" * 255, ttl=60)
        assert await offsets(broker, ANN) == [receipt.offset]

    async def test_address_that_cannot_be_a_subject_is_refused(self, broker: Broker) -> None:
        for inbox in (Inbox("", "ann"), Inbox("orders", "x" * 300), Inbox("a", "\ud800")):
            with pytest.raises(NameRefused):
                await broker.publish(inbox, b"x")


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
        # A repetition of what is stored is no news, so it is not refused.
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
        assert (await broker.position()).last == 0

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


class TestReadAfter:
    async def test_exclusive_and_oldest_first(self, broker: Broker, other: Broker) -> None:
        mine = []
        for _ in range(5):
            await fill(other, BOB, 2)
            mine += await fill(broker, ANN, 1)
        for index in range(5):
            assert await offsets(other, ANN, mine[index]) == mine[index + 1 :]
            assert await offsets(other, ANN, mine[index] - 1) == mine[index:]
        assert await offsets(other, ANN, 0) == mine
        assert await offsets(other, ANN, mine[-1] + 1000) == []

    async def test_limit_and_more_speak_of_this_inbox(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 5)
        await fill(broker, BOB, 5)
        for limit, more in ((1, True), (4, True), (5, False), (6, False), (1000, False)):
            batch = await broker.read_after(ANN, 0, limit=limit)
            assert ([m.offset for m in batch.messages], batch.more) == (mine[:limit], more)

    async def test_nothing(self, broker: Broker) -> None:
        for _ in range(2):  # in an empty stream, and in one that holds others' messages
            assert await broker.read_after(ANN, 0, limit=10) == ([], False, False)
            await fill(broker, BOB, 1)

    async def test_large_messages_come_in_several_batches(self, broker: Broker) -> None:
        sent = [(await broker.publish(ANN, bytes(900_000))).offset for _ in range(7)]
        got: list[int] = []
        more = True
        while more:
            batch = await broker.read_after(ANN, got[-1] if got else 0, limit=1000)
            assert batch.messages
            got += [message.offset for message in batch.messages]
            more = batch.more
        assert got == sent

    async def test_message_is_as_published(self, broker: Broker) -> None:
        headers = {REPLY_TO_HEADER: "c1", ERROR_HEADER: "rejected", "traceparent": "00-ab"}
        await broker.publish(ANN, b"\x00\xff", kind="binary", headers=headers)
        await broker.publish(ANN, b"plain")
        first, second = (await broker.read_after(ANN, 0, limit=2)).messages
        assert (first.payload, first.kind) == (b"\x00\xff", "binary")
        assert (first.reply_to, first.error) == ("c1", "rejected")
        assert (second.payload, second.kind) == (b"plain", None)
        assert (second.reply_to, second.error) == (None, None)
        age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(first.time)
        assert abs(age) < dt.timedelta(minutes=1)

    @pytest.mark.parametrize("reply_to", ["", "a b", "x" * 65, "ä", "\x7f"])
    async def test_reply_to_what_cannot_be_an_id_is_a_plain_message(
        self, broker: Broker, reply_to: str
    ) -> None:
        """The protocol allows clients ids only; raw sockets skip replies."""
        headers = {REPLY_TO_HEADER: reply_to, ERROR_HEADER: "rejected"}
        await broker.publish(ANN, b"x", headers=headers)
        await broker.publish(ANN, b"y", headers={ERROR_HEADER: "rejected"})
        await broker.publish(ANN, b"z", headers={REPLY_TO_HEADER: "c", ERROR_HEADER: ""})
        messages = (await broker.read_after(ANN, 0, limit=3)).messages
        found = [(message.reply_to, message.error) for message in messages]
        assert found == [(None, None), (None, None), ("c", None)]

    @pytest.mark.parametrize("user", ["a b", "*", ">", "ann@example.org", "jörg", "a..b", "=41"])
    async def test_any_name_is_one_inbox(self, broker: Broker, user: str) -> None:
        inbox = Inbox("orders", user)
        await fill(broker, ANN, 1)
        mine = await fill(broker, inbox, 2)
        assert await offsets(broker, inbox) == mine
        assert await broker.count(inbox) == 2
        assert await broker.last_offsets([inbox]) == {inbox: mine[-1]}


class TestWatch:
    async def watch(self, broker: Broker, inbox: Inbox) -> list[Stored]:
        seen: list[Stored] = []
        broker.watch(inbox, seen.append)
        await broker.position()  # an answer proves that the subscription has arrived
        return seen

    async def test_every_message_with_the_offset_before(
        self, broker: Broker, other: Broker
    ) -> None:
        await fill(broker, BOB, 3)
        seen = await self.watch(other, ANN)
        mine = []
        for _ in range(5):
            mine += await fill(broker, ANN, 1)
            await fill(broker, BOB, 1)
        await until(lambda: len(seen) >= 5, what="five messages")
        assert [m.offset for m in seen] == mine
        assert [m.previous for m in seen] == [0, *mine[:-1]]
        assert [m.payload for m in seen] == [b"0"] * 5

    async def test_offset_before_an_older_one(self, broker: Broker, other: Broker) -> None:
        before = (await fill(broker, ANN, 2))[-1]
        seen = await self.watch(other, ANN)
        await fill(broker, ANN, 1)
        await until(lambda: seen, what="a message")
        assert seen[0].previous == before

    async def test_message_is_as_published(self, broker: Broker, other: Broker) -> None:
        seen = await self.watch(other, ANN)
        await broker.publish(ANN, b"x", kind="event", headers={REPLY_TO_HEADER: "c"})
        await until(lambda: seen, what="a message")
        assert (seen[0].payload, seen[0].kind, seen[0].reply_to) == (b"x", "event", "c")
        assert dt.datetime.fromisoformat(seen[0].time)

    async def test_duplicate_is_not_seen(self, broker: Broker, other: Broker) -> None:
        seen = await self.watch(other, ANN)
        for msg_id in ("a", "a", "b"):
            await broker.publish(ANN, msg_id.encode(), msg_id=msg_id)
        await until(lambda: len(seen) >= 2, what="two messages")
        assert [m.payload for m in seen] == [b"a", b"b"]

    async def test_several_watchers_and_the_end_of_one(self, broker: Broker) -> None:
        first: list[Stored] = []
        end = broker.watch(ANN, first.append)
        second = await self.watch(broker, ANN)
        await fill(broker, ANN, 1)
        await until(lambda: first and second, what="both saw it")
        end.close()
        end.close()
        await fill(broker, ANN, 1)
        await until(lambda: len(second) == 2, what="one saw it")
        assert len(first) == 1

    async def test_each_message_is_seen_by_one_of_a_queue(
        self, broker: Broker, other: Broker
    ) -> None:
        queues: list[list[Stored]] = [[], []]
        for seen, name in zip(queues, ("a", "b"), strict=True):
            for each in (broker, other):
                each.watch(ANN, seen.append, name)
                await each.position()
        everything = await self.watch(broker, ANN)
        await fill(broker, ANN, 20)
        for seen in (everything, *queues):
            await until(lambda seen=seen: len(seen) >= 20, what="twenty messages")
            assert sorted(m.payload for m in seen) == sorted(b"%d" % n for n in range(20))

    async def test_watch_before_open(self, brokers: Brokers, broker: Broker) -> None:
        late = brokers.new()
        seen: list[Stored] = []
        late.watch(ANN, seen.append)
        await late.open()
        await late.wait_ready()
        await fill(broker, ANN, 1)
        await until(lambda: seen, what="a message")


class TestLastOffsets:
    async def test_more_inboxes_than_one_request_takes(self, broker: Broker, other: Broker) -> None:
        inboxes = [Inbox("orders", f"u{number}") for number in range(1100)]
        receipts = await asyncio.gather(*(broker.publish(inbox, b"x") for inbox in inboxes))
        expected = {i: r.offset for i, r in zip(inboxes, receipts, strict=True)}
        empty = [Inbox("orders", f"e{number}") for number in range(1100)]
        assert await other.last_offsets(inboxes + empty) == expected
        assert await other.last_offsets(empty) == {}
        assert await other.last_offsets([]) == {}

    async def test_messages_larger_than_one_answer_takes(
        self, broker: Broker, other: Broker
    ) -> None:
        """The server stops at 64 MiB of whole messages, and the inboxes behind counted as empty."""
        inboxes = [Inbox("orders", f"u{number}") for number in range(70)]
        receipts = [await broker.publish(inbox, bytes(1_000_000)) for inbox in inboxes]
        expected = {i: r.offset for i, r in zip(inboxes, receipts, strict=True)}
        assert await other.last_offsets(inboxes) == expected

    async def test_long_names(self, brokers: Brokers) -> None:
        """1,024 long names exceeded the server's max_payload, which ends the connection."""
        brokers.settings.WSGATEWAY_SERVICES = ["*"]
        broker = await brokers.open()
        names = [f"{number:04}" + "*" * 251 for number in range(1000)]
        inboxes = [Inbox("*" * 255, name) for name in names]
        receipt = await broker.publish(inboxes[-1], b"x")
        assert await broker.last_offsets(inboxes) == {inboxes[-1]: receipt.offset}

    async def test_newest_counts(self, broker: Broker) -> None:
        group = Inbox(GROUP_SERVICE, "a.b.c")
        mine = await fill(broker, ANN, 3)
        theirs = await fill(broker, group, 1)
        assert await broker.last_offsets([ANN, group]) == {ANN: mine[-1], group: theirs[-1]}


class TestPosition:
    async def test_empty_and_after_messages(self, broker: Broker, other: Broker) -> None:
        empty = await broker.position()
        assert empty.last == 0
        assert empty.first <= 1
        mine = await fill(other, ANN, 3)
        assert (await broker.position())[:3] == (empty.epoch, mine[0], mine[-1])

    async def test_limit_and_gaps_are_what_the_stream_says(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """A stream that keeps fewer than the setting says was taken for one that keeps all."""
        await brokers.keep(broker, 5)
        await fill(broker, BOB, 1)
        mine = await fill(broker, ANN, 9)
        position = await broker.position()
        assert (position.max_messages, position.gaps) == (5, 4)
        assert (position.first, position.last) == (mine[0] - 1, mine[-1])

    async def test_asked_at_the_same_time_none_is_from_before(
        self, broker: Broker, other: Broker
    ) -> None:
        """Calls share requests; each must still see what was stored before it."""
        seen: list[tuple[int, int]] = []

        async def ask(least: int) -> None:
            seen.append((least, (await broker.position()).last))

        asking = []
        for _ in range(50):
            offset = (await other.publish(ANN, b"x")).offset
            asking += [asyncio.create_task(ask(offset)) for _ in range(3)]
        await asyncio.gather(*asking)
        assert len(seen) == 150
        assert all(last >= least for least, last in seen)

    async def test_client_messages_do_not_move_it(self, broker: Broker) -> None:
        await broker.offer(ANN, text("x"), "x")
        assert (await broker.position()).last == 0

    async def test_epoch_is_the_same_everywhere_until_the_stream_is_another(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        first = broker.epoch
        assert first
        assert first == other.epoch == (await other.position()).epoch
        await brokers.renew(broker)
        position = await other.position()
        assert position.epoch not in ("", first)
        assert position.last == 0
        assert other.epoch == position.epoch


class TestCursors:
    @pytest.fixture(autouse=True)
    async def _messages(self, broker: Broker) -> None:
        """A cursor beyond the stream's end does not count."""
        await fill(broker, CAROL, 150)

    async def test_saved_and_loaded_by_device(self, broker: Broker, other: Broker) -> None:
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.save_cursor(ANN, "phone", 7)
        assert await other.load_cursor(ANN, "phone") == 7
        for inbox, device in ((ANN, "laptop"), (BOB, "phone"), (Inbox("orders", "ann.x"), "")):
            if device:
                assert await other.load_cursor(inbox, device) == 0

    @pytest.mark.parametrize("device", ["default", "a b", "*", ">", "é" * 100, "."])
    async def test_any_device_name(self, broker: Broker, other: Broker, device: str) -> None:
        await broker.save_cursor(ANN, device, 5)
        assert await other.load_cursor(ANN, device) == 5
        assert await other.load_cursor(ANN, "another") == 0

    async def test_never_backwards(self, broker: Broker, other: Broker) -> None:
        """The broker that wrote the cursor itself once moved it back."""
        for writer, offset, expected in (
            (broker, 10, 10),
            (broker, 3, 10),
            (other, 4, 10),
            (other, 20, 20),
            (broker, 15, 20),
            (broker, 21, 21),
        ):
            await writer.save_cursor(ANN, "phone", offset)
            assert await broker.load_cursor(ANN, "phone") == expected
            assert await other.load_cursor(ANN, "phone") == expected

    async def test_many_writers_at_once(self, brokers: Brokers) -> None:
        writers = [await brokers.open() for _ in range(4)]
        for base in (0, 100):
            await asyncio.gather(
                *(w.save_cursor(ANN, "phone", base + n) for n, w in enumerate(writers, 1))
            )
            assert await writers[0].load_cursor(ANN, "phone") == base + 4

    async def test_of_another_epoch_is_not_known(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        await broker.save_cursor(ANN, "phone", 100)
        assert await other.load_cursor(ANN, "phone") == 100
        await brokers.renew(broker)
        for each in (broker, other):
            await each.position()
            assert await each.load_cursor(ANN, "phone") == 0
        await fill(broker, ANN, 2)
        await broker.save_cursor(ANN, "phone", 2)
        await other.save_cursor(ANN, "phone", 1)
        assert await other.load_cursor(ANN, "phone") == 2

    async def test_offset_of_an_earlier_epoch_is_not_saved(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """What a client confirmed of the stream before counted for the new one."""
        before = broker.epoch
        await broker.save_cursor(ANN, "phone", 100, epoch=before)
        assert await broker.load_cursor(ANN, "phone") == 100
        await brokers.renew(broker)
        await fill(broker, ANN, 150)
        await broker.position()
        await broker.save_cursor(ANN, "phone", 120, epoch=before)
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.save_cursor(ANN, "phone", 5, epoch=broker.epoch)
        assert await broker.load_cursor(ANN, "phone") == 5

    async def test_dropped(self, broker: Broker, other: Broker) -> None:
        for each in (broker, other):
            await each.save_cursor(ANN, "phone", 100)
        await broker.drop_cursor(ANN, "phone")
        await broker.drop_cursor(ANN, "phone")
        await broker.drop_cursor(ANN, "never seen")
        for each in (broker, other):
            assert await each.load_cursor(ANN, "phone") == 0
        await other.save_cursor(ANN, "phone", 3)
        assert await broker.load_cursor(ANN, "phone") == 3

    async def test_bucket_that_is_full_keeps_nobody_out(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """What is full can still be dropped, so a cursor beyond the end refuses no connection."""
        if brokers.settings.PUBSUB_BROKER == "memory":
            pytest.skip("it has no limit")
        last = (await broker.position()).last
        await broker.save_cursor(ANN, "phone", last + 10)
        await broker.save_cursor(ANN, "laptop", last)
        stream = f"KV_{broker.subjects.upper}_CURSORS"
        api = broker.jetstream.api  # type: ignore[attr-defined]
        info = await api(f"STREAM.INFO.{stream}")
        full = {**info["config"], "max_bytes": info["state"]["bytes"]}
        await api(f"STREAM.UPDATE.{stream}", full)
        with pytest.raises(QueueFull):
            await broker.save_cursor(ANN, "tablet", last)
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.drop_cursor(ANN, "laptop")
        assert await broker.load_cursor(ANN, "laptop") == 0
        await broker.save_cursor(ANN, "tablet", last)

    async def test_least_recently_used_goes_at_the_limit(self, brokers: Brokers) -> None:
        """Any client could fill the bucket with devices that it made up."""
        brokers.settings.WSGATEWAY_MAX_DEVICES_PER_USER = 3
        memory.reset_shared_store()
        broker, other = await brokers.open(), await brokers.open()
        await fill(broker, ANN, 10)
        await broker.save_cursor(BOB, "phone", 1)
        for number, device in enumerate("abc", 1):
            await (broker if number % 2 else other).save_cursor(ANN, device, number)
        await other.save_cursor(ANN, "a", 5)  # used again: b is the oldest now
        for device in ("d", "e"):
            await broker.save_cursor(ANN, device, 7)
        found = {device: await other.load_cursor(ANN, device) for device in "abcde"}
        assert found == {"a": 5, "b": 0, "c": 0, "d": 7, "e": 7}
        assert await other.load_cursor(BOB, "phone") == 1
        # Whoever lost its cursor may have one again, also where it was remembered.
        await other.save_cursor(ANN, "b", 2)
        assert await broker.load_cursor(ANN, "b") == 2
        assert await broker.load_cursor(ANN, "a") == 0


class TestCursorsAfterARestore:
    @pytest.fixture(autouse=True)
    def _on_disk(self, brokers: Brokers) -> None:
        """Older servers back nothing up that is in memory."""
        brokers.settings.WSGATEWAY_STORAGE = "file"

    async def test_beyond_the_streams_end_is_dropped(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        """The stream came from a backup: the device got nothing of what was stored afterwards."""
        backup = await brokers.back_up(broker)
        last = (await fill(broker, ANN, 5))[-1]
        for each in (broker, other):
            await each.save_cursor(ANN, "phone", last)
        await brokers.restore(broker, backup)
        assert await other.load_cursor(ANN, "phone") == 0
        # Nor does it come back once the stream is as long again.
        await fill(broker, ANN, 10)
        for each in (broker, other):
            assert await each.load_cursor(ANN, "phone") == 0

    async def test_may_be_saved_again_below_one_that_the_stream_lost(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """It never moved backwards, so a later connection skipped what lay between."""
        backup = await brokers.back_up(broker)
        receipts = await fill(broker, ANN, 5)
        await broker.save_cursor(ANN, "phone", receipts[-1])
        await brokers.restore(broker, backup)
        await broker.position()  # as each sweep asks
        await fill(broker, ANN, 1)
        await broker.load_cursor(ANN, "phone")
        await fill(broker, ANN, 10)
        await broker.save_cursor(ANN, "phone", receipts[0])
        assert await broker.load_cursor(ANN, "phone") == receipts[0]


class TestAnchor:
    async def anchored(self, broker: Broker, inbox: Inbox, offset: int) -> bool:
        return (await broker.read_after(inbox, offset, limit=10, anchor=True)).anchored

    async def test_message_that_is_kept(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 3)
        theirs = await fill(broker, BOB, 1)
        for offset in mine:
            assert await self.anchored(broker, ANN, offset)
        for offset in (0, theirs[0], mine[-1] + 1000):
            assert not await self.anchored(broker, ANN, offset)
        assert not (await broker.read_after(ANN, mine[0], limit=1)).anchored

    async def test_it_is_not_among_the_messages(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 5)
        for limit in (1, 2, 3, 4, 1000):
            batch = await broker.read_after(ANN, mine[0], limit=limit, anchor=True)
            assert [message.offset for message in batch.messages] == mine[1:][:limit]
            assert batch.more is (limit < 4)
            without = await broker.read_after(ANN, mine[0] - 1, limit=limit, anchor=True)
            assert [message.offset for message in without.messages] == mine[:limit]
            assert without.more is (limit < 5)

    async def test_trimmed_message(self, brokers: Brokers, broker: Broker) -> None:
        await brokers.keep(broker, 3)
        mine = await fill(broker, ANN, 5)
        assert [await self.anchored(broker, ANN, o) for o in mine] == [False] * 2 + [True] * 3

    async def test_large_messages(self, broker: Broker) -> None:
        sent = [(await broker.publish(ANN, bytes(1_000_000))).offset for _ in range(9)]
        got = [sent[0]]
        while len(got) < len(sent):
            batch = await broker.read_after(ANN, got[-1], limit=1000, anchor=True)
            assert batch.anchored
            assert batch.messages
            got += [message.offset for message in batch.messages]
        assert (got, batch.more) == (sent, False)


class TestBroadcast:
    async def test_every_listener_hears_its_topic(self, broker: Broker, other: Broker) -> None:
        heard: list[bytes] = []
        ended: list[bytes] = []
        elsewhere: list[bytes] = []
        broker.listen("logout", heard.append)
        broker.listen("topic", elsewhere.append)
        end = other.listen("logout", ended.append)
        other.listen("logout", heard.append)
        for each in (broker, other):
            await each.position()
        broker.broadcast("logout", b"one")
        await until(lambda: len(heard) == 2 and ended, what="all heard it")
        end.close()
        other.broadcast("logout", b"two")
        await until(lambda: len(heard) == 4, what="two heard it")
        assert heard == [b"one"] * 2 + [b"two"] * 2
        assert ended == [b"one"]
        assert elsewhere == []

    async def test_lost_while_not_ready(self, brokers: Brokers, broker: Broker) -> None:
        heard: list[bytes] = []
        broker.listen("logout", heard.append)
        await broker.position()
        early = brokers.new()
        early.broadcast("logout", b"lost")
        broker.broadcast("logout", b"heard")
        await until(lambda: heard, what="one broadcast")
        assert heard == [b"heard"]


class TestLife:
    async def test_open_is_idempotent_and_announced_once(self, brokers: Brokers) -> None:
        broker = brokers.new()
        calls: list[str] = []
        broker.on_ready(lambda: calls.append("kept"))
        ended = broker.on_ready(lambda: calls.append("ended"))
        ended.close()
        ended.close()
        before = broker.ready
        await broker.open()
        await broker.open()
        await broker.wait_ready()
        await broker.open()
        await until(lambda: calls, what="the callback")
        assert (before, broker.ready) == (False, True)
        await broker.position()
        assert calls == ["kept"]

    async def test_not_open_yet(self, brokers: Brokers) -> None:
        brokers.settings.WSGATEWAY_BROKER_TIMEOUT = 0.2
        broker = brokers.new()
        with pytest.raises(BrokerUnavailable):
            await broker.wait_ready(0.1)
        with pytest.raises(BrokerUnavailable):
            await broker.publish(ANN, b"x")
        with pytest.raises(BrokerUnavailable):
            await broker.read_after(ANN, 0, limit=1)

    async def test_set_up_is_idempotent(self, brokers: Brokers) -> None:
        broker = brokers.new()
        for _ in range(2):
            lines = await broker.set_up()
            assert lines
            assert all(": " in line for line in lines)
        await broker.open()
        await broker.wait_ready()
        await fill(broker, ANN, 1)

    async def test_everything_refuses_after_close(self, brokers: Brokers, broker: Broker) -> None:
        await fill(broker, ANN, 1)
        seen: list[Any] = []
        broker.watch(ANN, seen.append)
        broker.listen("logout", seen.append)
        await broker.position()
        await broker.close()
        await broker.close()
        assert not broker.ready
        for call in CALLS.values():
            with pytest.raises(BrokerClosed, match="already closed"):
                await call(broker)
        for direct in (
            lambda: broker.offer(ANN, text("x"), "x"),
            lambda: broker.broadcast("logout", b"x"),
            lambda: broker.watch(ANN, seen.append),
            lambda: broker.listen("logout", seen.append),
        ):
            with pytest.raises(BrokerClosed, match="already closed"):
                direct()
        another = await brokers.open()
        assert await another.count(ANN) == 1
        await fill(another, ANN, 1)
        another.broadcast("logout", b"x")
        await another.position()
        assert seen == []

    async def test_close_before_open(self, brokers: Brokers) -> None:
        broker = brokers.new()
        await broker.close()
        with pytest.raises(BrokerClosed):
            await broker.open()


CALLS: dict[str, Callable[[Broker], Awaitable[Any]]] = {
    "open": lambda b: b.open(),
    "set_up": lambda b: b.set_up(),
    "wait_ready": lambda b: b.wait_ready(),
    "publish": lambda b: b.publish(ANN, b"x"),
    "read_after": lambda b: b.read_after(ANN, 0, limit=10),
    "last_offsets": lambda b: b.last_offsets([ANN]),
    "position": lambda b: b.position(),
    "count": lambda b: b.count(ANN),
    "load_cursor": lambda b: b.load_cursor(ANN, "phone"),
    "save_cursor": lambda b: b.save_cursor(ANN, "tablet", 9),
    "drop_cursor": lambda b: b.drop_cursor(ANN, "tablet"),
}
"""Every method that waits, with arguments."""

STEPS = [0, 1, 2, 3, 4, 6, 9]
PAUSES = [0.0, 0.0002, 0.0005, 0.001, 0.003]


class TestCancellation:
    @pytest.mark.parametrize("name", [n for n in CALLS if n not in ("open", "wait_ready")])
    async def test_cancelled_at_any_point(
        self, brokers: Brokers, broker: Broker, name: str
    ) -> None:
        await fill(broker, ANN, 2)
        ended = cancelled = 0
        for steps in STEPS:
            for pause in PAUSES:
                task = asyncio.ensure_future(CALLS[name](broker))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if pause:
                    await asyncio.sleep(pause)
                task.cancel()
                try:
                    await task
                    ended += 1
                except asyncio.CancelledError:
                    cancelled += 1
        assert ended + cancelled == len(STEPS) * len(PAUSES)
        assert cancelled >= 1  # at least the one that had not begun
        assert broker.ready
        assert brokers.waiting(broker) == 0
        # Everything still works.
        for call in CALLS.values():
            await call(broker)

    async def test_cancelled_publish_is_stored_at_most_once(self, broker: Broker) -> None:
        for number, pause in enumerate(PAUSES * 3):
            msg_id = f"id {number}"
            task = asyncio.ensure_future(broker.publish(ANN, msg_id.encode(), msg_id=msg_id))
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait({task})
            await broker.publish(ANN, msg_id.encode(), msg_id=msg_id)
        batch = await broker.read_after(ANN, 0, limit=1000)
        assert [m.payload for m in batch.messages] == [
            b"id %d" % number for number in range(len(PAUSES) * 3)
        ]

    async def test_closed_while_waiting(self, brokers: Brokers) -> None:
        broker = brokers.new()
        await broker.open()
        tasks = [asyncio.ensure_future(call(broker)) for call in CALLS.values()]
        await asyncio.sleep(0)
        await broker.close()
        done, pending = await asyncio.wait(tasks, timeout=20.0)
        assert not pending
        for task in done:
            assert task.exception() is None or isinstance(task.exception(), BrokerClosed)
