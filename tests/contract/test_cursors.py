"""What cursors promise, on every implementation."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, CAROL, fill
from wsgateway.broker import memory
from wsgateway.broker.base import Broker
from wsgateway.exceptions import (
    QueueFull,
)
from wsgateway.protocol.subjects import Inbox


class TestCursors:
    @pytest.fixture(autouse=True)
    async def _messages(self, broker: Broker) -> None:
        """A cursor beyond the stream's end does not count."""
        await fill(broker, CAROL, 150)

    async def test_saved_and_loaded_by_device(self, broker: Broker, other: Broker) -> None:
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.save_cursor(ANN, "phone", 7)
        assert await other.load_cursor(ANN, "phone") == 7
        for inbox, device in ((ANN, "laptop"), (BOB, "phone"), (Inbox("orders", "ann.x"), "")):
            if device:
                assert await other.load_cursor(inbox, device) == 0

    @pytest.mark.parametrize("device", ["default", "a b", "*", ">", "é" * 100, "."])
    async def test_any_device_name(self, broker: Broker, other: Broker, device: str) -> None:
        await broker.save_cursor(ANN, device, 5)
        assert await other.load_cursor(ANN, device) == 5
        assert await other.load_cursor(ANN, "another") == 0

    async def test_never_backwards(self, broker: Broker, other: Broker) -> None:
        """The broker that wrote the cursor itself once moved it back."""
        for writer, offset, expected in (
            (broker, 10, 10),
            (broker, 3, 10),
            (other, 4, 10),
            (other, 20, 20),
            (broker, 15, 20),
            (broker, 21, 21),
        ):
            await writer.save_cursor(ANN, "phone", offset)
            assert await broker.load_cursor(ANN, "phone") == expected
            assert await other.load_cursor(ANN, "phone") == expected

    async def test_many_writers_at_once(self, brokers: Brokers) -> None:
        writers = [await brokers.open() for _ in range(4)]
        for base in (0, 100):
            await asyncio.gather(
                *(w.save_cursor(ANN, "phone", base + n) for n, w in enumerate(writers, 1))
            )
            assert await writers[0].load_cursor(ANN, "phone") == base + 4

    async def test_of_another_epoch_is_not_known(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        await broker.save_cursor(ANN, "phone", 100)
        assert await other.load_cursor(ANN, "phone") == 100
        await brokers.renew(broker)
        for each in (broker, other):
            await each.inboxes.position()
            assert await each.load_cursor(ANN, "phone") == 0
        await fill(broker, ANN, 2)
        await broker.save_cursor(ANN, "phone", 2)
        await other.save_cursor(ANN, "phone", 1)
        assert await other.load_cursor(ANN, "phone") == 2

    async def test_offset_of_an_earlier_epoch_is_not_saved(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """What a client confirmed of the stream before counted for the new one."""
        before = broker.inboxes.epoch
        await broker.save_cursor(ANN, "phone", 100, epoch=before)
        assert await broker.load_cursor(ANN, "phone") == 100
        await brokers.renew(broker)
        await fill(broker, ANN, 150)
        await broker.inboxes.position()
        await broker.save_cursor(ANN, "phone", 120, epoch=before)
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.save_cursor(ANN, "phone", 5, epoch=broker.inboxes.epoch)
        assert await broker.load_cursor(ANN, "phone") == 5

    async def test_dropped(self, broker: Broker, other: Broker) -> None:
        for each in (broker, other):
            await each.save_cursor(ANN, "phone", 100)
        await broker.drop_cursor(ANN, "phone")
        await broker.drop_cursor(ANN, "phone")
        await broker.drop_cursor(ANN, "never seen")
        for each in (broker, other):
            assert await each.load_cursor(ANN, "phone") == 0
        await other.save_cursor(ANN, "phone", 3)
        assert await broker.load_cursor(ANN, "phone") == 3

    async def test_bucket_that_is_full_keeps_nobody_out(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """What is full can still be dropped, so a cursor beyond the end refuses no connection."""
        if brokers.settings.PUBSUB_BROKER == "memory":
            pytest.skip("it has no limit")
        last = (await broker.inboxes.position()).last
        await broker.save_cursor(ANN, "phone", last + 10)
        await broker.save_cursor(ANN, "laptop", last)
        stream = f"KV_{broker.subjects.upper}_CURSORS"
        api = broker.jetstream.api  # type: ignore[attr-defined]
        info = await api(f"STREAM.INFO.{stream}")
        full = {**info["config"], "max_bytes": info["state"]["bytes"]}
        await api(f"STREAM.UPDATE.{stream}", full)
        with pytest.raises(QueueFull):
            await broker.save_cursor(ANN, "tablet", last)
        assert await broker.load_cursor(ANN, "phone") == 0
        await broker.drop_cursor(ANN, "laptop")
        assert await broker.load_cursor(ANN, "laptop") == 0
        await broker.save_cursor(ANN, "tablet", last)

    async def test_least_recently_used_goes_at_the_limit(self, brokers: Brokers) -> None:
        """Any client could fill the bucket with devices that it made up."""
        brokers.settings.WSGATEWAY_MAX_DEVICES_PER_USER = 3
        memory.reset_shared_store()
        broker, other = await brokers.open(), await brokers.open()
        await fill(broker, ANN, 10)
        await broker.save_cursor(BOB, "phone", 1)
        for number, device in enumerate("abc", 1):
            await (broker if number % 2 else other).save_cursor(ANN, device, number)
        await other.save_cursor(ANN, "a", 5)  # used again: b is the oldest now
        for device in ("d", "e"):
            await broker.save_cursor(ANN, device, 7)
        found = {device: await other.load_cursor(ANN, device) for device in "abcde"}
        assert found == {"a": 5, "b": 0, "c": 0, "d": 7, "e": 7}
        assert await other.load_cursor(BOB, "phone") == 1
        # A device that lost its cursor may get a new one, even where the old one was remembered.
        await other.save_cursor(ANN, "b", 2)
        assert await broker.load_cursor(ANN, "b") == 2
        assert await broker.load_cursor(ANN, "a") == 0


class TestCursorsAfterARestore:
    @pytest.fixture(autouse=True)
    def _on_disk(self, brokers: Brokers) -> None:
        """Older servers back nothing up that is in memory."""
        brokers.settings.WSGATEWAY_STORAGE = "file"

    async def test_beyond_the_streams_end_is_dropped(
        self, brokers: Brokers, broker: Broker, other: Broker
    ) -> None:
        """The stream came from a backup: the device got nothing of what was stored afterwards."""
        backup = await brokers.back_up(broker)
        last = (await fill(broker, ANN, 5))[-1]
        for each in (broker, other):
            await each.save_cursor(ANN, "phone", last)
        await brokers.restore(broker, backup)
        assert await other.load_cursor(ANN, "phone") == 0
        # Nor does it come back once the stream is as long again.
        await fill(broker, ANN, 10)
        for each in (broker, other):
            assert await each.load_cursor(ANN, "phone") == 0

    async def test_may_be_saved_again_below_one_that_the_stream_lost(
        self, brokers: Brokers, broker: Broker
    ) -> None:
        """It never moved backwards, so a later connection skipped what lay between."""
        backup = await brokers.back_up(broker)
        receipts = await fill(broker, ANN, 5)
        await broker.save_cursor(ANN, "phone", receipts[-1])
        await brokers.restore(broker, backup)
        await broker.inboxes.position()  # as each sweep asks
        await fill(broker, ANN, 1)
        await broker.load_cursor(ANN, "phone")
        await fill(broker, ANN, 10)
        await broker.save_cursor(ANN, "phone", receipts[0])
        assert await broker.load_cursor(ANN, "phone") == receipts[0]
