"""What a client sends, and what it hears about that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import until
from tests.unit.clients import client_of, gateway
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import Backoff, ClientState, GatewayError
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import ErrorCode

__all__ = ["gateway"]  # a fixture


async def test_send_returns_when_stored(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        first = await client.send("text")
        await client.send(b"\x00\xff", id="c2")
        await client.send({"a": [1, "ü"]}, id="c3")
        assert list(gateway.stored.items()) == [
            (first, Frame(b"text", True)),
            ("c2", Frame(b"\x00\xff", False)),
            ("c3", Frame('{"a":[1,"ü"]}'.encode(), True)),
        ]
        assert client.pending == 0


async def test_unconfirmed_is_sent_again_with_the_same_id_in_order(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send(str(n), id=f"c{n}")) for n in range(5)]
        await until(lambda: len(gateway.arrivals) == 5)
        gateway.confirm = True
        gateway.cut()
        sends.append(asyncio.create_task(client.send("5", id="c5")))
        assert await asyncio.gather(*sends) == [f"c{n}" for n in range(6)]
    assert gateway.arrivals == [f"c{n}" for n in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5)]


async def test_refusal_raises_its_code(gateway: FakeGateway) -> None:
    gateway.refusals = {"c1": ErrorCode.QUEUE_FULL, "c2": ErrorCode.BAD_REQUEST}
    async with client_of(gateway) as client:
        for id, temporary in (("c1", True), ("c2", False)):
            with pytest.raises(GatewayError, match="refused") as caught:
                await client.send("x", id=id)
            error = caught.value
            assert (error.id, error.code, error.temporary) == (id, gateway.refusals[id], temporary)
        assert client.pending == 0


@pytest.mark.parametrize("id", ["topic-1", "watch-1"])
async def test_no_id_of_a_message_is_that_of_a_question(gateway: FakeGateway, id: str) -> None:
    """The client's questions had these ids, and the refusal of the message ended the question."""
    room = gateway.topic("room.42", answers=False)
    gateway.refusals = {id: ErrorCode.BAD_REQUEST}
    async with client_of(gateway) as client:
        opening = asyncio.create_task(client.topic("room.42").open())
        watching = asyncio.create_task(client.watch("bob"))  # which this gateway never answers
        await until(lambda: room.asked)
        with pytest.raises(GatewayError, match="refused"):
            async with asyncio.timeout(5):
                await client.send("x", id=id)
        assert not opening.done()
        assert not watching.done()
    for question in (opening, watching):
        with pytest.raises(GatewayError, match="already closed"):
            await question


