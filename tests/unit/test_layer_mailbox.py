"""One channel's mailbox: bounded, ordered, nothing lost when a waiting reader is cancelled."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from wsgateway.layer.mailbox import Mailbox

SEED = random.SystemRandom().randrange(2**32)


def mailbox(capacity: int = 10, limit: int = 0) -> Mailbox[int]:
    """A mailbox in which numbers below *limit* are expired."""
    return Mailbox(capacity, lambda item: item < limit)


async def get(box: Mailbox[int]) -> int:
    """Take the next message as the layer's readers do; wait for one."""
    while (item := box.take()) is None:
        await box.wait()
    return item


def test_refuses_the_newest_at_capacity() -> None:
    """channels_redis drops the oldest here, which tears holes into what was already accepted."""
    box = mailbox(3)
    assert [box.put(n) for n in range(5)] == [True, True, True, False, False]
    assert [box.take() for _ in range(4)] == [0, 1, 2, None]


def test_expired_messages_make_room() -> None:
    box = mailbox(2, limit=2)
    assert [box.put(n) for n in (0, 1, 5, 6, 7)] == [True, True, True, True, False]
    assert box.is_full()
    assert [box.take(), box.take()] == [5, 6]


async def test_cancelling_the_one_that_was_woken_wakes_the_next() -> None:
    box = mailbox()
    first, second = (asyncio.create_task(get(box)) for _ in range(2))
    await asyncio.sleep(0)
    box.put(7)  # wakes the first, which does not run before it is cancelled
    first.cancel()
    async with asyncio.timeout(10):
        assert await second == 7
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_thousands_of_random_cancellations_lose_nothing() -> None:
    chance = random.Random(SEED)
    count = 5000
    box = mailbox(count)
    got: list[int] = []
    complete = asyncio.Event()

    async def read() -> None:
        while True:
            got.append(await get(box))
            if len(got) == count:
                complete.set()

    readers = [asyncio.create_task(read()) for _ in range(5)]
    for number in range(count):
        box.put(number)
        if chance.random() < 0.7:
            index = chance.randrange(5)
            readers[index].cancel()
            readers[index] = asyncio.create_task(read())
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await complete.wait()
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert sorted(got) == list(range(count)), f"seed {SEED}"
    assert box.waiting == 0


async def test_another_thread_takes() -> None:
    """The home's thread puts, two loops in threads of their own take: each message once."""
    count = 3000
    box = mailbox(count + 2)
    got: list[list[int]] = [[], []]

    def work(mine: list[int]) -> None:
        async def read() -> None:
            while (item := await get(box)) >= 0:
                mine.append(item)

        asyncio.run(read())

    threads = [threading.Thread(target=work, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for number in range(count):
        box.put(number)
        if number % 50 == 0:
            await asyncio.sleep(0)
    box.put(-1)
    box.put(-1)
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
    assert sorted(got[0] + got[1]) == list(range(count))
    assert all(mine == sorted(mine) for mine in got)
