"""Positions that belong to another user: a browser or program whose login changes reconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from websockets.asyncio.client import ClientConnection

from tests.support import Gateway, until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.client import Client, GatewayError, Position, connect
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import SUBPROTOCOL

ANN = Inbox("orders", "ann")
BOB = Inbox("orders", "bob")


async def take(socket: ClientConnection) -> Any:
    async with asyncio.timeout(20):
        return json.loads(await socket.recv())


def position(welcome: Any, offset: int) -> str:
    """Return the query with which the client of *welcome* resumes."""
    fields = {"epoch": welcome["epoch"], "offset": offset, "inbox": welcome["inbox"]}
    return "?" + urlencode(fields)


@pytest.fixture
async def ann(gateway: Gateway, broker: NatsBroker) -> AsyncIterator[str]:
    """The query that resumes Ann's position, which is beyond two messages for Bob."""
    for text in (b"one", b"two"):
        await broker.publish(BOB, text)
    offset = (await broker.publish(ANN, b"for ann")).offset
    async with gateway.connect(*ANN, subprotocols=[SUBPROTOCOL]) as socket:
        yield position(await take(socket), offset)


async def test_a_position_of_another_user_skips_no_message(gateway: Gateway, ann: str) -> None:
    """The gateway said ``recovered: true``, sent Bob nothing, and moved his device's cursor."""
    async with gateway.connect(*BOB, query=ann, subprotocols=[SUBPROTOCOL]) as socket:
        welcome = await take(socket)
        assert (welcome["recovered"], welcome["reason"]) == (False, "epoch")
        assert [(await take(socket))["data"] for _ in range(2)] == ["one", "two"]
    async with gateway.connect(*BOB, subprotocols=[SUBPROTOCOL]) as socket:
        welcome = await take(socket)
        assert (welcome["offset"], welcome["reason"]) == (0, "new"), "nothing is acknowledged"
        assert (await take(socket))["data"] == "one"


async def test_a_position_of_another_user_gives_way_to_the_device(
    gateway: Gateway, broker: NatsBroker, ann: str
) -> None:
    first = (await broker.inboxes.read_after(BOB, 0, limit=1)).messages[0].offset
    await broker.save_cursor(BOB, "default", first)
    async with gateway.connect(*BOB, query=ann, subprotocols=[SUBPROTOCOL]) as socket:
        welcome = await take(socket)
        assert (welcome["offset"], welcome["reason"]) == (first, "epoch")
        assert (await take(socket))["data"] == "two"


async def test_a_position_resumes_in_its_own_inbox(
    gateway: Gateway, broker: NatsBroker, ann: str
) -> None:
    await broker.publish(ANN, b"later")
    async with gateway.connect(*ANN, query=ann, subprotocols=[SUBPROTOCOL]) as socket:
        assert (await take(socket))["recovered"] is True
        assert (await take(socket))["data"] == "later"


async def test_a_position_that_another_users_client_saved_skips_no_message(
    gateway: Gateway, broker: NatsBroker
) -> None:
    for text in (b"one", b"two"):
        await broker.publish(BOB, text)
    await broker.publish(ANN, b"for ann")

    def client(user: str, position: Position | None = None) -> Client:
        cookie = {"Cookie": f"service=orders; user={user}"}
        return connect(gateway.ws("/ws/orders/"), additional_headers=cookie, position=position)

    async with asyncio.timeout(20):
        async with client("ann") as ann:
            message = await ann.recv()
            assert message.data == "for ann"
            assert ann.position is not None
            saved = ann.position._replace(offset=message.offset)
        async with client("ann", saved) as ann:
            await broker.publish(ANN, b"more")
            assert (await ann.recv()).data == "more"
        async with client("bob", saved) as bob:
            assert [(await bob.recv()).data for _ in range(2)] == ["one", "two"]


async def test_a_gateway_of_an_earlier_version_takes_the_epoch(
    gateway: Gateway, broker: NatsBroker, ann: str
) -> None:
    """It compares the epoch with the stream's; both were joined, and it sent everything again."""
    assert dict(parse_qsl(ann[1:]))["epoch"] == broker.inboxes.epoch


async def test_a_position_of_an_earlier_version_resumes(
    gateway: Gateway, broker: NatsBroker
) -> None:
    """It names no inbox."""
    offset = (await broker.publish(ANN, b"before")).offset
    await broker.publish(ANN, b"later")
    query = "?" + urlencode({"epoch": broker.inboxes.epoch, "offset": offset})
    async with gateway.connect(*ANN, query=query, subprotocols=[SUBPROTOCOL]) as socket:
        assert (await take(socket))["recovered"] is True
        assert (await take(socket))["data"] == "later"


async def test_a_client_whose_login_changes_sends_nothing_as_the_other_user(
    gateway: Gateway, broker: NatsBroker
) -> None:
    """What waited in the queue of Ann's client was published as Bob."""
    await broker.publish(BOB, b"for bob")
    headers = {"Cookie": "service=orders; user=ann"}
    client = connect(
        gateway.ws("/ws/orders/"),
        additional_headers=headers,
        backoff=Backoff(initial=0.2, cap=0.2, jitter=0.0),
    )
    async with client:
        await client.send("as ann")
        headers["Cookie"] = "service=orders; user=bob"
        await asyncio.to_thread(gateway.stop)
        await until(lambda: client.state.value != "open", 20, "the connection is lost")
        sending = asyncio.create_task(client.send("still as ann"))
        await until(lambda: client.pending == 1, 20, "the message waits")
        await asyncio.to_thread(gateway.start)
        with pytest.raises(GatewayError, match=r"'bob' of 'orders', but .* 'ann'") as caught:
            async with asyncio.timeout(20):
                await sending
        assert (caught.value.code, caught.value.close_code) == ("closed", 4501)
        with pytest.raises(GatewayError):
            await client.recv()
    queue = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.queue('orders')}")
    assert queue["state"]["messages"] == 1
