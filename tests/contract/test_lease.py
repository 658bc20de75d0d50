"""A lease: one holder at a time, on every broker."""

from __future__ import annotations

import asyncio

from tests.contract.conftest import Brokers
from tests.support import until


async def test_one_of_many_has_it(brokers: Brokers) -> None:
    leases = [(await brokers.open()).lease("events", f"p{number}") for number in range(4)]
    held = await asyncio.gather(*(lease.renew() for lease in leases))
    assert sorted(held) == [False, False, False, True]
    assert [lease.held for lease in leases] == held
    again = await asyncio.gather(*(lease.renew() for lease in leases))
    assert again == held


async def test_leases_of_different_names_are_independent(brokers: Brokers) -> None:
    broker = await brokers.open()
    assert await broker.lease("events", "a").renew()
    assert await broker.lease("other", "b").renew()


async def test_who_releases_it_lets_another_have_it_at_once(brokers: Brokers) -> None:
    first, second = [(await brokers.open()).lease("events", name) for name in "ab"]
    assert await first.renew()
    assert not await second.renew()
    await first.release()
    assert not first.held
    assert await second.renew()
    await first.release()
    assert await second.renew()
    assert not await first.renew()


async def test_who_does_not_renew_it_loses_it(brokers: Brokers) -> None:
    brokers.settings.WSGATEWAY_ROSTER_TTL = 1.0
    first, second = [(await brokers.open()).lease("events", name) for name in "ab"]
    assert await first.renew()
    taken = False
    while not taken:
        taken = await second.renew()
        assert not (taken and first.held), "both have it"
        await asyncio.sleep(0.02)
    assert not await first.renew()


async def test_who_renews_it_keeps_it(brokers: Brokers) -> None:
    brokers.settings.WSGATEWAY_ROSTER_TTL = 1.0
    first, second = [(await brokers.open()).lease("events", name) for name in "ab"]
    for _ in range(8):
        assert await first.renew()
        await asyncio.sleep(0.25)
        assert first.held
        assert not await second.renew()


async def test_the_same_holder_finds_its_own_entry_again(brokers: Brokers) -> None:
    broker = await brokers.open()
    assert await broker.lease("events", "a").renew()
    assert await broker.lease("events", "a").renew()
    other = broker.lease("events", "b")
    assert not await other.renew()


async def test_dropped_means_not_held_until_it_is_renewed(brokers: Brokers) -> None:
    lease = (await brokers.open()).lease("events", "a")
    await lease.renew()
    lease.drop()
    assert not lease.held
    await until(lambda: not lease.held)
    assert await lease.renew()


async def test_a_term_lasts_until_another_may_have_had_it(brokers: Brokers) -> None:
    first, second = [(await brokers.open()).lease("events", name) for name in "ab"]
    await first.renew()
    term = first.term
    first.drop()
    waiting = asyncio.ensure_future(first.settled(term))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await first.renew()
    assert await waiting
    await first.release()
    assert await first.settled(term) is False
    await second.renew()
    await second.release()
    await first.renew()
    assert first.term > term
    assert not await first.settled(term)
    assert await first.settled(first.term)
