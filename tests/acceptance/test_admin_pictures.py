"""Every page and state of the gateway's admin, light and dark, wide and on a phone.

`make screenshots` saves those that the documents show: DOCS_IMAGES=docs/images. To look at all of
them, set SCREENSHOTS=folder.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.browser import CONTRAST, Page, browser
from tests.support import Gateway, Process, site_env
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import set_aside

Factory = Callable[..., Gateway]

WIDE, PHONE = 1280, 390
TALLEST = 1600
IN_THE_DOCS = {
    "overview-stuck": "admin-overview",
    "services": "admin-services",
    "service": "admin-service",
    "gateways": "admin-gateways",
    "streams": "admin-streams",
    "users": "admin-users",
    "user": "admin-user",
}
"""Pictures that the documents show, by the state that they show; each light."""
RECORD = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
UNREADABLE = CONTRAST.replace("body *", "#content-main *")
HEIGHT = "document.documentElement.scrollHeight"
BOTTOM = """
Math.ceil(['#inbox tr:nth-child(8)', '#live', '#changelist'].map((part) =>
  document.querySelector(part)).find(Boolean).getBoundingClientRect().bottom) + 60
"""
SERVICES = ["demo", "orders"]
LIMITS = {
    f"WSGATEWAY_{family}_MAX_BYTES": 4_000_000
    for family in ("INBOX", "SEND", "DEAD", "CURSOR", "CHANNEL", "BLOB")
}
"""Small, so that a stream can be nearly full."""
TEXT = "(document.querySelector('#content')?.innerText ?? '')"


class Site:
    """Two gateways, a worker, and a browser that is logged in.

    Args:
        page: The browser's.
        gateways: The first serves the pages.
        worker: Runs the service ``demo``.
        broker: For what clients and workers would do.
    """

    def __init__(
        self, page: Page, gateways: list[Gateway], worker: Process, broker: NatsBroker
    ) -> None:
        self.page = page
        self.gateways = gateways
        self.worker = worker
        self.broker = broker

    async def go(self, path: str, text: str = "") -> None:
        """Open a page, again and again until it shows *text*."""
        url = self.gateways[0].http(f"/admin/{path}")
        async with asyncio.timeout(30):
            while True:
                await self.page.command("Page.navigate", url=url)
                await self.page.wait(
                    f"document.readyState === 'complete' && location.href === '{url}'"
                )
                if text in await self.page.run(TEXT):
                    return
                await asyncio.sleep(0.2)

    async def look(self, name: str, path: str, text: str = "") -> None:
        """Open a page and look at it in every way."""
        await self.go(path, text)
        for width in (WIDE, PHONE):
            for dark in (False, True):
                if "SCREENSHOTS" in os.environ or dark == (width == PHONE):
                    await self.look_again(name, width, dark)
        assert await self.page.run("violations") == []

    async def look_again(self, name: str, width: int, dark: bool) -> None:
        """Look at the page that is open."""
        look = f"{'dark' if dark else 'light'}-{width}"
        await self.page.resize(width, 800, dark=dark)
        height = min(await self.page.run(HEIGHT), TALLEST)
        await self.page.resize(width, height, dark=dark)
        if folder := os.environ.get("SCREENSHOTS"):
            path = Path(folder) / f"admin-{name}-{look}.png"
            await self.page.screenshot(path, width, height, dark=dark)
        assert await self.page.run("document.documentElement.scrollWidth") <= width, look
        assert await self.page.run(UNREADABLE) == [], look
        images = os.environ.get("DOCS_IMAGES")
        if images and name in IN_THE_DOCS and (width, dark) == (WIDE, False):
            path = Path(images) / f"{IN_THE_DOCS[name]}.png"
            path.parent.mkdir(exist_ok=True)
            await self.page.screenshot(path, width, await self.page.run(BOTTOM))

    async def names(self) -> list[str]:
        """Return the ids of the gateways, as the page shows them."""
        await self.go("wsgateway/gatewayentry/", "2 gateways")
        script = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent.trim())"
        found: list[str] = await self.page.run(script)
        return found


@pytest.fixture
def prefix() -> str:
    """The usual one, which is what the pictures should show; nobody else has it."""
    return "ws"


@pytest.fixture
def nats_settings(nats_settings: Any) -> Any:
    """The same with the services of the pictures, and limits."""
    nats_settings.WSGATEWAY_SERVICES = SERVICES
    for name, value in LIMITS.items():
        setattr(nats_settings, name, value)
    return nats_settings


@pytest.fixture
def gateways(
    gateway_factory: Factory,
    demo_database: Path,
    tmp_path: Path,
    pretended: Callable[[str], dict[str, str]],
) -> list[Gateway]:
    """Two gateways of one site."""
    url = f"sqlite:///{shutil.copy(demo_database, tmp_path / 'site.sqlite3')}"
    env = {name: str(value) for name, value in LIMITS.items()}
    env |= {"DATABASE_URL": url, "WSGATEWAY_SERVICES": ",".join(SERVICES)}
    return [gateway_factory(**env, **pretended(name)) for name in ("web-1", "web-2")]


@pytest.fixture
def worker(
    gateways: list[Gateway], tmp_path: Path, pretended: Callable[[str], dict[str, str]]
) -> Iterator[Process]:
    """A worker of the service ``demo``."""
    command = [sys.executable, "manage.py", "runservice", "demo", "--noreload"]
    env = site_env(**{**gateways[0].env, **pretended("worker-1")})
    process = Process(command, tmp_path / "worker.log", env)
    process.spawn()
    process.wait_for_line("ready")
    yield process
    process.kill()


async def offer(broker: NatsBroker, service: str, user: str, text: str) -> None:
    """Do what a gateway does with a client's frame."""
    await broker.offer(Inbox(service, user), Frame.of(text), f"{service}.{user}.{text}")


