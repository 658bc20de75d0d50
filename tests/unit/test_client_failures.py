"""What fails inside a client leaves nobody waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import until
from tests.unit.clients import client_of, gateway
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import Backoff, Client, ClientState, GatewayError
from wsgateway.client.session import ClientSession
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import ErrorCode

__all__ = ["gateway"]  # a fixture


class Mine(Exception):
    pass


def fails(*args: object) -> None:
    raise Mine("a callback's own")


async def waiters(client: Client) -> list[asyncio.Task[Any]]:
    """Start one of each call that waits for the gateway."""
    calls = (client.open(), client.recv(), client.send("a"), client.request("b", timeout=None))
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)  # each has begun
    return tasks


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_callbacks_that_raise_harm_nobody(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in on_state ended the client's task, and everybody waited for ever."""
    gateway.refusals["no"] = ErrorCode.QUEUE_FULL
    client = client_of(
        gateway, on_state=fails, on_welcome=fails, on_reply=fails, on_error=fails, ack_every=1
    )
    async with asyncio.timeout(20), client:
        await client.send("a")
        await gateway.reply("nobody's", "a reply")
        await gateway.reply("nobody's either", "a refusal", "sold_out")
        await gateway.store("b")
        assert (await client.recv()).data == "b"
        with pytest.raises(GatewayError):
            await client.send("c", id="no")
        asking = asyncio.create_task(client.request("d", id="r"))
        await until(lambda: "r" in gateway.requests)
        await gateway.reply("r", "fine")
        assert (await asking).data == "fine"
        gateway.cut()
        await gateway.store("e")
        assert (await client.recv()).data == "e"
    assert client.state is ClientState.CLOSED
    logged = [
        record
        for record in caplog.records
        if record.getMessage() == "a callback of the client failed"
    ]
    assert len(logged) >= 8  # states, welcomes, reply, error
    assert {record.name for record in logged} == {"wsgateway.client"}


async def test_callback_that_raises_at_the_end_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    gateway.mute = True
    client = client_of(gateway, on_state=fails)
    tasks = await waiters(client)
    await client.close()
    for outcome in await outcomes(tasks):
        assert isinstance(outcome, GatewayError)
        assert outcome.code == "closed"


async def test_close_before_the_client_began_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    """A task that is cancelled before its first step runs nothing, its ``finally`` neither."""
    client = client_of(gateway)
    tasks = await waiters(client)
    await client.close()
    assert client.state is ClientState.CLOSED
    assert all(isinstance(outcome, GatewayError) for outcome in await outcomes(tasks))


async def test_whatever_ends_the_client_fails_everybody_who_waits(gateway: FakeGateway) -> None:
    class Broken(Backoff):
        def delay(self, *args: Any, **options: Any) -> float:
            raise Mine("a bug")

    gateway.close_with = [CloseCode.SHUTTING_DOWN]
    client = client_of(gateway, backoff=Broken())
    for outcome in await outcomes(await waiters(client)):
        assert isinstance(outcome, GatewayError)
        assert "the client failed: Mine('a bug')" in str(outcome)
        assert outcome.close_code is None
    with pytest.raises(GatewayError, match="a bug"):
        await client.open()


async def test_cancelling_every_task_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    gateway.mute = True
    client = client_of(gateway)
    tasks = await waiters(client)
    (runner,) = (task for task in asyncio.all_tasks() if task.get_name() == "wsgateway-client")
    runner.cancel()
    assert all(isinstance(outcome, GatewayError) for outcome in await outcomes(tasks))


async def test_writer_that_fails_costs_the_connection_only(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended alone: messages came, and nothing went out any more."""
    failures = [Mine("a bug")]
    next_frame = ClientSession.next_frame

    def fails_once(session: ClientSession, now: float) -> str | None:
        if len(session.sending) and failures:
            raise failures.pop()
        return next_frame(session, now)

    monkeypatch.setattr(ClientSession, "next_frame", fails_once)
    async with asyncio.timeout(20), client_of(gateway) as client:
        await client.send("a")
    assert not failures
