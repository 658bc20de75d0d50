"""Where a resumed client begins, and when ``recovered: true`` is proved; on every broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.conftest import Brokers
from tests.contract.inboxes import ANN, BOB, CAROL, eventually, fill, offsets
from wsgateway.broker.base import Broker
from wsgateway.broker.recovery import find_start
from wsgateway.protocol.v1 import Reason, Resume


async def resumed(broker: Broker, offset: int, epoch: str | None = None) -> Reason | None:
    """Return the reason that a client hears which resumes from *offset*; None: recovered."""
    claim = Resume(None, epoch or broker.inboxes.epoch, offset)
    start = await find_start(broker.inboxes, ANN, claim, 0)
    assert start.epoch == (await broker.inboxes.position()).epoch
    assert start.offset in (offset, 0)
    return start.reason


async def beginning(broker: Broker) -> int:
    """Return the position of a client that found its inbox empty."""
    start = await find_start(broker.inboxes, ANN, Resume(), 0)
    assert start.reason is Reason.NEW
    return start.offset


async def test_everything_is_still_there(broker: Broker) -> None:
    await fill(broker, BOB, 3)
    begun = await beginning(broker)
    assert begun == 3
    mine = await fill(broker, ANN, 5)
    for offset in (0, begun, *mine):
        assert await resumed(broker, offset) is None


async def test_other_epoch_and_beyond_the_end(brokers: Brokers, broker: Broker) -> None:
    mine = await fill(broker, ANN, 5)
    assert await resumed(broker, mine[-1], "another") is Reason.EPOCH
    assert await resumed(broker, mine[-1] + 1) is Reason.AHEAD
    before = broker.inboxes.epoch
    await brokers.renew(broker)
    await fill(broker, ANN, 9)
    assert await resumed(broker, mine[-1], before) is Reason.EPOCH


async def test_epoch_of_a_client_whose_delivery_began_again(broker: Broker) -> None:
    mine = await fill(broker, ANN, 3)
    assert await resumed(broker, mine[0], f"{broker.inboxes.epoch}~2") is None


async def test_stream_that_keeps_fewer_than_the_setting_says(
    brokers: Brokers, broker: Broker
) -> None:
    """The setting was believed: ``recovered: true`` with 25 of 30 gone."""
    await fill(broker, BOB, 1)
    begun = await beginning(broker)
    await brokers.keep(broker, 5)
    mine = await fill(broker, ANN, 30)
    for offset in (begun, *mine[:24]):
        assert await resumed(broker, offset) is Reason.TRIMMED
    for offset in mine[24:]:  # the 25th is gone, but nothing that came after it
        assert await resumed(broker, offset) is None


async def test_empty_position_is_proved_by_few_messages_in_the_stream(
    brokers: Brokers, broker: Broker
) -> None:
    await brokers.keep(broker, 5)
    await fill(broker, BOB, 1)
    begun = await beginning(broker)
    await fill(broker, BOB, 3)
    mine = await fill(broker, ANN, 2)
    assert await resumed(broker, begun) is None
    # More came than the inbox keeps, but nothing is gone: there are no gaps.
    await fill(broker, CAROL, 3)
    assert await resumed(broker, begun) is None
    # Now another inbox is trimmed; what went could have been this one's.
    await fill(broker, CAROL, 30)
    assert await resumed(broker, begun) is Reason.TRIMMED
    assert await resumed(broker, mine[0]) is None


async def test_what_passed_its_own_time_to_live_is_not_missing(broker: Broker) -> None:
    await fill(broker, BOB, 1)
    oldest = (await fill(broker, ANN, 1))[0]
    short = (await broker.publish(ANN, b"short", ttl=1)).offset
    between = (await broker.publish(ANN, b"short too", ttl=1)).offset

    async def gone() -> bool:
        return await offsets(broker, ANN) == [oldest]

    await eventually(gone, "both are gone")
    for offset in (oldest, short, between):
        assert await resumed(broker, offset) is None
    await fill(broker, ANN, 2)
    assert await resumed(broker, short) is None


async def test_too_few_left_to_tell_trimmed_from_expired(brokers: Brokers, broker: Broker) -> None:
    """The limit had been reached, and then what remained passed its time to live."""
    await brokers.keep(broker, 3)
    await fill(broker, BOB, 1)
    begun = await beginning(broker)
    for _ in range(6):
        await broker.publish(ANN, b"x", ttl=1)

    async def gone() -> bool:
        return await broker.inboxes.count(ANN) == 0

    await eventually(gone, "all are gone")
    await fill(broker, ANN, 1)
    assert await resumed(broker, begun) is Reason.TRIMMED


async def test_age_has_removed_what_came_after(brokers: Brokers) -> None:
    brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 1.0
    broker = await brokers.open()
    await fill(broker, BOB, 1)
    begun = await beginning(broker)
    mine = await fill(broker, ANN, 2)

    async def gone() -> bool:
        return await broker.inboxes.count(ANN) == 0

    await eventually(gone, "both are gone")
    for offset in (begun, mine[0]):
        assert await resumed(broker, offset) is Reason.TRIMMED
    assert await resumed(broker, mine[1]) is None  # the stream's end: nothing came after


@pytest.fixture
async def nats(brokers: Brokers) -> Any:
    """A broker on NATS whose stream keeps messages for a second; for what memory has not."""
    if brokers.settings.PUBSUB_BROKER == "memory":
        pytest.skip("the broker in memory has neither")
    brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 1.0
    return await brokers.open()


@pytest.mark.parametrize("whose", [ANN, BOB])
async def test_message_that_lives_for_ever_proves_nothing(nats: Any, whose: Any) -> None:
    """It outlives the age limit, which has removed what came after it."""
    subject = nats.subjects.recv(whose)  # as any NATS client may
    eternal = await nats.jetstream.publish(subject, b"x", {"Nats-TTL": "never"})
    mine = await fill(nats, ANN, 3)

    async def gone() -> bool:
        return await offsets(nats, ANN, eternal.offset) == []

    await eventually(gone, "the others are gone")
    assert (await nats.inboxes.position()).first == mine[-1] + 1
    for offset in (eternal.offset, mine[0]):
        assert await resumed(nats, offset) is Reason.TRIMMED
    await fill(nats, ANN, 1)
    for offset in (eternal.offset, mine[0]):
        assert await resumed(nats, offset) is Reason.TRIMMED
    assert await resumed(nats, mine[-1]) is None


async def test_message_that_lives_for_ever_once_the_age_limit_was_raised(
    brokers: Brokers, nats: Any
) -> None:
    """It is younger than the limit now, but outlived what came after it before."""
    subject = nats.subjects.recv(ANN)
    eternal = await nats.jetstream.publish(subject, b"x", {"Nats-TTL": "never"})
    await fill(nats, ANN, 3)

    async def gone() -> bool:
        return await offsets(nats, ANN, eternal.offset) == []

    await eventually(gone, "the others are gone")
    brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    broker = await brokers.open()
    await broker.set_up()
    await broker.inboxes.position()
    assert await resumed(broker, eternal.offset) is Reason.TRIMMED


async def test_what_an_operator_deletes_is_not_missing(brokers: Brokers, broker: Broker) -> None:
    if brokers.settings.PUBSUB_BROKER == "memory":
        pytest.skip("nobody deletes from memory")
    stream = broker.subjects.stream("recv")
    mine = await fill(broker, ANN, 6)
    for offset in (mine[1], mine[3]):
        await broker.jetstream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": offset})  # type: ignore[attr-defined]
    for offset in mine:
        assert await resumed(broker, offset) is None


@pytest.mark.parametrize("limit", ["messages", "age"])
async def test_limit_that_was_raised_proves_nothing_of_before(brokers: Brokers, limit: str) -> None:
    """After ``setup_streams`` the stream seemed to have had room for all."""
    if brokers.settings.PUBSUB_BROKER == "memory":
        pytest.skip("limits in memory never change")
    brokers.settings.WSGATEWAY_INBOX_MAX_MESSAGES = 5 if limit == "messages" else 100
    brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 1.0 if limit == "age" else 3600.0
    small: Any = await brokers.open()
    await small.jetstream.publish(small.subjects.recv(BOB), b"x", {"Nats-TTL": "never"})
    begun = await beginning(small)
    mine = await fill(small, ANN, 30)

    async def trimmed() -> bool:
        return int(await small.inboxes.count(ANN)) <= 5

    await eventually(trimmed, "most are gone")
    brokers.settings.WSGATEWAY_INBOX_MAX_MESSAGES = 10_000
    brokers.settings.WSGATEWAY_INBOX_MAX_AGE = 7200.0
    broker = await brokers.open()
    await broker.set_up()
    assert (await broker.inboxes.position()).max_messages == 10_000
    for offset in (begun, mine[5]):
        assert await resumed(broker, offset) is Reason.TRIMMED
    since = await fill(broker, ANN, 20)
    for offset in (begun, mine[5]):
        assert await resumed(broker, offset) is Reason.TRIMMED
    for offset in (mine[-1], since[0]):
        assert await resumed(broker, offset) is None


async def test_bytes_of_the_stream(nats: Any) -> None:
    """A limit of the whole stream removes the oldest messages, whosever they are."""
    stream = nats.subjects.stream("recv")
    info = await nats.jetstream.api(f"STREAM.INFO.{stream}")
    config = {**info["config"], "max_age": 0, "max_bytes": 100_000, "discard": "old"}
    await nats.jetstream.api(f"STREAM.UPDATE.{stream}", config)
    begun = await beginning(nats)
    mine = [(await nats.publish(ANN, bytes(10_000))).offset for _ in range(4)]
    assert await resumed(nats, begun) is None
    for _ in range(8):
        await nats.publish(BOB, bytes(10_000))
    left = await offsets(nats, ANN)
    assert 0 < len(left) < 4
    for offset in (begun, *mine):
        expected = None if offset in left or offset + 1 in left else Reason.TRIMMED
        assert await resumed(nats, offset) is expected
    for _ in range(8):
        await nats.publish(BOB, bytes(10_000))
    assert await offsets(nats, ANN) == []
    assert await resumed(nats, mine[-1]) is Reason.TRIMMED


async def test_new_device_hears_so(broker: Broker) -> None:
    await fill(broker, ANN, 2)
    start = await find_start(broker.inboxes, ANN, Resume(), 0)
    assert (start.offset, start.reason) == (0, Reason.NEW)


async def test_trimmed_while_the_position_is_proved(brokers: Brokers, broker: Broker) -> None:
    """The proof holds for the moment after the messages were read, not for one before."""
    await brokers.keep(broker, 5)
    await fill(broker, BOB, 1)
    begun = await beginning(broker)
    publishing = asyncio.create_task(fill(broker, ANN, 200))
    proofs = []
    while not publishing.done():
        held = await offsets(broker, ANN, begun)
        recovered = await resumed(broker, begun) is None
        now = await offsets(broker, ANN, begun)
        proofs.append((held, recovered, now))
        await asyncio.sleep(0)
    await publishing
    for held, recovered, now in proofs:
        if recovered:  # then what was there before the proof was there from the first message on
            assert not held or held[0] == begun + 1
        elif now:
            assert now[0] > begun + 1
