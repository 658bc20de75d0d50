"""What reading inboxes promises, on every implementation. One class a promise."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, fill, offsets, text
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import ERROR_HEADER, REPLY_TO_HEADER
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox


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
            batch = await broker.inboxes.read_after(ANN, 0, limit=limit)
            assert ([m.offset for m in batch.messages], batch.more) == (mine[:limit], more)

    async def test_nothing(self, broker: Broker) -> None:
        for _ in range(2):  # in an empty stream, and in one that holds others' messages
            assert await broker.inboxes.read_after(ANN, 0, limit=10) == ([], False, False)
            await fill(broker, BOB, 1)

    async def test_large_messages_come_in_several_batches(self, broker: Broker) -> None:
        sent = [(await broker.publish(ANN, bytes(900_000))).offset for _ in range(7)]
        got: list[int] = []
        more = True
        while more:
            batch = await broker.inboxes.read_after(ANN, got[-1] if got else 0, limit=1000)
            assert batch.messages
            got += [message.offset for message in batch.messages]
            more = batch.more
        assert got == sent

    async def test_message_is_as_published(self, broker: Broker) -> None:
        headers = {REPLY_TO_HEADER: "c1", ERROR_HEADER: "rejected", "traceparent": "00-ab"}
        await broker.publish(ANN, b"\x00\xff", kind="binary", headers=headers)
        await broker.publish(ANN, b"plain")
        first, second = (await broker.inboxes.read_after(ANN, 0, limit=2)).messages
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
        messages = (await broker.inboxes.read_after(ANN, 0, limit=3)).messages
        found = [(message.reply_to, message.error) for message in messages]
        assert found == [(None, None), (None, None), ("c", None)]

    @pytest.mark.parametrize("user", ["a b", "*", ">", "ann@example.org", "jörg", "a..b", "=41"])
    async def test_any_name_is_one_inbox(self, broker: Broker, user: str) -> None:
        inbox = Inbox("orders", user)
        await fill(broker, ANN, 1)
        mine = await fill(broker, inbox, 2)
        assert await offsets(broker, inbox) == mine
        assert await broker.inboxes.count(inbox) == 2
        assert await broker.inboxes.last_offsets([inbox]) == {inbox: mine[-1]}


class TestLastOffsets:
    async def test_more_inboxes_than_one_request_takes(self, broker: Broker, other: Broker) -> None:
        inboxes = [Inbox("orders", f"u{number}") for number in range(1100)]
        receipts = await asyncio.gather(*(broker.publish(inbox, b"x") for inbox in inboxes))
        expected = {i: r.offset for i, r in zip(inboxes, receipts, strict=True)}
        empty = [Inbox("orders", f"e{number}") for number in range(1100)]
        assert await other.inboxes.last_offsets(inboxes + empty) == expected
        assert await other.inboxes.last_offsets(empty) == {}
        assert await other.inboxes.last_offsets([]) == {}

    async def test_messages_larger_than_one_answer_takes(
        self, broker: Broker, other: Broker
    ) -> None:
        """The server stops at 64 MiB of whole messages, and the inboxes behind counted as empty."""
        inboxes = [Inbox("orders", f"u{number}") for number in range(70)]
        receipts = [await broker.publish(inbox, bytes(1_000_000)) for inbox in inboxes]
        expected = {i: r.offset for i, r in zip(inboxes, receipts, strict=True)}
        assert await other.inboxes.last_offsets(inboxes) == expected

    async def test_long_names(self, brokers: Brokers) -> None:
        """1,024 long names exceeded the server's max_payload, which ends the connection."""
        brokers.settings.WSGATEWAY_SERVICES = ["*"]
        broker = await brokers.open()
        names = [f"{number:04}" + "*" * 251 for number in range(1000)]
        inboxes = [Inbox("*" * 255, name) for name in names]
        receipt = await broker.publish(inboxes[-1], b"x")
        assert await broker.inboxes.last_offsets(inboxes) == {inboxes[-1]: receipt.offset}

    async def test_newest_counts(self, broker: Broker) -> None:
        group = Inbox(GROUP_SERVICE, "a.b.c")
        mine = await fill(broker, ANN, 3)
        theirs = await fill(broker, group, 1)
        assert await broker.inboxes.last_offsets([ANN, group]) == {ANN: mine[-1], group: theirs[-1]}


class TestPosition:
    async def test_empty_and_after_messages(self, broker: Broker, other: Broker) -> None:
        empty = await broker.inboxes.position()
        assert empty.last == 0
        assert empty.first <= 1
        mine = await fill(other, ANN, 3)
        assert (await broker.inboxes.position())[:3] == (empty.epoch, mine[0], mine[-1])

    async def test_limit_and_gaps_are_what_the_stream_says(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """A stream that keeps fewer than the setting says was taken for one that keeps all."""
        await brokers.keep(broker, 5)
        await fill(broker, BOB, 1)
        mine = await fill(broker, ANN, 9)
        position = await broker.inboxes.position()
        assert (position.max_messages, position.gaps) == (5, 4)
        assert (position.first, position.last) == (mine[0] - 1, mine[-1])

    async def test_asked_at_the_same_time_none_is_from_before(
        self, broker: Broker, other: Broker
    ) -> None:
        """Calls share requests; each must still see what was stored before it."""
        seen: list[tuple[int, int]] = []

        async def ask(least: int) -> None:
            seen.append((least, (await broker.inboxes.position()).last))

        asking = []
        for _ in range(50):
            offset = (await other.publish(ANN, b"x")).offset
            asking += [asyncio.create_task(ask(offset)) for _ in range(3)]
        await asyncio.gather(*asking)
        assert len(seen) == 150
        assert all(last >= least for least, last in seen)

    async def test_client_messages_do_not_move_it(self, broker: Broker) -> None:
        await broker.offer(ANN, text("x"), "x")
        assert (await broker.inboxes.position()).last == 0

    async def test_epoch_is_the_same_everywhere_until_the_stream_is_another(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        first = broker.inboxes.epoch
        assert first
        assert first == other.inboxes.epoch == (await other.inboxes.position()).epoch
        await brokers.renew(broker)
        position = await other.inboxes.position()
        assert position.epoch not in ("", first)
        assert position.last == 0
        assert other.inboxes.epoch == position.epoch


class TestAnchor:
    async def anchored(self, broker: Broker, inbox: Inbox, offset: int) -> bool:
        return (await broker.inboxes.read_after(inbox, offset, limit=10, anchor=True)).anchored

    async def test_message_that_is_kept(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 3)
        theirs = await fill(broker, BOB, 1)
        for offset in mine:
            assert await self.anchored(broker, ANN, offset)
        for offset in (0, theirs[0], mine[-1] + 1000):
            assert not await self.anchored(broker, ANN, offset)
        assert not (await broker.inboxes.read_after(ANN, mine[0], limit=1)).anchored

    async def test_it_is_not_among_the_messages(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 5)
        for limit in (1, 2, 3, 4, 1000):
            batch = await broker.inboxes.read_after(ANN, mine[0], limit=limit, anchor=True)
            assert [message.offset for message in batch.messages] == mine[1:][:limit]
            assert batch.more is (limit < 4)
            without = await broker.inboxes.read_after(ANN, mine[0] - 1, limit=limit, anchor=True)
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
            batch = await broker.inboxes.read_after(ANN, got[-1], limit=1000, anchor=True)
            assert batch.anchored
            assert batch.messages
            got += [message.offset for message in batch.messages]
        assert (got, batch.more) == (sent, False)
