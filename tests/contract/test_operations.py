"""What operators see and do: `wsgateway.broker.operations`, on every broker."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, CAROL, eventually, fill, offsets
from tests.contract.test_work import taking
from tests.integration.workers import offer
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.operations import InboxState, Queue
from wsgateway.broker.work import History
from wsgateway.protocol.subjects import Inbox


def about_now(time: dt.datetime | None) -> bool:
    return time is not None and abs((dt.datetime.now(dt.UTC) - time).total_seconds()) < 60


class TestCounts:
    async def test_inbox_that_nobody_has_used(self, broker: Broker) -> None:
        assert await broker.operations.counts([]) == {}
        assert await broker.operations.counts([ANN, BOB]) == {ANN: InboxState(), BOB: InboxState()}
        assert await broker.operations.names("orders") == []

    async def test_all_waits_while_no_device_has_a_cursor(self, broker: Broker) -> None:
        await fill(broker, BOB, 2)
        mine = await fill(broker, ANN, 3)
        state = (await broker.operations.counts([ANN]))[ANN]
        assert state == InboxState(3, mine[0], mine[-1], 3, None)

    async def test_what_came_after_the_device_that_is_furthest_waits(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 5)
        await fill(broker, BOB, 5)
        await broker.save_cursor(ANN, "phone", mine[3])
        await broker.save_cursor(ANN, "laptop", mine[1])
        state = (await broker.operations.counts([ANN]))[ANN]
        assert (state.messages, state.waiting) == (5, 1)
        assert about_now(state.last_seen)
        await broker.save_cursor(ANN, "laptop", mine[4])
        assert (await broker.operations.counts([ANN]))[ANN].waiting == 0

    async def test_seen_although_nothing_is_kept(self, broker: Broker) -> None:
        last = (await broker.publish(ANN, b"x", ttl=1)).offset
        await broker.save_cursor(ANN, "phone", last)

        async def gone() -> bool:
            return await broker.inboxes.count(ANN) == 0

        await eventually(gone, "it has expired")
        state = (await broker.operations.counts([ANN]))[ANN]
        assert (state.messages, state.first, state.last, state.waiting) == (0, 0, 0, 0)
        assert about_now(state.last_seen)

    async def test_many_at_once(self, broker: Broker) -> None:
        """Each has its own numbers, the empty ones too, in the order that was asked."""
        inboxes = [Inbox("orders", f"user {number}.{number}") for number in range(300)]
        for number, inbox in enumerate(inboxes[:40]):
            mine = await fill(broker, inbox, number % 4)
            if len(mine) > 1:
                await broker.save_cursor(inbox, "default", mine[1])
        states = await broker.operations.counts([*inboxes, ANN, inboxes[0]])
        assert list(states) == [*inboxes, ANN]
        for number, inbox in enumerate(inboxes[:40]):
            count = number % 4
            waiting = count - 2 if count > 1 else count
            assert (states[inbox].messages, states[inbox].waiting) == (count, waiting)
        assert {states[inbox] for inbox in (*inboxes[40:], ANN)} == {InboxState()}

    async def test_name_that_nobody_can_have_has_nothing(self, broker: Broker) -> None:
        """Django's user names may be longer than ours; one of them spoilt the whole list."""
        mine = await fill(broker, ANN, 1)
        strange = [Inbox("orders", "用" * 150), Inbox("orders", ""), Inbox("", "ann")]
        states = await broker.operations.counts([*strange, ANN])
        assert list(states) == [*strange, ANN]
        assert [states[inbox] for inbox in strange] == [InboxState()] * 3
        assert states[ANN].last == mine[0]
        for inbox in strange:
            assert await broker.operations.devices(inbox) == []

    async def test_cursor_of_another_epoch_counts_as_none(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        last = (await fill(broker, ANN, 9))[-1]
        await broker.save_cursor(ANN, "phone", last)
        before = broker.inboxes.epoch
        await brokers.renew(broker)
        await fill(broker, ANN, 2)
        state = (await broker.operations.counts([ANN]))[ANN]
        assert (state.messages, state.waiting) == (2, 2)
        [device] = await broker.operations.devices(ANN)
        assert (device.offset, device.epoch, device.waiting) == (last, before, 2)


class TestDevices:
    async def test_most_recently_used_first_with_what_waits_for_each(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 6)
        for device, offset in (("phone", mine[1]), ("größe.1", mine[3]), ("tv", mine[5])):
            await broker.save_cursor(ANN, device, offset)
        await broker.save_cursor(BOB, "his", mine[0])
        await broker.save_cursor(ANN, "phone", mine[4])
        found = await broker.operations.devices(ANN)
        assert [(each.device, each.offset, each.waiting) for each in found] == [
            ("phone", mine[4], 1),
            ("tv", mine[5], 0),
            ("größe.1", mine[3], 2),
        ]
        epoch = (await broker.inboxes.position()).epoch
        assert all(each.epoch == epoch and about_now(each.saved) for each in found)
        assert await broker.operations.devices(CAROL) == []


class TestDelete:
    async def test_one_message_and_no_other(self, broker: Broker, other: Broker) -> None:
        mine = await fill(broker, ANN, 3)
        his = await fill(broker, BOB, 1)
        assert await broker.operations.delete(ANN, mine[1])
        assert await offsets(other, ANN) == [mine[0], mine[2]]
        assert not await broker.operations.delete(ANN, mine[1])  # gone
        assert not await broker.operations.delete(ANN, his[0])  # another's
        for offset in (10_000, 0, -1, 2**63, 2**70):
            assert not await broker.operations.delete(ANN, offset)
        assert not await broker.operations.delete(CAROL, mine[0])
        assert await offsets(broker, BOB) == his
        assert await broker.inboxes.count(ANN) == 2

    async def test_purge_leaves_other_inboxes_and_cursors(self, broker: Broker) -> None:
        mine = await fill(broker, ANN, 4)
        his = await fill(broker, BOB, 2)
        await broker.save_cursor(ANN, "phone", mine[2])
        assert await broker.operations.purge(ANN) == 4
        assert await broker.operations.purge(ANN) == 0
        assert await broker.operations.purge(CAROL) == 0
        assert await offsets(broker, BOB) == his
        assert await broker.load_cursor(ANN, "phone") == mine[2]
        assert (await fill(broker, ANN, 1))[0] > mine[-1]


class TestNames:
    async def test_those_with_messages_or_a_cursor_by_name(self, broker: Broker) -> None:
        for user in ("bob", "ann-x", "ann", "ann@example.com", "zoë", "Ann", "ä"):
            await fill(broker, Inbox("orders", user), 1)
        await fill(broker, Inbox("service1", "his"), 1)
        last = (await broker.publish(BOB, b"x")).offset
        for user in ("ann", "only a cursor"):
            await broker.save_cursor(Inbox("orders", user), "phone", last)
        names = broker.operations.names
        expected = sorted(
            ["bob", "ann-x", "ann", "ann@example.com", "zoë", "Ann", "ä", "only a cursor"]
        )
        assert await names("orders") == expected
        assert await names("service1") == ["his"]
        assert await names("orders", prefix="ann") == ["ann", "ann-x", "ann@example.com"]
        assert await names("orders", prefix="ann@") == ["ann@example.com"]
        assert await names("orders", prefix="zo") == ["zoë"]
        for prefix in ("nobody", "x" * 256, "\ud800", "*", ">", "ann.", "."):
            assert await names("orders", prefix=prefix) == []
        for service in ("nothing", "", "x" * 256, "*", ">"):
            assert await names(service) == []

    async def test_pages(self, broker: Broker) -> None:
        users = [f"user-{number:03}" for number in range(25)]
        for user in users:
            await fill(broker, Inbox("orders", user), 1)
        found: list[str] = []
        after = None
        while page := await broker.operations.names("orders", after=after, limit=10):
            assert len(page) <= 10
            found += page
            after = page[-1]
        assert found == users
        await broker.operations.purge(Inbox("orders", users[0]))
        assert (await broker.operations.names("orders", limit=1)) == users[1:2]


class TestStreams:
    async def test_inboxes_and_queues_are_among_them(self, broker: Broker) -> None:
        await fill(broker, ANN, 3)
        await fill(broker, BOB, 1)
        await offer(broker, "x")
        found = {stream.name: stream for stream in await broker.operations.streams()}
        inboxes = found[broker.subjects.stream("recv")]
        assert (inboxes.purpose, inboxes.messages, inboxes.subjects) == ("inboxes", 4, 2)
        assert inboxes.bytes >= 4
        assert (inboxes.last_error, inboxes.differences) == ("", ())
        assert (inboxes.max_age, inboxes.max_per_subject) == (7 * 86400.0, 10_000)
        assert found[broker.subjects.stream("dead")].purpose == "dead letters"
        assert 0.0 <= inboxes.level < 1.0
        assert sum(stream.messages for stream in found.values() if "SEND" in stream.name) == 1


class TestQueues:
    @pytest.fixture
    async def isolated(self, brokers: Brokers) -> Broker:
        """A broker with a stream per service."""
        brokers.settings.WSGATEWAY_SERVICES = ["orders", "prices"]
        return await brokers.open()

    async def of(self, broker: Broker) -> Queue:
        """Return the queue of orders; no other service has anything."""
        found = {queue.service: queue for queue in await broker.operations.queues()}
        for service in found.keys() - {"orders"}:
            assert (found[service].waiting, found[service].oldest) == (0, None)
        return found["orders"]

    async def test_what_waits_and_what_is_in_flight(self, isolated: Broker) -> None:
        queue = await self.of(isolated)
        assert (queue.waiting, queue.in_flight, queue.oldest, queue.dead) == (0, 0, None, 0)
        assert (queue.max_messages, queue.max_per_user) == (1_000_000, 10_000)
        assert [q.service for q in await isolated.operations.queues()] == ["orders", "prices"]
        for number in range(3):
            await offer(isolated, str(number))
        queue = await self.of(isolated)
        assert (queue.waiting, queue.in_flight) == (3, 0)
        assert about_now(queue.oldest)
        assert queue.bytes >= 3
        async with taking(isolated, room=2) as taken:
            first, second = await taken.came("0", "1")
            queue = await self.of(isolated)
            assert (queue.waiting, queue.in_flight) == (3, 2)
            await taken.queue.note(second, History(1, 1))
            await taken.queue.ack_now(first)

            async def settled() -> bool:
                queue = await self.of(isolated)
                return (queue.waiting, queue.in_flight, queue.failed) == (2, 1, 1)

            await eventually(settled, "one has gone, one has failed once")

    async def test_dead_letters_of_the_service(self, isolated: Broker) -> None:
        for service in ("orders", "orders", "prices"):
            inbox = Inbox(service, "ann")
            await isolated.dead_letters.add(
                inbox, b"x", {}, f"{service}-{asyncio.get_running_loop().time()}"
            )
        found = {queue.service: queue.dead for queue in await isolated.operations.queues()}
        assert found == {"orders": 2, "prices": 1}

    async def test_services_that_share_a_stream(self, brokers: Brokers) -> None:
        """In the open mode; which services there are shows once they have workers."""
        brokers.settings.WSGATEWAY_SERVICES = ["*"]
        broker = await brokers.open()
        await offer(broker, "x")
        async with taking(broker) as taken:
            await taken.came("x")
            queue = await self.of(broker)
            assert (queue.waiting, queue.in_flight) == (1, 1)


class TestPause:
    async def test_workers_are_told_and_get_nothing_until_it_is_resumed(
        self, broker: Broker, other: Broker
    ) -> None:
        told: list[str] = []
        queue = other.work_queue(
            "orders", lambda job: None, lambda inbox: None, 30.0, lambda: told.append("paused")
        )
        queue.open(0)
        await queue.ready.wait()
        async with taking(broker) as taken:
            assert await broker.operations.pause("orders")
            assert await broker.operations.pause("orders")
            await until(lambda: told, what="workers are told")
            await offer(broker, "one")
            assert await broker.operations.resume("orders")
            assert not await broker.operations.resume("orders")
            await queue.close()
            await taken.came("one")

    async def test_resume_wins_over_an_older_reason(self, broker: Broker) -> None:
        operations = broker.operations

        async def is_paused() -> bool:
            [queue] = [each for each in await operations.queues() if each.service == "orders"]
            return queue.paused

        async with taking(broker):
            assert await operations.pause("orders", age=60.0)
            assert await operations.resume("orders")
            assert not await operations.pause("orders", age=60.0)
            assert not await is_paused()
            assert await operations.pause("orders", age=0.0)
            assert await is_paused()
            await operations.resume("orders")
