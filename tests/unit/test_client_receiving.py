"""What a client receives, in which order, and how often."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

from tests.support import ROOT, until
from tests.unit.clients import client_of, gateway, take
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import ClientState, Position

__all__ = ["gateway"]  # a fixture


def test_importing_the_client_pulls_in_no_django() -> None:
    script = (
        "import sys; from wsgateway.client import connect;"
        "print({'django', 'channels', 'nats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


async def test_messages_arrive_in_order_and_are_acknowledged(gateway: FakeGateway) -> None:
    await gateway.store("a", b"\x00\xff", '{"b":1}', gap=3)
    async with client_of(gateway) as client:
        first, second, third = [await client.recv() for _ in range(3)]
        assert (first.data, first.offset, first.time) == ("a", 3, "t3")
        assert second.data == b"\x00\xff"
        assert third.json() == {"b": 1}
        await until(lambda: gateway.acks == [6])
        assert client.position == Position("e1", 6)
    assert gateway.acks == [6]  # the third was handed out, but nobody asked for the next


async def test_loop_ends_when_the_client_is_closed(gateway: FakeGateway) -> None:
    await gateway.store("a", "b")
    async with client_of(gateway) as client:

        async def read() -> list[Any]:
            return [message.data async for message in client]

        reading = asyncio.create_task(read())
        await until(lambda: gateway.acks)
        await client.close()
        assert await reading == ["a", "b"]
    assert client.state is ClientState.CLOSED


async def test_window_is_kept_and_everything_arrives(gateway: FakeGateway) -> None:
    gateway.window = 4
    await gateway.store(*map(str, range(500)))
    async with client_of(gateway) as client:
        assert await take(client, 500) == list(map(str, range(500)))
    assert gateway.most_unacked == 4


async def test_client_that_never_acknowledges_gets_one_window(gateway: FakeGateway) -> None:
    gateway.window = 4
    await gateway.store(*map(str, range(20)))
    async with client_of(gateway, auto_ack=False, ack_interval=0.01) as client:
        messages = [await client.recv() for _ in range(4)]
        waiting = asyncio.create_task(client.recv())
        await gateway.round_trip()
        assert not waiting.done()
        waiting.cancel()
        assert gateway.acks == []
        messages[1].ack()
        messages[0].ack()
        await until(lambda: gateway.acks == [2])
        assert await take(client, 2) == ["4", "5"]


async def test_cancelled_recv_loses_nothing(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        for number in range(50):
            waiting = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            storing = asyncio.create_task(gateway.store(str(number)))
            await asyncio.sleep(0.001 * (number % 3))
            waiting.cancel()
            await asyncio.wait({waiting, storing})
            data = None if waiting.cancelled() else waiting.result().data
            assert data in (None, str(number))
            if data is None:
                assert await take(client, 1) == [str(number)]
