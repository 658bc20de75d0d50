"""What a client hears about who reads a topic, and every way in which that ends."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support import until
from tests.unit.clients import client_of, gateway
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import GatewayError, Readers, ReadersChanged, Topic
from wsgateway.protocol.subjects import Inbox

__all__ = ["gateway"]  # a fixture

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")


def known(topic: Topic) -> Readers | None:
    return topic.readers  # mypy does not know that it changes


async def test_watch_returns_who_reads_it_and_each_change_is_told(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42", users=[ANN])
    told: list[ReadersChanged] = []
    async with client_of(gateway) as client:
        topic = client.topic("room.42", on_readers=told.append)
        assert known(topic) is None
        assert await topic.watch() == Readers((ANN,), None, True)
        await room.change_users("ann", "bob")
        await until(lambda: len(told) == 2)
        assert known(topic) == await topic.watch() == Readers((ANN, BOB), None, True)
        gateway.cut()
        await until(lambda: len(room.watches) == 2)
        assert known(topic) == Readers((ANN, BOB), None, True)
        await until(lambda: bool(room.watchers))
        await room.change_users("bob")
        await until(lambda: len(told) == 3)
        topic.unwatch()
        topic.unwatch()
        await gateway.round_trip()
        assert known(topic) is None
    assert [(change.users, change.joined, change.left) for change in told] == [
        ((ANN,), (ANN,), ()),
        ((ANN, BOB), (BOB,), ()),
        ((BOB,), (), (ANN,)),
    ]
    assert room.unwatched == 1


async def test_cancelled_watch_ends_unless_another_call_waits(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42")
    async with client_of(gateway) as client, client.topic("room.42") as topic:
        room.answers = False
        first, second = (asyncio.create_task(topic.watch()) for _ in range(2))
        await until(lambda: len(room.watches) == 1)
        for watching, unwatched in ((first, 0), (second, 1)):
            watching.cancel()
            await asyncio.wait({watching})
            await gateway.round_trip()
            assert room.unwatched == unwatched
        assert len(room.watches) == 1


async def test_withdrawn_right_is_told_and_not_asked_for_again(gateway: FakeGateway) -> None:
    room = gateway.topic("room.42", users=[ANN])
    errors: list[GatewayError] = []
    told: list[ReadersChanged] = []
    async with client_of(gateway, on_error=errors.append) as client:
        topic = client.topic("room.42", on_readers=told.append)
        await topic.watch()
        await room.withdraw_watches()
        await until(lambda: len(told) == 2)
        assert known(topic) is None
        gateway.cut()
        await until(lambda: bool(room.readers))
        await room.store("the topic goes on")
        assert (await topic.recv()).data == "the topic goes on"
    assert [(error.code, str(error)) for error in errors] == [
        ("forbidden", "cannot watch any more who reads 'room.42': no more")
    ]
    assert told[1] == ReadersChanged(None, None, False, (), (ANN,))
    assert len(room.watches) == 1


@pytest.mark.parametrize("code", ["ended", "closed"])
async def test_end_of_the_topic_is_that_of_the_watch(gateway: FakeGateway, code: str) -> None:
    room = gateway.topic("room.42", users=[ANN])
    told: list[ReadersChanged] = []
    async with client_of(gateway) as client:
        topic = client.topic("room.42", on_readers=told.append)
        await topic.watch()
        other = gateway.topic("room.43", answers=False)
        waits = client.topic("room.43")
        waiting = asyncio.create_task(waits.watch())
        await until(lambda: bool(other.asked))
        closed: list[Topic] = [topic, waits]
        for each in closed if code == "ended" else [client]:
            await each.close()
        for raised in (waiting, topic.watch()):
            with pytest.raises(GatewayError) as caught:
                await raised
            assert caught.value.code == code
        if code == "ended":
            await gateway.round_trip()
            assert room.unwatched == 1
    assert len(told) == 1


async def test_watch_gets_another_token_once_that_of_the_topic_has_expired(
    gateway: FakeGateway,
) -> None:
    room = gateway.topic("room.42", token="t1", users=[ANN])
    asked: list[str] = []

    async def token(name: str) -> str:
        asked.append(name)
        if len(asked) == 2:
            raise OSError("no network")
        if len(asked) > 3:
            raise GatewayError("left", f"not in {name} any more", False)
        return room.token or ""

    async with client_of(gateway) as client, client.topic("room.42", token=token) as topic:
        room.token = "t2"
        assert (await topic.watch()).users == (ANN,)
        assert [frame.token for frame in room.watches] == ["t1", "t2"]
        topic.unwatch()
        room.token = "t3"
        with pytest.raises(GatewayError, match=r"not in room\.42 any more"):
            await topic.watch()
        await room.store("a")
        assert (await topic.recv()).data == "a"


async def test_joined_and_left_add_up_to_the_list_whatever_is_cut(gateway: FakeGateway) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    numbers = random.Random(seed)
    room = gateway.topic("room.42")
    present: set[Inbox] = set()
    wrong: list[ReadersChanged] = []

    def follow(change: ReadersChanged) -> None:
        joined, left = set(change.joined), set(change.left)
        fits = not joined & present and left <= present
        present.update(joined)
        present.difference_update(left)
        if not fits or present != set(change.users or ()):
            wrong.append(change)

    async with client_of(gateway) as client:
        topic = client.topic("room.42", on_readers=follow)
        await topic.watch()
        saboteur = asyncio.create_task(gateway.cut_at_random(numbers, 0.05))
        for _ in range(200):
            await room.change_users(*numbers.sample("abcdefgh", numbers.randint(0, 8)))
            await asyncio.sleep(0.002)
        saboteur.cancel()
        await until(lambda: present == set(room.users))
    assert not wrong
    assert len(room.watches) > 2
