"""A browser's `EventSource` and a Python reader whose gateway, network or NATS breaks.

Both get every message once, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.acceptance.browser import Page, browser
from tests.acceptance.client_page import PAGE
from tests.acceptance.proxy import proxy_to
from tests.event_streams import Event, Parser, read_events, until_declared
from tests.faults.traffic import SITE, broker_at
from tests.pages import DocumentPage
from tests.support import Gateway, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import Address, Inbox, Topic

Gateways = Callable[..., Gateway]

ANN, ROOM = Inbox("orders", "ann"), Topic("room", "42")
SOURCES: dict[str, Address] = {"message": ANN, "room.42": ROOM}
"""By the names of their events."""
PATH = "/sse/orders/?topic=room.42&since=all"
SHORT = {**SITE, "WSGATEWAY_PING_INTERVAL": "1", "WSGATEWAY_PING_TIMEOUT": "1"}
SILENCE = 3.0
"""Seconds after which the Python reader takes its connection for lost."""
EVENTS = DocumentPage("how-to/server-sent-events.md").files()["shop/static/shop/events.js"]
OPEN = """
(() => {
  %s
  document.cookie = 'service=orders; path=/';
  document.cookie = 'user=ann; path=/';
  window.got = [];
  const note = ({ type, data }) => got.push([type, data]);
  const names = ['welcome', 'recovered', 'gap', 'message', 'room.42'];
  openEvents('%s', Object.fromEntries(names.map((name) => [name, note])));
})()
"""


class Follower:
    """A program that comes back with the id of the last event, as a browser does."""

    def __init__(self, url: str) -> None:
        self.events: list[Event] = []
        self._url = url
        self._parser = Parser()

    async def run(self) -> None:
        """Read until the task is cancelled."""
        cookies = {"Cookie": "service=orders; user=ann"}
        async with httpx.AsyncClient(timeout=SILENCE, trust_env=False, headers=cookies) as client:
            while True:
                last = {"Last-Event-ID": self._parser.id} if self._parser.id else {}
                with contextlib.suppress(httpx.HTTPError):
                    async with client.stream("GET", self._url, headers=last) as response:
                        async for event in read_events(response, self._parser):
                            self.events.append(event)
                await asyncio.sleep(0.1)


class Readers:
    """The two, and what is published for them."""

    def __init__(self, page: Page, follower: Follower, broker: NatsBroker) -> None:
        self.page = page
        self.follower = follower
        self.broker = broker
        self.count = 0

    async def publish(self, count: int) -> None:
        """Store *count* numbers in the inbox and in the topic, however often that takes."""
        for _ in range(count):
            await asyncio.gather(*(self._store(address) for address in SOURCES.values()))
            self.count += 1

    async def _store(self, address: Address) -> None:
        text = str(self.count)
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.broker.publish(address, text.encode(), msg_id=f"{address} {text}")
                    return
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)

    async def have_all(self) -> None:
        """Wait until both have what is published; require that it came once, and in order."""
        wanted = [str(number) for number in range(self.count)]
        for name in SOURCES:
            await self.page.wait(f"{_texts(name)}.length >= {self.count}")
            assert await self.page.run(_texts(name)) == wanted
            await until(lambda name=name: len(self._read(name)) >= self.count, 30)
            assert self._read(name) == wanted
        assert await self.page.run(_texts("gap")) == self._read("gap") == []

    async def came_back(self) -> bool:
        """Say whether both were cut, and resumed."""
        return bool(await self.page.run(_texts("recovered")) and self._read("recovered"))

    def _read(self, name: str) -> list[str]:
        return [event.data for event in self.follower.events if event.name == name]


def _texts(name: str) -> str:
    """Return the script of what the page got under *name*."""
    return f"got.filter(([name]) => name === {json.dumps(name)}).map(([, data]) => data)"


@asynccontextmanager
async def reading(page: Page, port: int, broker: NatsBroker) -> AsyncIterator[Readers]:
    """Let both read what a gateway, or a proxy before it, serves at *port*."""
    origin = f"http://127.0.0.1:{port}"
    await broker.wait_ready()
    await until_declared(broker, ROOM)
    await page.open(f"{origin}{PAGE}")
    await page.run(OPEN % (EVENTS.replace("export ", ""), PATH))
    follower = Follower(f"{origin}{PATH}")
    task = asyncio.create_task(follower.run())
    readers = Readers(page, follower, broker)
    try:
        await page.wait(f"{_texts('welcome')}.length === 2")
        await until(lambda: len(follower.events) == 2)
        yield readers
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as page:
        yield page


async def test_gateway_killed_and_started_elsewhere(
    gateway_factory: Gateways, nats_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory("uvicorn", **SITE)
    async with (
        broker_at([nats_server.url], prefix) as broker,
        proxy_to(gateway.port) as proxy,
        reading(page, proxy.port, broker) as readers,
    ):
        await readers.publish(50)
        await asyncio.to_thread(gateway.kill)
        await readers.publish(500)
        other = await asyncio.to_thread(gateway_factory, "uvicorn", **SITE)
        proxy.target = other.port
        await readers.publish(50)
        await readers.have_all()
        assert await readers.came_back()


async def test_network_cut_for_a_moment_and_for_long(
    gateway_factory: Gateways, nats_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory(**SHORT)
    async with (
        broker_at([nats_server.url], prefix) as broker,
        proxy_to(gateway.port) as proxy,
        reading(page, proxy.port, broker) as readers,
    ):
        proxy.deaf = True
        await readers.publish(10)
        proxy.deaf = False
        await readers.have_all()

        proxy.deaf = True
        await readers.publish(500)
        await proxy.cut()
        await asyncio.sleep(SILENCE)  # what asks now gets no answer, and asks again
        await readers.publish(10)
        proxy.deaf = False
        await readers.have_all()
        assert await readers.came_back()


async def test_nats_restarted(
    gateway_factory: Gateways, own_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory(**SITE, NATS_BROKER_URL=own_server.url)
    async with (
        broker_at([own_server.url], prefix) as broker,
        reading(page, gateway.port, broker) as readers,
    ):
        await readers.publish(50)
        await asyncio.to_thread(own_server.kill)
        await own_server.astart()
        await readers.publish(500)
        await readers.have_all()
        assert not await readers.came_back(), "the connections stayed"
