"""What `Broker.watch` and broadcasts promise, on every implementation."""

from __future__ import annotations

import datetime as dt

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, fill
from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import REPLY_TO_HEADER, Stored
from wsgateway.protocol.subjects import Inbox


class TestWatch:
    async def watch(self, broker: Broker, inbox: Inbox) -> list[Stored]:
        seen: list[Stored] = []
        broker.inboxes.watch(inbox, seen.append)
        await broker.inboxes.position()  # an answer proves that the subscription has arrived
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
        end = broker.inboxes.watch(ANN, first.append)
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
                each.inboxes.watch(ANN, seen.append, name)
                await each.inboxes.position()
        everything = await self.watch(broker, ANN)
        await fill(broker, ANN, 20)
        for seen in (everything, *queues):
            await until(lambda seen=seen: len(seen) >= 20, what="twenty messages")
            assert sorted(m.payload for m in seen) == sorted(b"%d" % n for n in range(20))

    async def test_watch_before_open(self, brokers: Brokers, broker: Broker) -> None:
        late = brokers.new()
        seen: list[Stored] = []
        late.inboxes.watch(ANN, seen.append)
        await late.open()
        await late.wait_ready()
        await fill(broker, ANN, 1)
        await until(lambda: seen, what="a message")


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
            await each.inboxes.position()
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
        await broker.inboxes.position()
        early = brokers.new()
        early.broadcast("logout", b"lost")
        broker.broadcast("logout", b"heard")
        await until(lambda: heard, what="one broadcast")
        assert heard == [b"heard"]
