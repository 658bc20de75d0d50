"""A browser whose gateway, network or broker breaks: every message once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.acceptance.browser import Page, browser
from tests.acceptance.client_page import INBOX, connect, publish, require_all
from tests.acceptance.proxy import Proxy, proxy_to
from tests.faults.traffic import broker_at, stored
from tests.support import Gateway, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker

Gateways = Callable[..., Gateway]
SHORT = {"WSGATEWAY_PING_INTERVAL": "1", "WSGATEWAY_PING_TIMEOUT": "1"}
SEND = """
(async () => {
  window.sent = [];
  for (let n = 0; n < %d; n += 1) window.sent.push(client.send(`up ${n}`));
})()
"""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as page:
        yield page


async def require_sent(page: Page, broker: NatsBroker, count: int) -> None:
    """Require that what the page sent was confirmed, and stored once, in order."""
    assert await page.run("Promise.all(sent).then((receipts) => receipts.length)") == count
    wanted = [f"up {n}".encode() for n in range(count)]
    assert await stored(broker, "send", INBOX) == wanted


async def test_gateway_killed_and_started_elsewhere(
    gateway_factory: Gateways, nats_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory()
    async with (
        broker_at([nats_server.url], prefix) as broker,
        proxy_to(gateway.port) as proxy,
    ):
        await connect(page, f"http://127.0.0.1:{proxy.port}")
        await publish(broker, 50)
        await asyncio.to_thread(gateway.kill)
        await page.run(SEND % 100)
        await publish(broker, 5000)
        other = await asyncio.to_thread(gateway_factory)
        assert other.port != gateway.port
        proxy.target = other.port
        await require_sent(page, broker, 100)
        await publish(broker, 50)
        await require_all(page, broker)
        assert await page.run("recovered.map((event) => event.recovered)") == [False, True]


async def cut(page: Page, proxy: Proxy, value: bool) -> None:
    """Cut the network: the emulation does not touch an open websocket, so the proxy does."""
    proxy.deaf = value
    await page.network(offline=value)


async def test_network_cut_for_a_moment_and_for_long_with_5000_messages(
    gateway_factory: Gateways, nats_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory(**SHORT)
    async with (
        broker_at([nats_server.url], prefix) as broker,
        proxy_to(gateway.port) as proxy,
    ):
        await connect(page, f"http://127.0.0.1:{proxy.port}", pingTimeout=5000)
        await publish(broker, 10)
        await cut(page, proxy, True)
        await publish(broker, 10)
        await cut(page, proxy, False)
        await require_all(page, broker)
        assert await page.run("recovered.length") == 1, "a moment is not a reason to reconnect"

        await cut(page, proxy, True)
        await page.run(SEND % 100)
        await publish(broker, 5000)
        await page.wait("client.state === 'offline'")
        # The gateway has given the socket up as well, long before it could know from TCP.
        await until(lambda: "WSDISCONNECT" in gateway.output, 20, "4012")
        await cut(page, proxy, False)
        await page.wait("client.state === 'open'")
        await require_all(page, broker)
        await require_sent(page, broker, 100)
        assert await page.run("recovered.every((event, n) => event.recovered || !n)")


async def test_broker_restarted(
    gateway_factory: Gateways, own_server: EmbeddedServer, prefix: str, page: Page
) -> None:
    gateway = gateway_factory(NATS_BROKER_URL=own_server.url)
    async with broker_at([own_server.url], prefix) as broker:
        await connect(page, gateway.http(""))
        await publish(broker, 50)
        await asyncio.to_thread(own_server.kill)
        await own_server.astart()
        await publish(broker, 5000)
        await require_all(page, broker)  # so the gateway is connected again
        await page.run(SEND % 10)
        await require_sent(page, broker, 10)
        assert await page.run("states") == ["connecting", "open"], "the socket stayed open"
