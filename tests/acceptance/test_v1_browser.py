"""The JavaScript client in Chromium: what it sends and gets, tabs, devices; and in Node."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.acceptance.browser import Page, browser
from tests.acceptance.client_page import INBOX, connect, publish, require_all
from tests.faults.traffic import broker_at, stored
from tests.pages import DocumentPage
from tests.support import ROOT, Gateway
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import ERROR_HEADER, REPLY_TO_HEADER
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.identity import make_token

SCHEMA = json.loads((ROOT / "wsgateway/static/wsgateway/protocol.schema.json").read_text())


@pytest.fixture
async def broker(nats_server: EmbeddedServer, prefix: str) -> AsyncIterator[NatsBroker]:
    async with broker_at([nats_server.url], prefix) as broker:
        yield broker


@pytest.fixture
async def page(gateway: Gateway, tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as page:
        yield page


async def send_token_by_hand(page: Page, settings: Any) -> None:
    """Run what the page about identities shows: a token in the list of subprotocols."""
    settings.SECRET_KEY = "tests"
    code = DocumentPage("how-to/identity.md").code("btoa", "javascript")
    for token, end in ((make_token("orders", "robot"), "wsgateway.raw"), ("junk", 1008)):
        opened = code.replace("…", token)
        assert opened != code
        result = (
            "socket.onopen = () => setTimeout(() => resolve(socket.protocol), 300);"
            "socket.onclose = ({ code }) => resolve(code);"
        )
        assert await page.run(f"new Promise((resolve) => {{ {opened}\n{result} }})") == end


async def test_send_receive_and_ask(
    gateway: Gateway, page: Page, broker: NatsBroker, settings: Any
) -> None:
    await connect(page, gateway.http(""))
    assert await page.run("client.welcome.user") == INBOX.user
    sent = await page.run(
        "Promise.all(['a', {b: 1}, new Uint8Array([0, 255])].map(x => client.send(x)))"
    )
    assert len({receipt["id"] for receipt in sent}) == 3
    assert await stored(broker, "send", INBOX) == [b"a", b'{"b":1}', b"\x00\xff"]
    await publish(broker, 20)
    await broker.publish(INBOX, b"\x00\xff", kind="binary")
    await page.wait("got.length === 21")
    texts = [text for _, text in await page.run("got")]
    assert texts == [*map(str, range(20)), {"0": 0, "1": 255}]

    await page.run("window.reply = client.request('?', { id: 'q1' }); null")
    await until_async(lambda: stored(broker, "send", INBOX), 4)
    await broker.publish(INBOX, b"!", kind="text", headers={REPLY_TO_HEADER: "q1"})
    assert await page.run("reply.then((message) => [message.replyTo, message.data])") == ["q1", "!"]
    assert await page.run("got.length") == 21, "a reply is not a message"
    await send_token_by_hand(page, settings)


async def test_what_both_ends_write_is_as_the_schema_says(
    gateway_factory: Callable[..., Gateway], page: Page, broker: NatsBroker
) -> None:
    gateway = gateway_factory(WSGATEWAY_PING_INTERVAL="0.2", WSGATEWAY_MAX_MESSAGE_SIZE="100")
    await connect(page, gateway.http(""))
    await page.run("client.send('text'); client.send(new Uint8Array(3)); client.request('?'); null")
    await page.run("client.welcome.max_message_size = 1e9; client.send('x'.repeat(101)); null")
    await broker.publish(INBOX, b"text")
    await broker.publish(INBOX, b"\x00", kind="binary")
    refusal = {REPLY_TO_HEADER: "q", ERROR_HEADER: "sold_out"}
    await broker.publish(INBOX, b"none left", headers=refusal)
    wanted = {"welcome", "message", "ack", "error", "ping"}
    types = "frames_in.map((text) => JSON.parse(text).type)"
    await page.wait(f"{json.dumps(sorted(wanted))}.every((type) => {types}.includes(type))")
    await page.wait("frames_in.filter((text) => text.includes('offset')).length >= 4")
    types = "frames_out.map((text) => JSON.parse(text).type)"
    await page.wait(f"['message', 'ack', 'pong'].every((type) => {types}.includes(type))")
    for side, frames in (("server", "frames_in"), ("client", "frames_out")):
        validate = Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{side}"}).validate
        for text in await page.run(frames):
            validate(json.loads(text))


async def until_async(read: Callable[[], Any], length: int, timeout: float = 10.0) -> None:
    """Wait until what *read* returns has *length* items."""
    async with asyncio.timeout(timeout):
        while len(await read()) < length:
            await asyncio.sleep(0.02)


async def test_tabs_share_what_a_device_has_read_and_devices_do_not(
    gateway: Gateway, page: Page, broker: NatsBroker
) -> None:
    origin = gateway.http("")
    await connect(page, origin)
    async with page.another() as tab:
        await connect(tab, origin)
        async with page.another() as phone:
            await connect(phone, origin, device="phone")
            await publish(broker, 20)
            for each in (page, tab, phone):
                await require_all(each, broker)
            await phone.run("client.close()")
        await publish(broker, 10)
        for each in (page, tab):
            await require_all(each, broker)
            await each.run("client.close()")

    last = await stored_offsets(broker)
    async with page.another() as phone:
        await connect(phone, origin, device="phone")
        await phone.wait("got.length === 10")
        assert [offset for offset, _ in await phone.run("got")] == last[20:]
        assert await phone.run("recovered[0].recovered") is True
    async with page.another() as tab:
        await connect(tab, origin)
        await publish(broker, 1)
        await tab.wait("got.length === 1")
        assert await tab.run("got[0][1]") == "30", "the first two tabs had the rest"


async def stored_offsets(broker: NatsBroker) -> list[int]:
    batch = await broker.inboxes.read_after(INBOX, 0, limit=1000)
    return [message.offset for message in batch.messages]


async def test_node_survives_the_same(gateway: Gateway, broker: NatsBroker, settings: Any) -> None:
    """The same file in Node: messages both ways while its gateway is killed and started again."""
    node = shutil.which("node")
    assert node, "these tests need Node.js"
    settings.SECRET_KEY = "tests"
    token = make_token(INBOX.service, INBOX.user)
    url = gateway.ws(f"/ws/{INBOX.service}/{INBOX.user}/?token={token}")
    async with gateway.connect(*INBOX, query="?device=first"):  # which creates the streams
        pass
    await publish(broker, 100)
    process = await asyncio.create_subprocess_exec(
        *(node, "--experimental-websocket", "--no-warnings", str(ROOT / "tests/js/continue.mjs")),
        *(url, "200", "100"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 20)) == "halfway"
        await asyncio.to_thread(gateway.kill)
        await publish(broker, 100)
        await asyncio.to_thread(gateway.start)
        report = json.loads(await asyncio.wait_for(process.stdout.readline(), 40))
        await asyncio.wait_for(process.wait(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert report["got"] == list(map(str, range(200)))
    assert "waiting" in report["states"]
    sent = [payload.decode() for payload in await stored(broker, "send", INBOX)]
    assert sent == [f"from node {number}" for number in range(100)]


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_page_reads_why_its_socket_is_refused(
    gateway_factory: Callable[..., Gateway], tmp_path: Path, server: str
) -> None:
    """A raw socket got HTTP 403, of which a page learns no more than 1006, as in an outage."""
    gateway = gateway_factory(server)
    strict = gateway_factory(server, WSGATEWAY_ALLOWED_ORIGINS="https://other.example")
    async with browser(tmp_path) as page:
        await page.open(gateway.http("/healthz"))

        async def end_of(url: str, protocols: list[str]) -> Any:
            return await page.run(
                "new Promise((done) => {"
                f"  const socket = new WebSocket({json.dumps(url)}, {json.dumps(protocols)});"
                "  socket.onclose = (event) => done([event.code, event.reason]);"
                "})"
            )

        code, reason = await end_of(gateway.ws("/ws/orders/"), [])
        assert (code, reason) == (1008, "not logged in; log in first, or send a token")
        assert await end_of(gateway.ws("/ws/orders/"), ["wsgateway.v1"]) == [4501, reason]
        assert await end_of(gateway.ws("/nowhere/"), []) == [1008, "unknown path"]
        assert await end_of(gateway.ws("/nowhere/"), ["wsgateway.v1"]) == [4506, "unknown path"]
        origin = gateway.http("")
        foreign = f"origin '{origin}' may not connect"
        assert await end_of(strict.ws("/ws/orders/"), []) == [1008, foreign]
