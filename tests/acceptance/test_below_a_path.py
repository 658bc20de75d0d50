"""The site below a path of a host that it shares with others."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from project.demo.launcher import greeting
from tests.acceptance.browser import Page, browser
from tests.acceptance.proxy import Proxy, listening
from tests.acceptance.test_demo_page import part, state, texts, write
from tests.support import Gateway

Factory = Callable[..., Gateway]

ELSEWHERE = """
[...document.querySelectorAll('[href], [src], [action]')]
  .flatMap((node) => ['href', 'src', 'action'].map((name) => node.getAttribute(name) ?? ''))
  .filter((url) => url.startsWith('/') && !url.startsWith('/chat/') && url !== '/chat')
"""
STYLED = "[...document.styleSheets].reduce((sum, sheet) => sum + sheet.cssRules.length, 0)"


class Stripping(Proxy):
    """Serves the site below ``/chat``, which it takes away from each request's path."""

    async def _pump(self, reader: StreamReader, writer: StreamWriter) -> None:
        head = await reader.read(65536)
        head = re.sub(rb"\A([A-Z]+) /chat(?=/)", rb"\1 ", head)
        writer.write(head.replace(b"Connection: keep-alive", b"Connection: close", 1))
        await super()._pump(reader, writer)


def gets(port: int, path: str) -> tuple[int, str, str]:
    """Return status, location and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, response.headers.get("location", ""), response.read().decode()
    connection.close()
    return answer


@pytest.mark.parametrize(
    ("server", "proxy"),
    [
        ("daphne", Proxy),
        ("daphne", Stripping),
        ("daphne --root-path /chat", Proxy),
        ("uvicorn", Proxy),
        ("uvicorn --root-path /chat", Stripping),
    ],
)
async def test_pages_sockets_and_cookies_stay_below_the_path(
    gateway_factory: Factory,
    demo_database: Path,
    tmp_path: Path,
    server: str,
    proxy: type[Proxy],
) -> None:
    """The demo page connected to /ws/… of the host, and its style sheets were at /static/…."""
    copy = shutil.copy(demo_database, tmp_path / "site.sqlite3")
    gateway = gateway_factory(
        server,
        DATABASE_URL=f"sqlite:///{copy}",
        FORCE_SCRIPT_NAME="/chat",
        WSGATEWAY_IDENTITY="wsgateway.identity.TokenIdentity,wsgateway.identity.SessionIdentity",
    )
    async with listening(proxy(gateway.port)) as front, browser(tmp_path) as page:
        origin = f"http://127.0.0.1:{front.port}"

        async def arrives(path: str, click: str | None = None) -> None:
            await page.run("void (window.left = true)")  # the page before may have the same path
            if click:
                await page.run(click)
            else:
                await page.command("Page.navigate", url=origin + path)
            await page.wait(
                "!window.left && document.readyState === 'complete' "
                f"&& location.pathname === {json.dumps(path)}"
            )
            assert await page.run(ELSEWHERE) == []
            assert await page.run(STYLED) > 20

        await arrives("/chat/")
        await arrives("/chat/login/", "document.querySelector('main a').click()")
        await page.run("id_username.value = id_password.value = 'admin'")
        await arrives("/chat/demo/", "document.querySelector('main form').submit()")
        await page.wait(f"{state('admin', 'open')} && {state('ann', 'open')}")
        await write(page, "admin", "hello ann")
        await page.wait(f"{texts('ann')}.includes('hello ann')")
        assert await page.run(f"{part('ann', 'lost')}.textContent") == "0"
        assert await cookies(page) == {("csrftoken", "/chat"), ("sessionid", "/chat")}

        await arrives("/chat/admin/", "document.querySelector('nav [href$=admin\\\\/]').click()")
        assert await page.run("document.querySelector('#user-tools a').pathname") == "/chat"
        letters = "/chat/admin/wsgateway/deadletterentry/"
        await arrives(letters, f"document.querySelector('a[href=\"{letters}\"]').click()")
        await arrives("/chat/")
        await arrives("/chat/", "document.querySelector('nav form').submit()")
        await page.wait("document.querySelector('nav a')?.pathname === '/chat/login/'")
        await page.command("Page.navigate", url=f"{origin}/chat/admin/")
        await page.wait(
            "document.readyState === 'complete' && location.pathname.endsWith('/login/')"
        )
        await page.run("id_username.value = id_password.value = 'admin'")
        await arrives("/chat/admin/", "document.querySelector('form').submit()")


def test_rungateway_says_where_the_site_is(settings: Any) -> None:
    settings.FORCE_SCRIPT_NAME = "/chat"
    assert "runs on http://127.0.0.1:8000/chat/ " in greeting("127.0.0.1", 8000, "")


async def cookies(page: Page) -> set[tuple[str, str]]:
    """Return names and paths."""
    found = await page.command("Network.getAllCookies")
    return {(cookie["name"], cookie["path"]) for cookie in found["cookies"]}


@pytest.mark.parametrize(
    ("server", "below"),
    [
        ("daphne --root-path /chat", "/chat"),
        ("daphne --root-path /chat", ""),  # a proxy has taken the path away
        ("uvicorn --root-path /chat", ""),
    ],
)
async def test_servers_root_path_alone(
    gateway_factory: Factory, demo_database: Path, server: str, below: str
) -> None:
    """Behind a proxy that strips the path, daphne refused sockets, and ``next`` lost the path."""
    gateway = gateway_factory(server, DATABASE_URL=f"sqlite:///{demo_database}")
    location = "/chat/admin/login/?next=/chat/admin/"
    assert gets(gateway.port, f"{below}/admin/")[:2] == (302, location)
    assert 'href="/chat/login/"' in gets(gateway.port, f"{below}/")[2]
    assert gets(gateway.port, f"{below}/healthz")[0] == 200
    options: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
    async with gateway.connect("orders", "ann", path=f"{below}/ws/orders/ann/", **options) as ws:
        assert json.loads(await ws.recv())["type"] == "welcome"
