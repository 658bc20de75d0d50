"""Reading an inbox backwards: `Broker.read_last` and `Broker.offset_at`, on every broker."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, CAROL, eventually, fill, offsets
from wsgateway.broker.base import Broker
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import DirectBatch

SEQ = b"Nats-Sequence"


async def last(
    broker: Broker, limit: int, before: int | None = None, inbox: Any = ANN
) -> tuple[list[int], bool]:
    batch = await broker.inboxes.read_last(inbox, limit, before=before)
    return [stored.offset for stored in batch.messages], batch.more


async def test_empty_inbox(broker: Broker) -> None:
    await fill(broker, BOB, 3)
    for before in (None, 0, 1, 2, 100):
        assert await last(broker, 5, before) == ([], False)


async def test_newest_come_oldest_first_with_what_they_hold(broker: Broker) -> None:
    await fill(broker, ANN, 5)
    await broker.publish(ANN, b"\xff", kind="binary")
    batch = await broker.inboxes.read_last(ANN, 3)
    assert [stored.payload for stored in batch.messages] == [b"3", b"4", b"\xff"]
    assert [stored.kind for stored in batch.messages] == [None, None, "binary"]
    assert all(dt.datetime.fromisoformat(stored.time).tzinfo for stored in batch.messages)
    assert batch.more


async def test_more_says_whether_older_ones_are_kept(broker: Broker) -> None:
    mine = await fill(broker, ANN, 5)
    assert await last(broker, 4) == (mine[1:], True)
    assert await last(broker, 5) == (mine, False)
    assert await last(broker, 6) == (mine, False)
    assert await last(broker, 3, mine[3]) == (mine[:3], False)
    assert await last(broker, 2, mine[3]) == (mine[1:3], True)


async def test_before_excludes_and_need_not_be_an_offset_of_the_inbox(broker: Broker) -> None:
    first = await fill(broker, ANN, 2)
    between = await fill(broker, BOB, 3)
    then = await fill(broker, ANN, 2)
    assert await last(broker, 9, then[0]) == (first, False)
    assert await last(broker, 9, between[1]) == (first, False)
    assert await last(broker, 9, then[1] + 1) == (first + then, False)
    assert await last(broker, 9, then[1] + 1000) == (first + then, False)
    for beyond in (2**63 - 1, 2**63, 2**70):
        assert await last(broker, 9, beyond) == (first + then, False)
    for nothing in (first[0], 1, 0, -1):
        assert await last(broker, 9, nothing) == ([], False)


async def test_pages_back_to_the_first(broker: Broker) -> None:
    """Between others' messages, unevenly: a few among many, then many at once."""
    mine = await fill(broker, ANN, 3)
    await fill(broker, BOB, 150)
    mine += await fill(broker, ANN, 60)
    await fill(broker, CAROL, 40)
    mine += await fill(broker, ANN, 1)
    pages: list[list[int]] = []
    more, before = True, None
    while more:
        page, more = await last(broker, 10, before)
        pages.insert(0, page)
        before = page[0]
    assert [len(page) for page in pages] == [4, 10, 10, 10, 10, 10, 10]
    assert [offset for page in pages for offset in page] == mine


async def test_what_is_gone_leaves_no_holes_in_a_page(brokers: Brokers, broker: Broker) -> None:
    await brokers.keep(broker, 30)
    for number in range(60):
        await broker.publish(ANN, b"x", ttl=1 if number % 3 else None)
        await fill(broker, BOB, 1)
    assert len((await broker.inboxes.read_last(ANN, 30)).messages) == 30

    async def expired() -> bool:
        return await broker.inboxes.count(ANN) == 10

    await eventually(expired, "two of three have expired")
    kept = await offsets(broker, ANN)
    assert await last(broker, 7) == (kept[-7:], True)
    assert await last(broker, 7, kept[-7]) == (kept[:3], False)