async def test_refusal_that_no_send_waits_for_goes_to_on_error(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """If the message had been given up, nobody learned that it was refused."""
    errors: list[GatewayError] = []
    async with client_of(gateway, on_error=errors.append):
        gateway.say(protocol.encode_error("gone", ErrorCode.QUEUE_FULL, "full"))
        gateway.say(protocol.encode_error(None, ErrorCode.BAD_REQUEST, "not JSON"))
        await until(lambda: len(errors) == 2)
    assert (errors[0].id, errors[0].code, errors[0].temporary) == ("gone", "queue_full", True)
    assert (errors[1].id, errors[1].code, errors[1].temporary) == (None, "bad_request", False)
    assert "the gateway refused a frame with bad_request: not JSON" in caplog.messages


async def test_same_id_twice_is_one_message(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        first = asyncio.create_task(client.send("x", id="c1"))
        second = asyncio.create_task(client.send("x", id="c1"))
        await until(lambda: gateway.arrivals)
        first.cancel()
        await asyncio.wait({first})
        assert client.pending == 1
        gateway.say(protocol.encode_ack("c1"))
        assert await second == "c1"
    assert gateway.arrivals == ["c1"]


@pytest.mark.parametrize("cancelled", ["send", "request"])
async def test_message_is_kept_while_another_call_waits_for_its_id(
    gateway: FakeGateway, cancelled: str
) -> None:
    gateway.confirm = False
    async with client_of(gateway) as client:
        calls: dict[str, asyncio.Task[Any]] = {
            "request": asyncio.create_task(client.request("x", id="c1")),
            "send": asyncio.create_task(client.send("x", id="c1")),
        }
        await until(lambda: gateway.arrivals == ["c1"])
        calls.pop(cancelled).cancel()
        gateway.cut()
        await until(lambda: gateway.arrivals == ["c1", "c1"])
        await gateway.reply("c1", "done")  # which confirms, too
        (result,) = await asyncio.gather(*calls.values())
        assert result == "c1" if cancelled == "request" else result.data == "done"
        assert client.pending == 0


async def test_cancelled_send_is_given_up(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        sending = asyncio.create_task(client.send("x"))
        await until(lambda: gateway.arrivals)
        sending.cancel()
        await asyncio.wait({sending})
        assert client.pending == 0
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
    assert len(gateway.arrivals) == 1


async def test_queue_is_bounded(gateway: FakeGateway) -> None:
    async with client_of(gateway, queue_limit=2) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send("x")) for _ in range(2)]
        await until(lambda: len(gateway.arrivals) == 2)
        with pytest.raises(GatewayError, match="2 messages are already waiting") as caught:
            await client.send("y")
        assert (caught.value.code, caught.value.temporary) == ("queue_limit", True)
    for result in await asyncio.gather(*sends, return_exceptions=True):
        assert isinstance(result, GatewayError)
        assert result.code == "closed"


async def test_send_window_is_kept(gateway: FakeGateway) -> None:
    async with client_of(gateway, send_window=2) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send("x", id=f"c{n}")) for n in range(4)]
        await until(lambda: len(gateway.arrivals) == 2)
        await gateway.round_trip()
        assert gateway.arrivals == ["c0", "c1"]
        gateway.say(protocol.encode_ack("c0"))
        await until(lambda: len(gateway.arrivals) == 3)
        gateway.confirm = True
        gateway.cut()
        await asyncio.gather(*sends)


async def test_too_big_is_refused_here_also_if_it_waited(gateway: FakeGateway) -> None:
    gateway.max_message_size = 10
    client = client_of(gateway)
    waiting = asyncio.create_task(client.send("ü" * 6))
    await asyncio.sleep(0)
    async with client:
        for attempt in (waiting, client.send(b"x" * 12)):
            with pytest.raises(
                GatewayError, match="12 bytes exceeds the gateway's limit of 10 bytes"
            ) as caught:
                await attempt
            assert (caught.value.code, caught.value.temporary) == ("too_big", False)
        await client.send("x" * 10)
    assert len(gateway.arrivals) == 1


@pytest.mark.parametrize("id", ["", "a b", "ü", "x" * 65, "a\r\nb"])
async def test_unusable_id_is_refused_here(gateway: FakeGateway, id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        await client_of(gateway).send("x", id=id)


@pytest.mark.parametrize("data", [float("nan"), "\ud800", {"a": "\ud800"}])
async def test_data_that_is_no_text_is_refused_here(gateway: FakeGateway, data: Any) -> None:
    with pytest.raises(ValueError):
        await client_of(gateway).send(data)


async def test_close_is_idempotent_and_leaves_nothing(gateway: FakeGateway) -> None:
    before = asyncio.all_tasks()
    client = client_of(gateway)
    await client.open()
    await client.open()
    await client.close()
    await client.close()
    assert client.state is ClientState.CLOSED
    with pytest.raises(GatewayError, match="already closed"):
        await client.open()
    unused = client_of(gateway)
    await unused.close()
    with pytest.raises(GatewayError, match="already closed"):
        await unused.recv()
    await until(lambda: not gateway.connections)
    ours = [task for task in asyncio.all_tasks() - before if "client" in task.get_name()]
    assert ours == []


def test_backoff_grows_to_its_cap_and_spreads() -> None:
    high = Backoff(initial=1, factor=2, cap=5, random=lambda: 0.0)
    assert [high.delay(n) for n in (0, 1, 2, 3, 10_000)] == [1, 2, 4, 5, 5]
    assert Backoff(random=lambda: 0.999).delay(0) < 0.001
    assert Backoff(jitter=0.5, random=lambda: 1.0).delay(0) == 0.25
