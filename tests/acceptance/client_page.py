"""The JavaScript client in a tab, and what it got."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.acceptance.browser import Page
from tests.faults.traffic import stored
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox

INBOX = Inbox("orders", "ann")

# Any page of the site will do: the script needs its origin.
PAGE = "/login/"
CONNECT = """
(async () => {
  document.cookie = 'service=%(service)s; path=/';
  document.cookie = 'user=%(user)s; path=/';
  const { WsGateway } = await import('/static/wsgateway/wsgateway.js');
  window.frames_in = [];
  window.frames_out = [];
  class Recording extends WebSocket {
    constructor(...args) {
      super(...args);
      this.addEventListener('message', ({ data }) => frames_in.push(data));
    }
    send(text) {
      frames_out.push(text);
      super.send(text);
    }
  }
  const backoff = { initial: 50, cap: 300 };
  const options = { WebSocket: Recording, pingTimeout: 1000, backoff, ...%(options)s };
  window.got = [];
  window.states = [];
  window.recovered = [];
  window.client = new WsGateway('/ws/%(service)s/%(user)s/', options);
  client.on('message', ({ offset, data }) => got.push([offset, data]));
  client.on('state', (state) => states.push(state));
  client.on('recovered', (event) => recovered.push(event));
  await client.connect();
})()
"""


async def connect(page: Page, origin: str, **options: Any) -> None:
    """Open a page of *origin*, and the client in it."""
    await page.open(f"{origin}{PAGE}")
    values = {"service": INBOX.service, "user": INBOX.user, "options": json.dumps(options)}
    await page.run(CONNECT % values)


async def publish(broker: NatsBroker, count: int, at_once: int = 100) -> None:
    """Store *count* messages in the inbox: their numbers, going on from the last ones."""
    first = await broker.inboxes.count(INBOX)
    for start in range(first, first + count, at_once):
        numbers = range(start, min(start + at_once, first + count))
        await asyncio.gather(*(broker.publish(INBOX, str(n).encode()) for n in numbers))


async def require_all(page: Page, broker: NatsBroker, timeout: float = 30.0) -> None:
    """Wait until the client got what is stored; require that it was once, and in order."""
    wanted = [payload.decode() for payload in await stored(broker, "recv", INBOX)]
    await page.wait(f"got.length >= {len(wanted)}", timeout)
    got = await page.run("got")
    assert [text for _, text in got] == wanted
    offsets = [offset for offset, _ in got]
    assert offsets == sorted(set(offsets))
