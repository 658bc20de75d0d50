"""Server-sent events on real servers: slow readers, readers that vanish, and the server's end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.event_streams import Event, Parser, read_events, until_declared
from tests.support import Gateway, until
from wsgateway import presence
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox, Topic

ANN, ROOM = Inbox("orders", "ann"), Topic("room", "42")
PATH = "/sse/orders/?topic=room.42"
LARGE = 100_000
"""Bytes of a message that a slow reader does not read."""
COUNT = 200
"""So many of them are 20 MB."""

pytestmark = pytest.mark.parametrize("server", ["daphne", "uvicorn"])


class Reader:
    """Reads until the response ends."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.parser = Parser()
        self.events: list[Event] = []
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            async for event in read_events(self.response, self.parser):
                self.events.append(event)
        except httpx.HTTPError as exc:
            self.error = exc

    def data(self, name: str) -> list[str]:
        return [event.data for event in self.events if event.name == name]


@contextlib.asynccontextmanager
async def reading(gateway: Gateway, last: str = "") -> AsyncIterator[Reader]:
    headers = {"Cookie": "service=orders; user=ann"} | ({"Last-Event-ID": last} if last else {})
    async with (
        httpx.AsyncClient(timeout=30, trust_env=False) as client,
        client.stream("GET", gateway.http(PATH), headers=headers) as response,
    ):
        assert response.status_code == 200
        reader = Reader(response)
        task = asyncio.create_task(reader.run())
        await until(lambda: len(reader.events) >= 2 or task.done())
        yield reader
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
def gateway(gateway_factory: Callable[..., Gateway], server: str) -> Gateway:
    return gateway_factory(
        server, DJANGO_SETTINGS_MODULE="tests.topics_app.settings", WSGATEWAY_CLOSE_TIMEOUT="4"
    )


def deaf(gateway: Gateway, user: str = "ann") -> socket.socket:
    """Return a reader that reads nothing, and whose kernel takes little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(("127.0.0.1", gateway.port))
    cookies = f"service=orders; user={user}"
    request = f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookies}\r\n\r\n"
    client.sendall(request.encode())
    assert client.recv(1024).startswith(b"HTTP/1.1 200 ")
    return client


async def test_readers_on_a_server(gateway: Gateway, broker: NatsBroker) -> None:
    """One test, because to start a server costs most of it."""
    await until_declared(broker, ROOM)
    async with reading(gateway) as ann:
        await slow_reader_costs_no_memory(gateway, broker, ann)
        await broker.publish(ROOM, b"1")
        await until(lambda: ann.data("room.42")[-1:] == ["1"])
        last = ann.parser.id
    await until_offline("ann")
    await broker.publish(ROOM, b"2")
    async with reading(gateway, last) as ann:
        await broker.publish(ROOM, b"3")
        await until(lambda: ann.data("room.42") == ["2", "3"])
        with contextlib.closing(deaf(gateway)), contextlib.closing(deaf(gateway, "eve")) as eve:
            await publish_large(broker, 20)
            # One that leaves, and whose server would read no more: Twisted keeps 16 KiB
            eve.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2000)
            eve.shutdown(socket.SHUT_WR)
            await until_offline("eve")
            ann.parser.retry = 0  # as if it had not begun with one
            gateway.send(signal.SIGTERM)  # one that does not read must not keep the server
            await until(lambda: ann.data("closed") != [])
            assert ann.parser.retry > 0
            await asyncio.to_thread(gateway.wait)
        assert ann.error is None  # the response was complete


async def slow_reader_costs_no_memory(gateway: Gateway, broker: NatsBroker, ann: Reader) -> None:
    before = gateway.memory
    with contextlib.closing(deaf(gateway)) as slow:
        await publish_large(broker, COUNT)
        await until(lambda: len(ann.data("room.42")) == COUNT, 60)
        assert gateway.memory - before < 10 * 1024 * 1024
        received = 0
        while received < COUNT * LARGE:  # nothing is lost
            received += len(await asyncio.to_thread(slow.recv, 1024 * 1024))


async def publish_large(broker: NatsBroker, count: int) -> None:
    for number in range(count):
        await broker.publish(ROOM, f"{number:{LARGE}}".encode(), ttl=60)


async def until_offline(user: str) -> None:
    """Wait until the gateway has noticed that the reader is gone."""
    async with asyncio.timeout(10):
        while await presence.ais_online("orders", user):
            await asyncio.sleep(0.05)