@pytest.mark.parametrize("limit", [1, 2, 7, 50])
async def test_any_distribution(broker: Broker, limit: int) -> None:
    """As a scan finds it, wherever it ends."""
    random_ = random.Random(limit)
    mine: list[int] = []
    for _ in range(12):
        await fill(broker, BOB, random_.choice((0, 1, 30)))
        mine += await fill(broker, ANN, random_.choice((0, 1, 9)))
    for before in (None, *random_.sample(range(1, mine[-1] + 2), 20)):
        older = [offset for offset in mine if before is None or offset < before]
        assert await last(broker, limit, before) == (older[-limit:], len(older) > limit)


async def test_read_again_after_more_was_stored(broker: Broker, other: Broker) -> None:
    """Where the last read began is only a hint for the next."""
    await fill(broker, BOB, 40)
    mine: list[int] = []
    for count in (3, 1, 1, 70, 1, 200):
        mine += await fill(other, ANN, count)
        assert await last(broker, 5) == (mine[-5:], len(mine) > 5)
        assert await last(broker, 2, mine[2]) == (mine[:2], False)


async def test_large_messages_come_in_smaller_pages(broker: Broker) -> None:
    """A read of all of them would fill the memory; the newest come all the same, and `more`."""
    mine = [(await broker.publish(ANN, bytes(900_000))).offset for _ in range(9)]
    found: list[int] = []
    more, before = True, None
    while more:
        page, more = await last(broker, 50, before)
        assert page
        found = page + found
        before = page[0]
    assert found == mine


async def test_while_others_store(broker: Broker, other: Broker) -> None:
    """What is stored while the search goes on moves no page, and makes no hole."""
    await fill(broker, BOB, 50)
    mine = await fill(broker, ANN, 120)
    ended = asyncio.Event()

    async def store() -> None:
        while not ended.is_set():
            await asyncio.gather(*(fill(other, ANN, 1) for _ in range(10)))

    async with asyncio.TaskGroup() as group:
        group.create_task(store())
        for before in (mine[-1], mine[60], mine[5]) * 5:
            older = [offset for offset in mine if offset < before]
            assert await last(broker, 10, before) == (older[-10:], len(older) > 10)
            page, more = await last(broker, 10)
            everything = await offsets(broker, ANN, page[0] - 1, 10)
            assert (page, more) == (everything, True)
        ended.set()


async def test_offset_at_a_time(broker: Broker) -> None:
    mine, times = [], []
    for _ in range(3):
        times.append(dt.datetime.now(dt.UTC))
        mine += await fill(broker, ANN, 1)
        await fill(broker, BOB, 1)
        await asyncio.sleep(0.02)  # two times that differ
    assert [await broker.inboxes.offset_at(ANN, time) for time in times] == mine
    assert await broker.inboxes.offset_at(ANN, dt.datetime.now(dt.UTC)) is None
    there = dt.timezone(dt.timedelta(hours=7))
    assert await broker.inboxes.offset_at(ANN, times[1].astimezone(there)) == mine[1]
    assert await broker.inboxes.offset_at(CAROL, times[0]) is None
    before = await broker.inboxes.offset_at(ANN, times[2])
    assert await last(broker, 9, before) == (mine[:2], False)


@pytest.mark.parametrize("hours", [-14, 0, 14])
async def test_offset_at_a_time_that_is_far_away(broker: Broker, hours: int) -> None:
    """NATS took a time after 2262 for one before its first message."""
    there = dt.timezone(dt.timedelta(hours=hours))
    (first,) = await fill(broker, ANN, 1)
    assert await broker.inboxes.offset_at(ANN, dt.datetime(2999, 1, 1, tzinfo=there)) is None
    assert await broker.inboxes.offset_at(ANN, dt.datetime.max.replace(tzinfo=there)) is None
    assert await broker.inboxes.offset_at(ANN, dt.datetime(1677, 1, 1, tzinfo=there)) == first
    assert await broker.inboxes.offset_at(ANN, dt.datetime.min.replace(tzinfo=there)) == first


