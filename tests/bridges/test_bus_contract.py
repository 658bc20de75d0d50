"""What `Bus` promises, on Kafka and on RabbitMQ."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.bridges.sides import Reader, Side
from tests.support import until
from wsgateway.bridges.bus import Target
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import Server
from wsgateway.bridges.headers import PLACE_HEADER, REASON_HEADER
from wsgateway.broker.embedded import free_port
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.protocol.subjects import encode_token

pytestmark = pytest.mark.timeout(120)

PAYLOADS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "text": "grüße ☃\n".encode(),
    "a megabyte": random.Random(1).randbytes(1_000_000),
}


# -- setting up ----------------------------------------------------------------------------


async def test_set_up_creates_once_and_says_what(side: Side) -> None:
    bus = make_bus(side.bridge())
    first, second = await bus.set_up(), await bus.set_up()
    assert len(first) == len(second) > 3
    assert all(line.startswith("created ") for line in first)
    assert all(" exists: " in line for line in second)


async def test_what_is_missing_is_named_with_the_cure(side: Side) -> None:
    bus = await side.bus(ready=False)
    async with asyncio.timeout(20):
        with pytest.raises(BusMisconfigured, match="setup_bridges"):
            await bus.ready()
        with pytest.raises(BusMisconfigured):
            await bus.produce("orders", "ann", b"x", {})
    await make_bus(side.bridge()).set_up()
    await side.serve("orders")

    async with asyncio.timeout(20):
        await bus.ready()
        await bus.produce("orders", "ann", b"x", {})


async def test_bus_that_is_away_is_unavailable(side: Side) -> None:
    bridge = side.bridge()
    object.__setattr__(bridge, "servers", (Server("127.0.0.1", free_port()),))
    bus = make_bus(bridge)
    with pytest.raises(BusUnavailable):
        await bus.set_up()
    await bus.open()
    try:
        async with asyncio.timeout(20):
            with pytest.raises(BusUnavailable):
                await bus.produce("orders", "ann", b"x", {})
        assert not bus.connected
        waiting = asyncio.create_task(bus.produce("orders", "ann", b"x", {}))
        await asyncio.sleep(0)
    finally:
        await bus.close()
        await bus.close()
    async with asyncio.timeout(2):
        with pytest.raises(BusUnavailable):
            await waiting


# -- client to service ---------------------------------------------------------------------


async def test_payload_and_headers_arrive_as_they_are(side: Side) -> None:
    bus = await side.bus()
    await side.serve("orders")
    headers = {"Ws-Frame": "binary", "Ws-User": "zoë", "Ws-Id": "1"}
    user = encode_token("zoë")
    for payload in PAYLOADS.values():
        await bus.produce("orders", user, payload, headers)
    seen = await side.sent("orders", len(PAYLOADS))
    assert [each.payload for each in seen] == list(PAYLOADS.values())
    for each in seen:
        assert each.headers.items() >= headers.items()
        assert each.key.endswith(user)


async def test_what_is_produced_one_after_the_other_stays_in_order(side: Side) -> None:
    bus = await side.bus()
    await side.serve("orders")

    async def produce(user: str) -> None:
        for number in range(50):
            await bus.produce("orders", user, f"{user} {number}".encode(), {})

    users = ("ann", "bob", "carol")
    await asyncio.gather(*map(produce, users))
    seen = await side.sent("orders", 150)
    for user in users:
        texts = [each.payload.decode() for each in seen if each.payload.startswith(user.encode())]
        assert texts == [f"{user} {number}" for number in range(50)]


async def test_refused_record_harms_no_other(side: Side) -> None:
    bus = await side.bus()
    await side.serve("orders")
    bob, refused, carol = await asyncio.gather(
        bus.produce("orders", "bob", b"1", {}),
        bus.produce("orders", *side.refused, {}),
        bus.produce("orders", "carol", b"2", {}),
        return_exceptions=True,
    )
    assert isinstance(refused, RecordRefused)
    assert bob is carol is None
    await bus.produce("orders", "bob", b"3", {})
    seen = await side.sent("orders", 3)
    assert {each.payload for each in seen} == {b"1", b"2", b"3"}


# -- service to client ---------------------------------------------------------------------


async def test_record_is_handed_out_as_it_is(side: Side) -> None:
    bus = await side.bus()
    reader = Reader(bus)
    for payload in PAYLOADS.values():
        await side.produce("orders.ann", payload, {"Ws-Frame": "text", "X": "zoë"}, id="7")
    found = await reader.until(len(PAYLOADS))
    assert [record.payload for record in found] == list(PAYLOADS.values())
    for record in found:
        assert (record.key, record.target, record.service) == ("orders.ann", "inbox", None)
        assert record.headers.items() >= {"Ws-Frame": "text", "X": "zoë"}.items()
        assert record.id
        assert record.lane
        assert record.place
    await side.produce("room.42", b"x", target="topic")
    found = await reader.until(len(PAYLOADS) + 1)
    assert (found[-1].key, found[-1].target) == ("room.42", "topic")


async def test_order_of_a_key_is_kept(side: Side) -> None:
    bus = await side.bus()
    reader = Reader(bus, room=7)
    keys = [f"orders.{user}" for user in ("ann", "bob", "carol")]
    for number in range(30):
        for key in keys:
            await side.produce(key, f"{number}".encode())
    seen: dict[str, list[int]] = {key: [] for key in keys}
    lanes: dict[str, set[str]] = {key: set() for key in keys}
    for done in range(90):
        record = (await reader.until(done + 1))[done]
        seen[record.key].append(int(record.payload))
        lanes[record.key].add(record.lane)
        reader.ack(record)
    assert list(seen.values()) == [list(range(30))] * 3
    assert all(len(each) == 1 for each in lanes.values())


async def test_what_was_not_acknowledged_comes_again_with_the_same_id(side: Side) -> None:
    first = await side.bus()
    reader = Reader(first)
    for number in range(6):
        await side.produce("orders.ann", f"{number}".encode(), id=f"id-{number}")
    records = list(await reader.until(6))
    reader.ack(*records[:2])
    await first.close()
    assert reader.lost

    second = await side.bus()
    again = Reader(second)
    found = await again.until(4)
    assert again.payloads == ["2", "3", "4", "5"]
    assert [record.id for record in found] == [record.id for record in records[2:]]
    reader.ack(records[5])  # of a bus that is closed: nothing happens
    again.ack(*found)
    await second.close()

    third = await side.bus()
    last = Reader(third)
    await side.produce("orders.ann", b"6")
    await last.until(1)
    assert last.payloads == ["6"]


async def test_no_more_is_handed_out_than_there_is_room_for(side: Side) -> None:
    """A bus may hand out less of one lane, to have room for others."""
    bus = await side.bus()
    reader = Reader(bus, room=8)
    for number in range(30):
        await side.produce("orders.ann", f"{number}".encode())
    await reader.until(2)
    with pytest.raises(TimeoutError):
        await reader.until(9, timeout=0.5)
    done = 0
    while done < 30:
        found = await reader.until(done + 1)
        assert len(found) - done <= 8
        reader.ack(found[done])
        done += 1
    assert reader.payloads == [f"{number}" for number in range(30)]


async def test_record_that_is_set_aside_is_kept_with_the_reason(side: Side) -> None:
    bus = await side.bus()
    reader = Reader(bus)
    await side.produce("wrong key", b"\xff\x00", {"Ws-Frame": "binary"})
    [record] = await reader.until(1)
    await bus.set_aside(record, "the key names nobody; write ☃")
    reader.ack(record)
    [seen] = await side.dead(1)
    assert (seen.key, seen.payload) == ("wrong key", b"\xff\x00")
    assert seen.headers["Ws-Frame"] == "binary"
    assert seen.headers[REASON_HEADER] == "the key names nobody; write ☃"
    assert seen.headers[PLACE_HEADER] == record.place


async def test_two_bridges_share_the_lanes_and_one_takes_over(side: Side) -> None:
    """One bridge got every queue of RabbitMQ, and this test asked only what both got together."""
    first, second = [await side.bus(**side.several_lanes) for _ in range(2)]
    one, other = Reader(first, ack=True), Reader(second, ack=True)

    async def produce(number: int, payload: str) -> None:
        target: Target = "topic" if number % 2 else "inbox"
        await side.produce(f"orders.user{number}", payload.encode(), target=target)

    count = 0
    async with asyncio.timeout(40):
        while not (one.records and other.records):
            await produce(count, "")
            count += 1
            await asyncio.sleep(0.05)

    count += 20
    for number in range(count):
        await produce(number, f"{number}")
    everything = {f"{number}" for number in range(count)}
    await until(lambda: {*one.payloads, *other.payloads} >= everything)
    mine = {record.lane for record in one.records if record.payload}
    its = {record.lane for record in other.records if record.payload}
    assert mine
    assert its
    assert not mine & its

    await first.close()
    for number in range(count):
        await produce(number, f"later {number}")
    await until(lambda: set(other.payloads) >= {f"later {number}" for number in range(count)})


async def test_acknowledgement_survives_a_restart_of_the_server(side: Side) -> None:
    first = await side.bus()
    reader = Reader(first)
    for number in range(4):
        await side.produce("orders.ann", f"{number}".encode())
    records = await reader.until(4)
    reader.ack(*records[:3])
    await first.close()
    await side.restart()

    again = Reader(await side.bus())
    await again.until(1)
    await side.produce("orders.ann", b"4")
    await again.until(2)
    assert again.payloads == ["3", "4"]
