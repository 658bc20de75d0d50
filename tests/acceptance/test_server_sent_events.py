"""What the page on server-sent events shows, as it stands there: curl, EventSource and htmx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.browser import Page, browser
from tests.event_streams import until_declared
from tests.pages import DocumentPage
from tests.support import ROOT, Gateway
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox, Topic

pytestmark = pytest.mark.timeout(120)

PAGE = DocumentPage("how-to/server-sent-events.md")
MODULES = ROOT / "tests/js/node_modules"
NEWS = Topic("news", "shop")
SETTINGS = """
from project.settings import *

INSTALLED_APPS += ["shop"]
MIDDLEWARE.remove("project.middleware.content_security_policy")
ROOT_URLCONF = "shop.urls"
WSGATEWAY_SERVICES = ["orders"]
WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity", "wsgateway.identity.TokenIdentity"]
"""
URLS = """
from django.urls import path
from django.views.generic import TemplateView

urlpatterns = [
    path(name, TemplateView.as_view(template_name=f"shop/{name}"))
    for name in ("news.html", "news_htmx.html")
]
"""
LINES = "[...document.querySelectorAll('#news p')].map((line) => line.textContent)"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def gateway(gateway_factory: Callable[..., Gateway], tmp_path: Path) -> Gateway:
    PAGE.write_files(tmp_path)
    (tmp_path / "shop/__init__.py").touch()
    (tmp_path / "shop/settings.py").write_text(SETTINGS)
    (tmp_path / "shop/urls.py").write_text(URLS)
    for name in ("htmx.org/dist/htmx.min.js", "htmx-ext-sse/dist/sse.min.js"):
        shutil.copy(MODULES / name, tmp_path / "shop/static/shop")
    return gateway_factory(DJANGO_SETTINGS_MODULE="shop.settings", PYTHONPATH=f"{tmp_path}:{ROOT}")


@asynccontextmanager
async def broken_proxy(port: int) -> AsyncIterator[asyncio.Queue[None]]:
    """Answer as a proxy does while the gateway is away; give a queue of the requests."""
    requests: asyncio.Queue[None] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(BAD_GATEWAY)
        await writer.drain()
        writer.close()
        requests.put_nowait(None)

    async with await asyncio.start_server(answer, "127.0.0.1", port, reuse_address=True):
        yield requests


async def test_pages_show_each_message_once_whatever_happens_to_the_gateway(
    gateway: Gateway, broker: NatsBroker, tmp_path: Path
) -> None:
    async def publish(*numbers: int) -> None:
        for number in numbers:
            await broker.publish(NEWS, f"<p>{number}</p>".encode())

    await until_declared(broker, NEWS)
    await publish(1)
    async with browser(tmp_path) as plain, plain.another() as htmx:
        tabs = {plain: "news.html", htmx: "news_htmx.html"}
        cookies = {"service": "orders", "user": "ann"}
        for name, value in cookies.items():
            where = {"domain": "127.0.0.1", "path": "/"}
            await plain.command("Network.setCookie", name=name, value=value, **where)
        for tab, path in tabs.items():
            await tab.open(gateway.http(f"/{path}"))

        async def all_show(*numbers: int) -> None:
            wanted = [str(number) for number in numbers]
            for tab in tabs:
                await tab.command("Page.bringToFront")  # or its timers are throttled
                await tab.wait(f"{LINES}.length >= {len(wanted)}")
                assert await tab.run(LINES) == wanted

        await all_show(1)
        await publish(2)
        await all_show(1, 2)
        gateway.kill()  # a browser reconnects by itself
        await publish(3)
        await asyncio.to_thread(gateway.start)
        await all_show(1, 2, 3)
        gateway.kill()
        async with broken_proxy(gateway.port) as requests:  # after an error, it does not
            await publish(4)
            for _ in range(4):  # so many that each has asked again
                await asyncio.wait_for(requests.get(), 30)
        await asyncio.to_thread(gateway.start)
        await publish(5)
        await all_show(1, 2, 3, 4, 5)
        await htmx_shows_mail(broker, htmx)
        await react_effect_begins_and_ends(broker, plain)


async def htmx_shows_mail(broker: NatsBroker, page: Page) -> None:
    await broker.publish(Inbox("orders", "ann"), b"<em>for\nann</em>")
    await page.wait("document.querySelector('#orders em')?.textContent === 'for\\nann'")


async def react_effect_begins_and_ends(broker: NatsBroker, page: Page) -> None:
    await page.command("Page.bringToFront")
    await page.run("window.added = []")
    await page.run(
        "(async () => {"
        "const { openEvents } = await import('/static/shop/events.js');"
        "const add = (text) => added.push(text);"
        "const useEffect = (effect) => { window.cleanUp = effect(); };"
        f"{PAGE.code('useEffect(', 'jsx')}"
        "})()"
    )
    async with asyncio.timeout(20):
        while not await page.run("added.length"):
            await broker.publish(NEWS, b"for react")
            await asyncio.sleep(0.1)
    assert await page.run("added[0]") == "for react"
    await page.run("cleanUp()")


async def test_curl_prints_what_the_page_says(gateway: Gateway, nats_settings: Any) -> None:
    token = PAGE.code("make_token", "sh").replace("python", sys.executable)
    command = PAGE.code("curl", "sh").replace("http://localhost:8000", gateway.http(""))
    process = await asyncio.create_subprocess_shell(
        f"{token}\nexec {command}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=gateway.env,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            begin = await process.stdout.readuntil(b'"topic":"news.shop"')
            await asyncio.to_thread(exec, PAGE.code("send_topic("), {})
            text = await process.stdout.readuntil(b"</p>\n\n")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    printed = shape((begin + text).decode())
    assert printed == shape(PAGE.code("retry:", "text"))


def shape(text: str) -> list[object]:
    """Return the lines without what differs each time: numbers and marks."""
    lines: list[object] = []
    for line in text.strip().splitlines():
        field, _, value = line.partition(": ")
        if field == "data" and value.startswith("{"):
            fields = json.loads(value)
            lines.append(
                {name: name if name in ("epoch", "offset") else fields[name] for name in fields}
            )
        else:
            lines.append(field if field in ("id", "retry") else line)
    return lines
