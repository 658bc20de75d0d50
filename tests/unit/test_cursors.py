"""Writing cursors while the broker refuses some, or all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from wsgateway.broker.memory import MemoryBroker
from wsgateway.exceptions import BrokerError, BrokerUnavailable
from wsgateway.gateway.cursors import SAVES_IN_FLIGHT, Cursor, Cursors, Key
from wsgateway.protocol.subjects import Inbox

MANY = 3 * SAVES_IN_FLIGHT


class Broker(MemoryBroker):
    """Refuses what it is told to, once each time."""

    def __init__(self) -> None:
        super().__init__()
        self.store.inboxes.received.last = 1000
        self.refuse: dict[str, BrokerError] = {}
        self.tried = 0

    async def save_cursor(
        self, inbox: Inbox, device: str, offset: int, *, epoch: str | None = None
    ) -> None:
        self.tried += 1
        self._fail(device)
        await super().save_cursor(inbox, device, offset, epoch=epoch)

    async def drop_cursor(self, inbox: Inbox, device: str) -> None:
        self._fail(device)
        await super().drop_cursor(inbox, device)

    def _fail(self, device: str) -> None:
        if device in self.refuse:
            raise self.refuse[device]


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker()
    await broker.open()
    yield broker
    await broker.close()


def key(device: object) -> Key:
    return Inbox("orders", "ann"), str(device)


def moved(cursors: Cursors, broker: Broker, device: object, offset: int) -> Cursor:
    cursor = cursors.acquire(key(device))
    cursors.confirm(cursor, broker.inboxes.epoch, offset)
    return cursor


async def load(broker: Broker, device: object) -> int:
    return await broker.load_cursor(*key(device))


async def test_one_that_is_refused_does_not_keep_the_others_back(broker: Broker) -> None:
    """The first failure ended each attempt, so those before it in line were never written."""
    cursors = Cursors(broker)
    for number in range(MANY):
        moved(cursors, broker, number, number + 1)
    broker.refuse[str(MANY - 1)] = BrokerError("never")  # the first in line
    for _ in range(2):
        with pytest.raises(BrokerError, match="never"):
            await cursors.flush()
        assert [await load(broker, n) for n in range(MANY - 1)] == list(range(1, MANY))
    broker.refuse.clear()
    await cursors.flush()
    assert await load(broker, MANY - 1) == MANY
    tried = broker.tried
    await cursors.flush()
    assert broker.tried == tried


async def test_broker_that_is_away_is_not_asked_for_each(broker: Broker) -> None:
    cursors = Cursors(broker)
    for number in range(MANY):
        moved(cursors, broker, number, number + 1)
        broker.refuse[str(number)] = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await cursors.flush()
    assert broker.tried == SAVES_IN_FLIGHT
    broker.refuse.clear()
    await cursors.flush()
    assert [await load(broker, n) for n in range(MANY)] == list(range(1, MANY + 1))


async def test_lost_cursor_is_dropped_however_often_that_fails(broker: Broker) -> None:
    """The broker was away at that moment, and kept what a later connection would have skipped."""
    await broker.save_cursor(*key("a"), 100)
    cursors = Cursors(broker)
    cursor = moved(cursors, broker, "a", 100)
    cursors.lose(cursor)
    assert cursor.due
    broker.refuse["a"] = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await cursors.flush()
    assert cursor.due
    cursors.confirm(cursor, broker.inboxes.epoch, 7)
    broker.refuse.clear()
    await cursors.flush()
    assert (cursor.due, await load(broker, "a")) == (False, 7)
