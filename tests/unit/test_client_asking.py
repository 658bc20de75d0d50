"""Requests of a client, and their replies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import until
from tests.unit.clients import client_of, gateway, take
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import GatewayError, Position
from wsgateway.protocol.v1 import ErrorCode

__all__ = ["gateway"]  # a fixture


async def test_request_returns_the_reply_and_overtakes_what_waits(gateway: FakeGateway) -> None:
    await gateway.store("first")
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request({"buy": 3}, id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", '{"ok":true}')
        await gateway.store("second")
        reply = await asyncio.wait_for(asking, 20)
        assert (reply.json(), reply.reply_to, reply.offset) == ({"ok": True}, "q1", 2)
        assert gateway.stored["q1"].payload == b'{"buy":3}'
        assert gateway.acks == []  # "first" was not processed: nothing may be acknowledged
        assert client.position == Position("e1", 0)
        assert await take(client, 2) == ["first", "second"]
        await until(lambda: gateway.acks[-1:] == [2])


async def test_reply_waits_behind_a_window_full_of_messages(gateway: FakeGateway) -> None:
    gateway.window = 2
    await gateway.store("a", "b")
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", "c")
        await gateway.round_trip()
        assert not asking.done()
        assert await take(client, 2) == ["a", "b"]
        assert (await asyncio.wait_for(asking, 20)).data == "c"


async def test_refusal_by_the_service_raises_its_code(gateway: FakeGateway) -> None:
    errors: list[GatewayError] = []
    async with client_of(gateway, on_error=errors.append) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", "none left", "sold_out")
        with pytest.raises(GatewayError, match="none left") as caught:
            await asyncio.wait_for(asking, 20)
        assert (caught.value.code, caught.value.id, caught.value.temporary) == (
            "sold_out",
            "q1",
            False,
        )
        await client.send("y", id="m1")  # no request, but refused
        await gateway.reply("m1", "", "rejected")
        await until(lambda: errors)
        assert (errors[0].code, errors[0].id) == ("rejected", "m1")
        assert gateway.requests == ["q1"]


async def test_reply_comes_over_a_later_connection(gateway: FakeGateway) -> None:
    gateway.confirm = False  # the reply proves that it was stored
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests)
        gateway.cut()
        await until(lambda: len(gateway.requests) == 2)
        await gateway.reply("q1", "late")
        assert (await asyncio.wait_for(asking, 20)).data == "late"
        assert client.pending == 0


@pytest.mark.parametrize("topic", [None, "room.42"])
async def test_what_did_not_answer_in_time_is_named(
    gateway: FakeGateway, topic: str | None
) -> None:
    """The error had no text."""
    who = f"topic {topic!r}" if topic else "the service"
    gateway.confirm = False
    if topic:
        gateway.topic(topic)
    async with client_of(gateway) as client:
        ask = client.topic(topic).request if topic else client.request
        with pytest.raises(TimeoutError) as late:
            await ask("x", id="q1", timeout=0.05)
        assert str(late.value) == (
            "the gateway did not confirm request 'q1' within 0.05 s; it may have been stored: "
            "retry with the same id"
        )
        gateway.confirm = True
        for timeout in (0.05, 0.5, 5.0, 15.0):  # until the gateway is fast enough to confirm it
            with pytest.raises(TimeoutError) as late:
                await ask("x", id=f"q{timeout}", timeout=timeout)
            if str(late.value).startswith("no reply"):
                break
        assert str(late.value) == (
            f"no reply from {who} to request 'q{timeout}' within {timeout:g} s; it may still be "
            "handled"
        )


async def test_request_in_vain(gateway: FakeGateway) -> None:
    replies: list[Any] = []
    async with client_of(gateway, on_reply=replies.append, queue_limit=1) as client:
        with pytest.raises(TimeoutError):
            await client.request("x", id="q1", timeout=0.05)
        asking = asyncio.create_task(client.request("y", id="q2"))
        await until(lambda: gateway.requests == ["q1", "q2"])
        with pytest.raises(GatewayError, match="requests are already waiting") as caught:
            await client.request("z")
        assert caught.value.code == "queue_limit"
        asking.cancel()
        await asyncio.wait({asking})
        for id in ("q1", "q2", "of another client"):
            await gateway.reply(id, id)
        await until(lambda: [r.reply_to for r in replies] == ["q1", "q2", "of another client"])
        await until(lambda: gateway.acks[-1:] == [3])
        asking = asyncio.create_task(client.request("z", timeout=None))
        await until(lambda: len(gateway.requests) == 3)
    with pytest.raises(GatewayError, match="closed"):
        await asking


async def test_request_refused_by_the_gateway(gateway: FakeGateway) -> None:
    gateway.refusals["q1"] = ErrorCode.QUEUE_FULL
    async with client_of(gateway) as client:
        with pytest.raises(GatewayError) as caught:
            await client.request("x", id="q1")
        assert caught.value.code == "queue_full"
        one, two, _ = await asyncio.gather(
            client.request("x", id="q2"), client.request("x", id="q2"), _reply_to(gateway, "q2")
        )
        assert one is two
        assert gateway.requests == ["q1", "q2"]


async def _reply_to(gateway: FakeGateway, id: str) -> None:
    await until(lambda: id in gateway.requests)
    await gateway.reply(id, "both")