@pytest.fixture
async def nats(brokers: Brokers, broker: Any) -> Any:
    """A broker on NATS; for what memory has not."""
    if brokers.settings.PUBSUB_BROKER == "memory":
        pytest.skip("memory has all at hand, and no replicas")
    return broker


class TestCost:
    """What it costs on NATS: a search that any inbox can afford, and none while it is hot."""

    @pytest.fixture
    async def asked(self, nats: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The direct gets so far."""
        asked: list[Any] = []
        direct = nats.jetstream.direct

        async def count(stream: str, request: Any) -> Any:
            asked.append(request)
            return await direct(stream, request)

        monkeypatch.setattr(nats.jetstream, "direct", count)
        return asked

    async def test_thirty_requests_at_most_and_three_while_hot(
        self, broker: Broker, asked: list[Any]
    ) -> None:
        random_ = random.Random(1)
        for _ in range(30):  # clusters, the worst for a guess
            await asyncio.gather(*(fill(broker, BOB, 1) for _ in range(random_.choice((1, 300)))))
            await asyncio.gather(*(fill(broker, ANN, 1) for _ in range(random_.choice((1, 40)))))
        mine = await offsets(broker, ANN)
        for before in (None, mine[-3], mine[len(mine) // 2], mine[70]):
            asked.clear()
            cold = await last(broker, 50, before)
            assert len(asked) <= 30
            asked.clear()
            assert await last(broker, 50, before) == cold
            assert len(asked) <= 3

    async def test_small_inbox_takes_three(self, broker: Broker, asked: list[Any]) -> None:
        await fill(broker, BOB, 200)
        mine = await fill(broker, ANN, 40)
        await fill(broker, BOB, 200)
        asked.clear()
        assert await last(broker, 50) == (mine, False)
        assert len(asked) == 3


class TestReplicas:
    @pytest.fixture
    async def lag(self, nats: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
        """Have the next direct gets answered by a replica that does not have the newest yet.

        It takes how many get such an answer, and after which offset everything is missing.
        """
        direct = nats.jetstream.direct
        stale: list[int] = []

        async def answer(stream: str, request: Any) -> Any:
            found = await direct(stream, request)
            if not stale or "next_by_subj" not in request:
                return found
            end = stale.pop()
            rest = (await direct(stream, {**request, "seq": end + 1, "batch": 1000})).replies
            there = [
                reply for reply in found.replies if (hdrs.find_int(reply.headers, SEQ) or 0) <= end
            ]
            missing = len(rest) - (len(found.replies) - len(there))
            return DirectBatch(there, max(0, found.pending - missing) if there else 0)

        monkeypatch.setattr(nats.jetstream, "direct", answer)

        def set_lag(count: int, end: int) -> None:
            stale[:] = [end] * count

        return set_lag

    @pytest.mark.parametrize("answers", [1, 2, 3, 7])
    async def test_one_that_lags_makes_no_hole(
        self, broker: Broker, lag: Callable[[int, int], None], answers: int
    ) -> None:
        """The page before a message that another replica has had."""
        await fill(broker, BOB, 5)
        mine = await fill(broker, ANN, 40)
        for before, end in ((mine[38], mine[30]), (mine[5], mine[2]), (mine[3], 1)):
            lag(answers, end)
            older = [offset for offset in mine if offset < before]
            assert await last(broker, 10, before) == (older[-10:], len(older) > 10)

    async def test_what_was_deleted_since_is_not_waited_for(self, broker: Broker) -> None:
        """No message proves any more that a replica has all before the end; the leader knows."""
        mine = await fill(broker, ANN, 6)
        for offset in mine[3:]:
            assert await broker.operations.delete(ANN, offset)
        assert await last(broker, 2, mine[5]) == (mine[1:3], True)
        assert await broker.operations.purge(ANN) == 3
        assert await last(broker, 2, mine[5]) == ([], False)
