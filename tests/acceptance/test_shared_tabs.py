"""The JavaScript client's topics, and its SharedWorker, in Chromium."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.browser import Page, browser
from tests.acceptance.client_page import INBOX, connect, publish
from tests.faults.traffic import broker_at
from tests.support import Gateway
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import Topic

ROOM = Topic("room", "42")
SUBSCRIBE = """
(async () => {
  window.room = client.topic('room.42', { since: 50 });
  window.said = [];
  room.on('message', ({ data, from }) => said.push([data, from?.user ?? null]));
  window.lounge = client.topic('lounge.1');
  await room.ready;
  return room.access;
})()
"""

TOKENS = """
(async () => {
  const { WsGateway } = await import('/static/wsgateway/wsgateway.js');
  const tokens = %s;
  const answers = [];
  class Recording extends WebSocket {
    constructor(...args) {
      super(...args);
      this.addEventListener('message', ({ data }) => answers.push(JSON.parse(data).type));
    }
  }
  window.bob = new WsGateway('/ws/orders/', { token: () => tokens.shift(), WebSocket: Recording });
  Object.assign(bob, { answers, states: [] });
  bob.on('state', (state) => bob.states.push(state));
  await bob.connect();
})()
"""


async def locks(page: Page) -> Any:
    """Return how many locks tabs hold, and how many the worker waits for."""
    return await page.run("navigator.locks.query().then((l) => [l.held.length, l.pending.length])")


async def test_tabs_share_a_socket_and_topics_until_one_crashes_and_the_gateway_dies(
    gateway_factory: Callable[..., Gateway],
    nats_server: EmbeddedServer,
    prefix: str,
    tmp_path: Path,
    settings: Any,
) -> None:
    gateway = gateway_factory(DJANGO_SETTINGS_MODULE="tests.topics_app.settings")
    origin = gateway.http("")
    async with (
        broker_at([nats_server.url], prefix) as broker,
        browser(tmp_path) as one,
        one.another() as two,
        one.another() as three,
    ):
        tabs = [one, two, three]
        for tab in tabs:
            await connect(tab, origin, shared="ann")
            assert await tab.run(SUBSCRIBE) == "write"
        sockets = {await tab.run("client.welcome.connection") for tab in tabs}
        assert len(sockets) == 1
        assert await one.run("frames_out.length") == 0, "the tab itself has no socket"
        assert await locks(one) == [3, 3]

        await publish(broker, 3)
        await broker.publish(ROOM, b"from a service", kind="text")
        assert await two.run("room.send('from a tab').then(({ id }) => id.length > 0)")
        for tab in tabs:
            await tab.wait("got.length === 3 && said.length === 2")
            assert await tab.run("said") == [["from a service", None], ["from a tab", "ann"]]
        assert await two.run("client.topic('room.secret').ready.catch(({ code }) => code)") == (
            "forbidden"
        )

        for tab in (one, two):
            assert await tab.run("lounge.watch().then(({ users }) => users)") == [INBOX._asdict()]

        await three.crash()
        await one.wait("navigator.locks.query().then(({ pending }) => pending.length === 2)")

        await asyncio.to_thread(gateway.kill)
        await publish(broker, 3)
        await broker.publish(ROOM, b"while it was down", kind="text")
        await asyncio.to_thread(gateway.start)
        for tab in (one, two):
            await tab.wait("got.length === 6 && said.length === 3")
            assert [text for _, text in await tab.run("got")] == list("012345")
            assert await tab.run("recovered.every(({ reason }) => !reason || reason === 'new')")
        assert len({await tab.run("client.welcome.connection") for tab in (one, two)}) == 1

        settings.SECRET_KEY = "tests"
        short = make_token(INBOX.service, "bob", max_age=3)
        tokens = [short, make_token(INBOX.service, "bob")]
        await one.run(TOKENS % json.dumps(tokens))
        await one.wait("bob.answers.includes('refreshed')")
        assert await one.run("[bob.welcome.user, bob.states]") == ["bob", ["connecting", "open"]]
        await one.run("bob.topic('lounge.1').ready")
        for tab in (one, two):
            await tab.wait("lounge.readers.users.map(({ user }) => user).join() === 'ann,bob'")
