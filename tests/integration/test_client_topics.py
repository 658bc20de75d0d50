"""Topics of the Python client on real gateways, whatever happens to those and to the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support import Gateway, until
from wsgateway import topics
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.client import GatewayError, ReadersChanged, Subscribed, connect
from wsgateway.client import Topic as ClientTopic
from wsgateway.identity import make_token
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import Inbox, Topic

ROOM, BOARD, LOUNGE = Topic("room", "42"), Topic("board", "news"), Topic("lounge", "1")
ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
FAST = Backoff(initial=0.1, cap=0.2)


async def take(topic: ClientTopic, number: int) -> list[Any]:
    async with asyncio.timeout(20):
        return [(await topic.recv()).data for _ in range(number)]


@asynccontextmanager
async def reading_lounge(url: str) -> AsyncIterator[None]:
    """Let bob read what ann watches."""
    token = make_token(*BOB)
    async with connect(url, token=token, proxy=None) as client, client.topic(str(LOUNGE)):
        yield


async def test_topics_survive_a_new_token_a_change_of_gateway_and_a_replaced_stream(
    gateway_factory: Callable[..., Gateway], broker: NatsBroker, settings: Any
) -> None:
    settings.SECRET_KEY = "tests"
    expiries: list[float] = []

    def token() -> str:
        max_age = 3600.0 if expiries else 2.0
        expiries.append(time.monotonic() + max_age)
        return make_token("orders", "ann", max_age=max_age)

    site = {"DJANGO_SETTINGS_MODULE": "tests.topics_app.settings", "OFFLINE_GRACE": "0.5"}
    gateway = gateway_factory(**site)
    readers: list[ReadersChanged] = []
    answers: dict[str, list[Subscribed]] = {str(ROOM): [], str(BOARD): []}

    def note(answer: Subscribed) -> None:
        answers[answer.topic].append(answer)

    url = gateway.ws("/ws/orders/")
    async with connect(url, token=token, backoff=FAST, proxy=None) as client:
        first = client.welcome
        with pytest.raises(GatewayError) as caught:
            await client.topic("room.secret").open()
        assert caught.value.code == "forbidden"

        room = client.topic(str(ROOM), since="all", on_subscribed=note)
        board = client.topic(str(BOARD), since="all", on_subscribed=note)
        cursor = client.topic("cursor.42")
        lounge = client.topic(str(LOUNGE), on_readers=readers.append)
        await asyncio.gather(room.open(), board.open(), cursor.open())
        assert (await lounge.watch()).users == (ANN,)
        await room.send("from ann")
        message = await room.recv()
        assert (message.data, message.sender) == ("from ann", ("orders", "ann"))
        with pytest.raises(GatewayError) as caught:
            await board.send("not allowed")
        assert caught.value.code == "forbidden"
        await cursor.send("here")
        assert await take(cursor, 1) == ["here"]

        # Another reader
        async with reading_lounge(url):
            await until(lambda: readers[-1].users == (ANN, BOB), 20, "bob joins")
        await until(lambda: readers[-1].users == (ANN,), 20, "bob leaves")
        assert [who for change in readers for who in change.left] == [BOB]

        # Another token
        await until(lambda: time.monotonic() > expiries[0] + 0.2, 20, "the first token expires")
        await client.send("with the second token")
        assert (client.welcome, len(expiries)) == (first, 2)

        # Another gateway
        await asyncio.to_thread(gateway.kill)
        for number in range(3):
            await broker.publish(BOARD, b"news %d" % number)
        writing = asyncio.create_task(room.send("while away"))
        gateway_factory(port=gateway.port, **site)
        await writing
        assert await take(room, 1) == ["while away"]
        assert await take(board, 3) == ["news 0", "news 1", "news 2"]
        assert [answer.recovered for answer in answers[str(ROOM)]] == [False, True]
        await cursor.send("still here")
        assert await take(cursor, 1) == ["still here"]
        async with reading_lounge(url):
            await until(lambda: readers[-1].users == (ANN, BOB), 20, "bob joins again")

        # Another stream
        name = broker.subjects.topic_stream("room")
        config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
        await broker.jetstream.api(f"STREAM.DELETE.{name}")
        await broker.jetstream.api(f"STREAM.CREATE.{name}", config)
        await broker.publish(ROOM, b"in the new stream")
        assert await take(room, 1) == ["in the new stream"]
        last = answers[str(ROOM)][-1]
        assert (last.recovered, last.reason) == (False, "epoch")
        await until(lambda: room.position is not None and room.position.epoch == last.epoch)
        # No right any more
        await topics.arevoke(LOUNGE.service, LOUNGE.name, user="ann")
        with pytest.raises(GatewayError) as caught:
            await lounge.recv()
        assert caught.value.code == "forbidden"
        await until(lambda: readers[-1].users is None)

        await broker.publish(BOARD, b"goes on")
        assert await take(board, 1) == ["goes on"]