async def bury(broker: NatsBroker, number: int, user: str, error: Exception) -> None:
    """Make a dead letter."""
    inbox = Inbox("orders", user)
    job = Job(inbox, b'{"count": 0}', {"Ws-Frame": "text"}, sequence=number, id=f"S.{number}")
    job.attempt = 5
    try:
        raise error
    except type(error) as exc:
        await set_aside(broker, job, exc)


@pytest.mark.timeout(300)
async def test_every_page_and_state(
    gateways: list[Gateway], worker: Process, broker: NatsBroker, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(browser(tmp_path))
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
        site = Site(page, gateways, worker, broker)
        await page.open(gateways[0].http("/admin/login/"))
        await page.run("id_username.value = id_password.value = 'admin'")
        await page.run("document.querySelector('form').submit()")
        await page.wait("document.readyState === 'complete' && location.pathname === '/admin/'")
        for number, user in enumerate(("ann", "bob", "carol", "dave", "erin")):
            for service in ("demo", "orders"):
                gateway = gateways[number % 2]
                await stack.enter_async_context(gateway.connect(service, user))
        await site.look("overview-fine", "wsgateway/overview/", "Nothing needs your attention")
        await site.look("dead-letters-none", "wsgateway/deadletterentry/", "There are no dead")
        await look_at_services(site)
        for number in range(33):
            await broker.publish(Inbox("orders", f"user{number}"), bytes(100_000))
        await look_at_gateways(site)
        await look_at_streams(site)
        await look_at_dead_letters(site)


async def look_at_services(site: Site) -> None:
    for user in ("ann", "bob", "carol"):
        await offer(site.broker, "demo", user, "/wait 5")
    await site.look("services", "wsgateway/serviceentry/", "ann")
    for number in range(12):
        await offer(site.broker, "orders", f"user{number % 4}", f"{number}")
    await bury(site.broker, 1, "ann", ValueError("count must be 1 or more, not 0"))
    await bury(site.broker, 2, "dave", ConnectionError("the shop's database does not answer"))
    await site.look("service", "wsgateway/serviceentry/orders/change/", "ValueError")
    await site.look("service-working", "wsgateway/serviceentry/demo/change/")
    await site.look("service-unknown", "wsgateway/serviceentry/nobody/change/", "no such service")


async def look_at_gateways(site: Site) -> None:
    name = next(name for name in await site.names() if name.startswith("web-2"))
    page = f"wsgateway/gatewayentry/{name}"
    await site.look("gateways", "wsgateway/gatewayentry/")
    await site.look("gateway", f"{page}/change/", "open")
    await site.look("drain", f"{page}/drain/")
    await site.page.run("document.querySelector('#content input[type=submit]').click()")
    await site.page.wait(f"document.readyState === 'complete' && {TEXT}.includes('draining')")
    await site.look("gateway-draining", f"{page}/change/", "draining")
    await site.look("gateway-history", f"{page}/history/", "Drained.")
    site.gateways[1].send(signal.SIGSTOP)
    try:
        await site.look("gateways-silent", "wsgateway/gatewayentry/", "does not answer")
        await site.look("gateway-silent", f"{page}/change/", "does not answer")
        await site.look("overview-stuck", "wsgateway/overview/", "does not answer")
    finally:
        site.gateways[1].send(signal.SIGCONT)


async def look_at_streams(site: Site) -> None:
    name = site.broker.subjects.stream("recv")
    await site.look("streams", "wsgateway/streamentry/", name)
    await site.look("stream", f"wsgateway/streamentry/{name}/change/", "Subjects with messages")


async def look_at_dead_letters(site: Site) -> None:
    await site.look("dead-letters", "wsgateway/deadletterentry/", "ValueError")
    await site.look("dead-letter", "wsgateway/deadletterentry/1/change/", "Traceback")
    await site.page.run("document.querySelector('#content [name=purge]').click()")
    await site.page.wait(f"{TEXT}.includes('What the clients sent is lost')")


async def test_pages_without_a_broker(
    gateway_factory: Factory, own_server: Any, demo_database: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{shutil.copy(demo_database, tmp_path / 'site.sqlite3')}"
    gateway = gateway_factory(DATABASE_URL=url, NATS_BROKER_URL=own_server.url)
    async with browser(tmp_path) as page:
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
        await page.open(gateway.http("/admin/login/"))
        await page.run("id_username.value = id_password.value = 'admin'")
        await page.run("document.querySelector('form').submit()")
        await page.wait("document.readyState === 'complete' && location.pathname === '/admin/'")
        own_server.stop()
        for name in ("overview", "serviceentry", "gatewayentry", "streamentry"):
            site = Site(page, [gateway], gateway, None)  # type: ignore[arg-type]  # not asked
            await site.look(f"{name}-away", f"wsgateway/{name}/", "unknown")
