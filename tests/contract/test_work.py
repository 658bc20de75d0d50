"""What `wsgateway.broker.work` promises, on every implementation; workers run on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.integration.workers import answers, no_services, offer, serving
from tests.support import until
from wsgateway import Message, Reject, Retry
from wsgateway.broker.base import Broker
from wsgateway.broker.work import History, Job, Turn, WorkQueue
from wsgateway.exceptions import MessageTooBig, NameRefused
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import RetryPolicy, deadletters, registry

__all__ = ["no_services"]  # a fixture

ANN = Inbox("orders", "ann")


class Taken:
    """A queue, and what came from it."""

    def __init__(self, broker: Broker, ack_wait: float) -> None:
        self.jobs: list[Job] = []
        self.turns: list[Inbox] = []
        self.queue: WorkQueue = broker.work_queue(
            "orders", self.jobs.append, self.turns.append, ack_wait
        )

    @property
    def texts(self) -> list[str]:
        return [job.payload.decode() for job in self.jobs]

    async def came(self, *texts: str) -> list[Job]:
        await until(lambda: len(self.jobs) >= len(texts), what=f"{texts} came")
        assert self.texts == list(texts)
        return self.jobs


@asynccontextmanager
async def taking(broker: Broker, room: int = 100, ack_wait: float = 30.0) -> AsyncIterator[Taken]:
    taken = Taken(broker, ack_wait)
    taken.queue.open(room)
    await taken.queue.ready.wait()
    try:
        yield taken
    finally:
        await taken.queue.close()


async def waits(brokers: Brokers, broker: Broker) -> list[bytes]:
    return await brokers.sent(broker, ANN)


class TestWorkQueue:
    async def test_messages_come_in_order_with_what_the_gateway_says(self, broker: Broker) -> None:
        async with taking(broker) as taken:
            for text in ("one", "two"):
                await offer(broker, text, Ws_Client_Id=f"c-{text}")
            one, two = await taken.came("one", "two")
        assert (one.inbox, one.deliveries, one.unstarted) == (ANN, 1, True)
        assert one.headers["Ws-Client-Id"] == "c-one"
        assert one.sequence < two.sequence
        assert one.id != two.id
        assert one.frame.text

    async def test_no_more_come_than_there_is_room_for(self, broker: Broker) -> None:
        for number in range(5):
            await offer(broker, str(number))
        async with taking(broker, room=2) as taken:
            await taken.came("0", "1")
            taken.queue.add_room(2)
            await taken.came("0", "1", "2", "3")

    async def test_what_is_acknowledged_leaves_and_others_hear_of_it(
        self, broker: Broker, other: Broker, brokers: Brokers
    ) -> None:
        await offer(broker, "one")
        async with taking(broker) as taken, taking(other) as second:
            await until(lambda: taken.jobs or second.jobs)
            winner = taken if taken.jobs else second
            await winner.queue.ack_now(winner.jobs[0])
            await until(lambda: taken.turns == second.turns == [ANN], what="both hear of it")
            assert await winner.queue.turn(winner.jobs[0]) is Turn.GONE
        assert await waits(brokers, broker) == []

    async def test_turn_is_the_oldest_of_its_user(self, broker: Broker) -> None:
        for text in ("one", "two"):
            await offer(broker, text)
        await offer(broker, "his", user="bob")
        async with taking(broker) as taken:
            one, two, his = await taken.came("one", "two", "his")
            turn = taken.queue.turn

            async def becomes(job: Job, expected: Turn) -> None:
                async with asyncio.timeout(10):
                    while await turn(job) is not expected:
                        await asyncio.sleep(0.01)

            await becomes(one, Turn.NOW)
            await becomes(his, Turn.NOW)
            assert await turn(two) is Turn.LATER
            await taken.queue.ack_now(one)
            await becomes(two, Turn.NOW)
            await becomes(one, Turn.GONE)

    async def test_what_is_given_back_comes_again(self, broker: Broker) -> None:
        await offer(broker, "one")
        async with taking(broker) as taken:
            (first,) = await taken.came("one")
            taken.queue.give_back(first, 0.05)
            _, again = await taken.came("one", "one")
        assert (again.sequence, again.deliveries, again.unstarted) == (first.sequence, 2, False)
        assert again.id == first.id

    async def test_what_gives_no_sign_of_life_comes_again(self, broker: Broker) -> None:
        for text in ("silent", "alive"):
            await offer(broker, text)
        async with taking(broker, ack_wait=0.5) as taken:
            silent, alive = await taken.came("silent", "alive")
            while silent.sequence not in [job.sequence for job in taken.jobs[2:]]:
                taken.queue.extend(alive)
                await asyncio.sleep(0.05)
        assert alive.sequence not in [job.sequence for job in taken.jobs[2:]]

    async def test_what_a_worker_leaves_goes_to_another(
        self, broker: Broker, other: Broker
    ) -> None:
        await offer(broker, "one")
        async with taking(broker) as taken:
            (job,) = await taken.came("one")
            taken.queue.give_back(job, 0.0)
            await taken.queue.close()
            async with taking(other) as second:
                await second.came("one")

    async def test_histories_are_shared_and_forgotten(self, broker: Broker, other: Broker) -> None:
        await offer(broker, "one")
        async with taking(broker) as taken:
            (job,) = await taken.came("one")
            assert await taken.queue.history(job) == History()
            await taken.queue.note(job, History(2, 3, started=True))
            second = Taken(other, 30.0)
            assert await second.queue.history(job) == History(2, 3, started=True)
            await second.queue.forget(job)
            await second.queue.forget(job)
            assert await taken.queue.history(job) == History()
            await second.queue.close()


class TestDeadLetters:
    async def fill(self, broker: Broker, count: int = 3) -> None:
        for number in range(count):
            inbox = Inbox("orders" if number % 2 == 0 else "service1", "ann")
            await broker.dead_letters.add(inbox, b"%d" % number, {"Ws-Attempts": "5"}, f"{number}")

    async def test_are_read_page_by_page(self, broker: Broker, other: Broker) -> None:
        await self.fill(broker, 5)
        entries, more = await other.dead_letters.read(None, 0, 3)
        assert [entry.payload for entry in entries] == [b"0", b"1", b"2"]
        assert more
        assert entries[0].headers["Ws-Attempts"] == "5"
        assert entries[0].time
        rest, more = await other.dead_letters.read(None, entries[-1].offset, 3)
        assert [entry.payload for entry in rest] == [b"3", b"4"]
        assert not more
        own, _ = await other.dead_letters.read("service1", 0, 10)
        assert [
            e.inbox for e in (await other.dead_letters.read(None, 0, 10, own[0].inbox.user)).entries
        ] == [
            e.inbox
            for e in (await other.dead_letters.read(None, 0, 10)).entries
            if e.inbox.user == own[0].inbox.user
        ]
        assert [(entry.inbox.service, entry.payload) for entry in own] == [
            ("service1", b"1"),
            ("service1", b"3"),
        ]

    async def test_are_read_by_user(self, broker: Broker) -> None:
        await self.fill(broker, 2)
        for name in ("an", "ann.x", "*"):
            await broker.dead_letters.add(
                Inbox("orders", name), b"x", {}, f"of-{len(name)}-{name!r}"
            )
        read = broker.dead_letters.read
        assert [e.inbox.service for e in (await read(None, 0, 10, "ann"))[0]] == [
            "orders",
            "service1",
        ]
        assert [e.inbox for e in (await read("service1", 0, 10, "ann"))[0]] == [
            Inbox("service1", "ann")
        ]
        assert [e.inbox.user for e in (await read(None, 0, 10, "*"))[0]] == ["*"]
        with pytest.raises(NameRefused):
            await read(None, 0, 10, "")

    async def test_are_stored_once(self, broker: Broker) -> None:
        await self.fill(broker, 1)
        await self.fill(broker, 1)
        assert len((await broker.dead_letters.read(None, 0, 10)).entries) == 1

    async def test_are_found_and_removed(self, broker: Broker) -> None:
        await self.fill(broker, 2)
        first = (await broker.dead_letters.read(None, 0, 10)).entries[0]
        assert await broker.dead_letters.find(first.offset) == first
        await broker.dead_letters.remove(first.offset)
        await broker.dead_letters.remove(first.offset)
        assert await broker.dead_letters.find(first.offset) is None
        assert len((await broker.dead_letters.read(None, 0, 10)).entries) == 1

    async def test_too_big_a_one_is_refused(self, broker: Broker) -> None:
        payload = bytes(broker.dead_letters.max_size + 1)
        with pytest.raises(MessageTooBig):
            await broker.dead_letters.add(ANN, payload, {}, "1")

    async def test_go_back_into_the_queue_once(self, broker: Broker, brokers: Brokers) -> None:
        for _ in range(2):
            await broker.dead_letters.requeue(ANN, b"again", {"Ws-Frame": "text"}, "retry")
        assert await waits(brokers, broker) == [b"again"]


@pytest.mark.usefixtures("no_services")
class TestWorker:
    """The real worker, on each broker."""

    def serve(self, handler: Callable[[Message], Any], **options: Any) -> None:
        policy = RetryPolicy(attempts=2, initial=0.01, cap=0.01)
        registry.service("orders", retry=policy, **options)(handler)

    async def test_answers_in_order(self, broker: Broker) -> None:
        seen: list[str] = []

        async def handler(message: Message) -> None:
            seen.append(f"{message.user_name} {message.text}")
            await message.reply(text=message.text.upper())

        self.serve(handler)
        for text in ("a", "b", "c"):
            await offer(broker, text)
            await offer(broker, text, user="bob")
        async with serving(broker) as worker:
            await until(lambda: worker.counts["done"] == 6)
        for user in ("ann", "bob"):
            assert [one for one in seen if one.startswith(user)] == [f"{user} {t}" for t in "abc"]
            assert [m.payload for m in await answers(broker, user)] == [b"A", b"B", b"C"]

    async def test_retries_refuses_and_sets_aside(self, broker: Broker, brokers: Brokers) -> None:
        tries: list[str] = []

        def handler(message: Message) -> None:
            tries.append(f"{message.text} {message.attempt}")
            if message.text == "later" and message.attempt == 1:
                raise Retry(after=0.01)
            if message.text == "wrong":
                raise Reject("wrong", code="no")
            if message.text == "poison":
                raise ValueError("poison")

        self.serve(handler)
        for text in ("later", "wrong", "poison", "fine"):
            await offer(broker, text, Ws_Client_Id=text)
        async with serving(broker) as worker:
            await until(lambda: worker.counts["done"] == 2 and worker.in_hand == 0)
        assert tries == ["later 1", "later 2", "wrong 1", "poison 1", "poison 2", "fine 1"]
        assert worker.counts == {"done": 2, "retried": 2, "rejected": 1, "dead-lettered": 1}
        assert await waits(brokers, broker) == []
        (letter,) = [letter async for letter in deadletters.letters(broker)]
        assert (letter.payload, letter.attempts) == (b"poison", 2)
        assert "ValueError: poison" in letter.error
        assert {m.reply_to: m.error for m in await answers(broker)} == {
            "wrong": "no",
            "poison": "failed",
        }

        await deadletters.retry(broker, letter)
        async with serving(broker) as worker:
            await until(lambda: worker.counts["dead-lettered"] == 1)

    async def test_deliveries_to_nobody_after_the_mark_are_not_attempts(
        self, broker: Broker
    ) -> None:
        """Each was counted as if a handler had begun and ended its process."""
        self.serve(lambda message: None)
        await offer(broker, "poison")
        async with taking(broker) as taken:
            await taken.came("poison")
            await taken.queue.note(taken.jobs[0], History(0, 3, started=True))
            for count in range(2, 6):
                taken.queue.give_back(taken.jobs[-1], 0.01)
                await taken.came(*["poison"] * count)
            taken.queue.give_back(taken.jobs[-1], 0.01)
        async with serving(broker) as worker:
            await until(lambda: worker.counts["dead-lettered"] == 1)
        (letter,) = [letter async for letter in deadletters.letters(broker)]
        assert letter.attempts == 3

    async def test_two_workers_keep_a_users_order(self, broker: Broker, other: Broker) -> None:
        seen: list[tuple[str, int]] = []
        busy: set[str] = set()

        async def handler(message: Message) -> None:
            assert message.user_name not in busy
            busy.add(message.user_name)
            await asyncio.sleep(0.001)
            seen.append((message.user_name, message.json()))
            busy.remove(message.user_name)

        self.serve(handler)
        for number in range(10):
            for user in ("ann", "bob", "carol"):
                await offer(broker, str(number), user=user)
        async with serving(broker) as first, serving(other) as second:
            await until(lambda: first.counts["done"] + second.counts["done"] == 30, 30)
        for user in ("ann", "bob", "carol"):
            assert [number for who, number in seen if who == user] == list(range(10))
