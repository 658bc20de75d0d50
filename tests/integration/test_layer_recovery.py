"""Members of durable groups while the inbox stream is replaced, or loses its end."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest

from tests.integration.layers import drain, layers, nothing_comes
from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import Position
from wsgateway.broker.subscriptions import LogSubscriptions
from wsgateway.protocol import window as inbox

GROUP = "room"


@pytest.fixture(autouse=True)
def durable(settings: Any) -> None:
    settings.WSGATEWAY_DURABLE_GROUPS = [GROUP]
    settings.WSGATEWAY_STORAGE = "file"
    settings.WSGATEWAY_BROKER_TIMEOUT = 20.0


def connection() -> Connection:
    """The one that this loop's layers share."""
    [found] = [each for each in runtime.connections() if each.loop is asyncio.get_running_loop()]
    return found


async def do_nothing(log: object, *, thorough: bool) -> None:
    """Stand for a sweep."""


async def see_another_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep once, as if the stream had been replaced by one with the same messages."""
    position = connection().broker.inboxes.position

    async def elsewhere() -> Position:
        return (await position())._replace(epoch="another")

    monkeypatch.setattr(connection().broker.inboxes, "position", elsewhere)
    await connection().subscriptions.sweep(thorough=False)


@pytest.mark.parametrize(("since", "blind"), [(2, False), (30, False), (30, True)])
async def test_server_that_lost_the_streams_end(
    monkeypatch: pytest.MonkeyPatch,
    own_server: EmbeddedServer,
    prefix: str,
    since: int,
    blind: bool,
) -> None:
    """What was stored between the lost end and the moment that this was noticed never arrived.

    *blind*: the process comes back too late to see old offsets given out again.
    """
    if blind:
        monkeypatch.setattr(inbox, "later", lambda one, other: False)
    async with layers(own_server.url, prefix) as make:
        mine, other = make(), make()
        channel = await mine.new_channel()
        await mine.group_add(GROUP, channel)
        for number in range(2):
            await other.group_send(GROUP, {"type": "x", "n": number})
        assert await drain(mine, channel, 2) == [0, 1]
        broker, subscriptions = connection().broker, connection().subscriptions
        sweep = LogSubscriptions.sweep
        (folder,) = own_server.store.rglob(broker.subjects.stream("recv"))
        copy = own_server.store / "copy"
        await asyncio.to_thread(own_server.stop)
        shutil.copytree(folder, copy)
        await own_server.astart()
        for number in range(2, 12):
            await other.group_send(GROUP, {"type": "x", "n": number})
        assert await drain(mine, channel, 10) == list(range(2, 12))
        if blind:
            monkeypatch.setattr(LogSubscriptions, "sweep", do_nothing)
        await asyncio.to_thread(own_server.stop)
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        await own_server.astart()
        for number in range(100, 100 + since):
            await other.group_send(GROUP, {"type": "x", "n": number})
        if blind:
            # Those beyond the old end come by themselves; the others after the look.
            jumped = await drain(mine, channel, since - 10)
            assert jumped == list(range(110, 100 + since))
            monkeypatch.setattr(LogSubscriptions, "sweep", sweep)
            await subscriptions.sweep(thorough=True)
            assert await drain(mine, channel, 10) == list(range(100, 110))
            return
        got: list[int] = []
        while 100 + since - 1 not in got or 100 not in got:
            got += await drain(mine, channel, 1)
        assert set(got) == set(range(100, 100 + since))
    runtime.stop_background()


async def test_fetch_that_outlasts_the_stream(
    monkeypatch: pytest.MonkeyPatch, nats_settings: Any, prefix: str
) -> None:
    """What it read counted for the new stream, whose first messages were passed over."""
    async with layers(nats_settings.NATS_BROKER_URL, prefix, capacity=3) as make:
        mine, other = make(), make()
        channel = await mine.new_channel()
        await mine.group_add(GROUP, channel)
        broker = connection().broker
        read_after, held, asked = broker.inboxes.read_after, asyncio.Event(), asyncio.Event()

        async def slow(to: Any, offset: int, **options: Any) -> Any:
            batch = await read_after(to, offset, **options)
            if offset:
                asked.set()
                await held.wait()
            return batch

        for number in range(9):
            await other.group_send(GROUP, {"type": "x", "n": number})
        monkeypatch.setattr(broker.inboxes, "read_after", slow)
        assert await drain(mine, channel, 3) == [0, 1, 2]  # so there is room for more
        await asyncio.wait_for(asked.wait(), 10)
        await see_another_epoch(monkeypatch)
        held.set()
        assert await drain(mine, channel, 9) == list(range(9))
        await nothing_comes(mine, channel, "other")


async def test_message_taken_late_makes_no_room_in_the_new_stream(
    monkeypatch: pytest.MonkeyPatch, nats_settings: Any, prefix: str
) -> None:
    """It counted as the same offset of the new stream, and what is before that never came."""
    async with layers(nats_settings.NATS_BROKER_URL, prefix) as make:
        mine, other = make(), make()
        channel = await mine.new_channel()
        await mine.group_add(GROUP, channel)
        for number in range(5):
            await other.group_send(GROUP, {"type": "x", "n": number})
        assert await drain(mine, channel, 4) == [0, 1, 2, 3]
        await see_another_epoch(monkeypatch)
        [subscription] = mine.local.groups.by_name[GROUP].subscriptions.values()
        assert await drain(mine, channel, 1) == [4]  # of before: it waited in the mailbox
        assert subscription.taken == 0
        assert await drain(mine, channel, 5) == list(range(5))
        assert subscription.taken == 5
