"""Headers that a publisher sets are data: no message stops an inbox, a queue or a reader.

NATS 2.11 stores headers that begin with a status line, ``NATS/1.0 503``, as a server's answer
does. Such a message looked like "nobody serves this stream", at each try, for ever. Later
servers strip the line, but store others that a lenient reader takes for one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.layers import layers, receive
from tests.integration.workers import no_services, serving
from tests.rawnats import POISON, UNREADABLE, RawPublisher, raw_publisher
from tests.support import Gateway, until
from wsgateway import Message
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import Stored
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import deadletters, registry

__all__ = ["no_services"]  # a fixture

ANN = Inbox("orders", "ann")
PAYLOADS = [b"%d" % number for number in range(len(POISON))]


@pytest.fixture
async def raw(nats_server: EmbeddedServer) -> AsyncIterator[RawPublisher]:
    async with raw_publisher(nats_server.url) as publisher:
        yield publisher


async def poison(raw: RawPublisher, subject: str) -> list[int]:
    """Publish a message with each header; return their offsets."""
    offsets = []
    for payload, headers in zip(PAYLOADS, POISON, strict=True):
        answer = await raw.publish(subject, payload, headers)
        assert "error" not in answer, (headers[:60], answer)
        offsets.append(answer["seq"])
    return offsets


async def test_inbox_is_read_live_and_later(broker: NatsBroker, raw: RawPublisher) -> None:
    live: list[Stored] = []
    broker.inboxes.watch(ANN, live.append)
    await broker.connection.confirm()
    offsets = await poison(raw, broker.subjects.recv(ANN))
    await until(lambda: len(live) == len(POISON), 10, "all, live")
    assert [(m.offset, m.payload) for m in live] == list(zip(offsets, PAYLOADS, strict=True))
    assert [m.previous for m in live] == [0, *offsets[:-1]]
    batch = await broker.inboxes.read_after(ANN, 0, limit=1000)
    assert [m.offset for m in batch.messages] == offsets
    assert [m.payload for m in batch.messages] == PAYLOADS
    assert not batch.more
    for message in (*live, *batch.messages):
        assert (message.reply_to, message.error) == (None, None)
        assert message.time.startswith("20")
    part = await broker.inboxes.read_after(ANN, offsets[1], limit=2)
    assert [m.offset for m in part.messages] == offsets[2:4]
    assert part.more


async def test_newest_offset_is_found_whatever_that_message_holds(
    broker: NatsBroker, raw: RawPublisher
) -> None:
    for headers in POISON:
        answer = await raw.publish(broker.subjects.recv(ANN), b"x", headers)
        assert await broker.inboxes.last_offsets([ANN]) == {ANN: answer["seq"]}, headers[:60]


async def test_sockets_get_each_message_and_skip_what_is_no_frame(
    gateway: Gateway, prefix: str, raw: RawPublisher
) -> None:
    subject = f"{prefix}.recv.orders.ann"
    wanted = [payload.decode() for payload in PAYLOADS]
    async with (
        gateway.connect(*ANN, query="?device=a") as live,
        gateway.connect(*ANN, query="?device=b", subprotocols=["wsgateway.v1"]) as v1,
    ):
        await v1.recv()
        await poison(raw, subject)
        for headers in UNREADABLE:
            await raw.publish(subject, b"no frame", headers)
        await raw.publish(subject, b"end")
        for text in [*wanted, "end"]:
            assert await asyncio.wait_for(live.recv(), 10) == text
            message = json.loads(await asyncio.wait_for(v1.recv(), 10))
            assert (message["data"], message.get("reply_to")) == (text, None)
    async with gateway.connect(*ANN, query="?device=c") as later:
        for text in [*wanted, "end"]:
            assert await asyncio.wait_for(later.recv(), 10) == text
    skipped = [line for line in gateway.output.splitlines() if "skipped message" in line]
    assert len(skipped) == 2 * len(UNREADABLE)  # both that were open share one line
    assert "Traceback" not in gateway.output


@pytest.mark.usefixtures("no_services")
async def test_service_handles_each_message(broker: NatsBroker, raw: RawPublisher) -> None:
    got: list[bytes] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        got.append(message.bytes)
        await message.reply(text="fine")
        assert message.client_id is None or message.client_id.isprintable()

    subject = broker.subjects.send(ANN)
    await poison(raw, subject)
    for headers in UNREADABLE:
        await raw.publish(subject, b"no frame", headers)
    await raw.publish(subject, b"end")
    async with serving(broker) as worker:
        await until(lambda: got[-1:] == [b"end"], 30, "the last")
        await until(lambda: worker.in_hand == 0, 10, "acknowledged")
    assert got == [*PAYLOADS, b"end"]
    letters = [letter async for letter in deadletters.letters(broker, "orders")]
    assert [letter.payload for letter in letters] == [b"no frame"] * len(UNREADABLE)


async def test_dead_letters_are_listed_found_and_purged(
    broker: NatsBroker, raw: RawPublisher
) -> None:
    offsets = await poison(raw, broker.subjects.dead(ANN))
    headers = b"NATS/1.0\r\nWs-Attempts: many\r\nWs-Exception: %ZZ%ff\r\nWs-Shortened: x\r\n\r\n"
    offsets.append((await raw.publish(broker.subjects.dead(ANN), b"x", headers))["seq"])
    found = [letter async for letter in deadletters.letters(broker)]
    assert [letter.offset for letter in found] == offsets
    assert [letter.payload for letter in found] == [*PAYLOADS, b"x"]
    for offset in offsets:
        letter = await deadletters.find(broker, offset)
        assert (letter.offset, letter.inbox) == (offset, ANN)
        await deadletters.purge(broker, letter)
    assert [letter async for letter in deadletters.letters(broker)] == []


@pytest.mark.parametrize("value", [b"%s 7", b"junk", b"", b"\xff", b"%s " + b"9" * 5000])
async def test_cursor_is_read_whatever_its_headers(
    broker: NatsBroker, raw: RawPublisher, value: bytes
) -> None:
    """A device whose cursor had such headers, or so long a number, could not connect any more."""
    value = value.replace(b"%s", broker.inboxes.epoch.encode())
    for _ in range(10):
        await broker.publish(ANN, b"x")
    bucket = f"{broker.subjects.upper}_CURSORS"
    for number, headers in enumerate(POISON):
        device = f"phone {number}"
        key = broker.subjects.cursor_key(ANN, device)
        answer = await raw.publish(f"$KV.{bucket}.{key}", value, headers)
        assert "error" not in answer
        assert await broker.load_cursor(ANN, device) == (7 if value.endswith(b" 7") else 0)
        await broker.save_cursor(ANN, device, 8)
        assert await broker.load_cursor(ANN, device) == 8


async def test_layer_reads_each_message(
    broker: NatsBroker, nats_server: EmbeddedServer, prefix: str, raw: RawPublisher
) -> None:
    async with layers(nats_server.url, prefix) as make:
        layer = make()
        await layer.send("work", {"type": "first"})
        assert (await receive(layer, "work"))["type"] == "first"
        channel = await layer.new_channel()
        await layer.group_add("orders.ann", channel)
        await layer.group_add("orders.bob", "work")  # each message is forwarded
        await poison(raw, broker.subjects.channel("work"))
        got = [await receive(layer, "work") for _ in POISON]
        assert [event["text"].encode() for event in got] == PAYLOADS
        await poison(raw, broker.subjects.recv(ANN))
        got = [await receive(layer, channel) for _ in POISON]
        assert [event["text"].encode() for event in got] == PAYLOADS
        for headers in UNREADABLE:
            for user in ("ann", "bob"):
                await raw.publish(broker.subjects.recv(Inbox("orders", user)), b"x", headers)
        await layer.group_send("orders.ann", {"type": "end"})
        assert await receive(layer, channel) == {"type": "end"}
        await poison(raw, broker.subjects.recv(Inbox("orders", "bob")))
        got = [await receive(layer, "work") for _ in POISON]
        assert [event["text"].encode() for event in got] == PAYLOADS


async def test_unusable_header_of_the_server_is_refused_by_it(
    broker: NatsBroker, raw: RawPublisher
) -> None:
    """The server looks at these before it stores the message; nothing of ours sees them."""
    for headers, err_code in (
        (b"NATS/1.0\r\nNats-TTL: junk\r\n\r\n", 10165),
        (b"NATS/1.0\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 10097),
    ):
        answer: dict[str, Any] = await raw.publish(broker.subjects.recv(ANN), b"x", headers)
        assert answer["error"]["err_code"] == err_code
