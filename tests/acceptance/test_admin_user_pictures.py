"""The admin's pages of users and their messages in a browser, light and dark, wide and on a phone.

See `test_admin_pictures` for how to save what they look like.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.browser import Page, browser
from tests.acceptance.test_admin_pictures import RECORD, TEXT, Site
from tests.support import ROOT, Gateway
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox

Factory = Callable[..., Gateway]

LONG = "z-name-that-is-as-long-as-user-names-may-be-" * 3 + "<&>"
CREATE = f"""
from django.contrib.auth.models import User
for name in ("carol", "dave", "erin", {LONG!r}):
    User.objects.create(username=name, email=f"{{name[:5]}}@example.com")
for user in User.objects.all():
    print(user.username, user.pk, sep="\\t")
"""
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari"
ADMIN = "/admin/"


@pytest.fixture
def nats_settings(nats_settings: Any) -> Any:
    """The same with the services of the pictures."""
    nats_settings.WSGATEWAY_SERVICES = ["demo", "orders"]
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
    env = {"DATABASE_URL": url, "WSGATEWAY_SERVICES": "demo,orders"}
    return [gateway_factory(**env, **pretended(name)) for name in ("web-1", "web-2")]


@pytest.fixture
def keys(gateways: list[Gateway]) -> dict[str, str]:
    """Users, and their primary keys."""
    command = [sys.executable, "manage.py", "shell", "-v0", "-c", CREATE]
    done = subprocess.run(
        command, cwd=ROOT, env=gateways[0].env, check=True, capture_output=True, text=True
    )
    pairs = (line.split("\t") for line in done.stdout.splitlines())
    return dict(tuple(pair) for pair in pairs)  # type: ignore[misc]


async def fill(broker: NatsBroker) -> None:
    """Store messages of every kind."""
    inbox = Inbox("orders", "carol")
    for number in range(30):
        await broker.publish(inbox, b'{"order": %d, "state": "packed"}' % number)
    await broker.publish(inbox, bytes(range(256)) * 4, kind="binary")
    await broker.publish(inbox, b"\xff\xfe", kind="text")
    await broker.publish(inbox, ("Your parcel has left the warehouse.\n" * 90).encode())
    nested = b'{"type": "order.shipped", "lines": [{"sku": "A-1", "count": 2}], "note": null}'
    await broker.publish(inbox, nested)
    await broker.publish(inbox, b"x" * 5_000)
    await broker.publish(Inbox("orders", "dave"), b"waits")


async def log_in(page: Page, gateway: Gateway) -> None:
    await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
    await page.open(gateway.http("/admin/login/"))
    await page.run("id_username.value = id_password.value = 'admin'")
    await page.run("document.querySelector('form').submit()")
    await page.wait(f"document.readyState === 'complete' && location.pathname === '{ADMIN}'")


def connect(gateway: Gateway, service: str, user: str, device: str) -> Any:
    options: dict[str, Any] = {"query": f"?device={device}", "user_agent_header": AGENT}
    if device == "phone":
        options["subprotocols"] = ["wsgateway.v1"]
    return gateway.connect(service, user, **options)


async def click(page: Page, selector: str, text: str) -> None:
    """Click, and wait for the page that says *text*."""
    await page.run(f"document.querySelector({selector!r}).click()")
    await page.wait(f"document.readyState === 'complete' && {TEXT}.includes({text!r})")


@pytest.mark.timeout(300)
async def test_pages_of_users(
    gateways: list[Gateway],
    keys: dict[str, str],
    broker: NatsBroker,
    tmp_path: Path,
) -> None:
    await fill(broker)
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(browser(tmp_path))
        await log_in(page, gateways[0])
        site = Site(page, gateways, gateways[0], broker)
        for place, service, user, device in (
            (0, "orders", "carol", "phone"),
            (1, "demo", "carol", "laptop"),
            (1, "orders", "dave", "default"),
            (1, "orders", "erin", "default"),
        ):
            await stack.enter_async_context(connect(gateways[place], service, user, device))
        carol = f"auth/user/{keys['carol']}/websockets/?service=orders"
        await site.look("users", "auth/user/", "online")
        await site.look("user", carol, "laptop")
        await stack.enter_async_context(connect(gateways[0], "orders", "carol", "a-device-" * 12))
        await look_at_pages(site, keys)
        await look_at_actions(site, keys)
        gateways[1].send(signal.SIGSTOP)
        try:
            await site.look("users-silent", "auth/user/", "unknown")
            url = f"auth/user/{keys['erin']}/websockets/"
            await site.look("user-silent", url, "does not answer")
        finally:
            gateways[1].send(signal.SIGCONT)


async def look_at_pages(site: Site, keys: dict[str, str]) -> None:
    carol = f"auth/user/{keys['carol']}/websockets/?service=orders"
    await site.look("users-online", "auth/user/?online=yes", "3 users")
    await site.look("user-long", carol, "a-device-")
    await site.page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    for width, dark in ((1280, False), (390, True)):
        await site.look_again("user-open", width, dark)
    await site.look("user-other-service", carol.replace("orders", "demo"), "No messages")
    await site.look("user-older", f"{carol}&before=20", "Newer")
    await site.look("user-times", f"{carol}&since=nonsense&until=2020-01-01T00:00", "valid date")
    await site.look("user-offline", f"auth/user/{keys[LONG]}/websockets/", "offline")
    await site.look("user-form", f"auth/user/{keys['carol']}/change/", "carol")
    message = f"auth/user/{keys['carol']}/websockets/message/?service=orders&offset="
    for number in (31, 34):
        await site.look(f"message-{number}", f"{message}{number}", "Stored")
    await site.look("inboxes", "wsgateway/inboxentry/?service=orders", "carol")
    await site.look("inboxes-none", "wsgateway/inboxentry/?service=orders&name=zoe", "No identity")
    await site.look("inbox", "wsgateway/inboxentry/orders.carol/websockets/", "carol at orders")


async def look_at_actions(site: Site, keys: dict[str, str]) -> None:
    """Do what staff do, by clicking."""
    page, carol = site.page, f"auth/user/{keys['carol']}/websockets/"
    await site.go(f"{carol}?service=orders", "a-device-")
    await page.run("id_kind.value = 'json'; id_content.value = '{'")
    await click(page, "#send [type=submit]", "This is not JSON")
    await site.look_again("user-send-error", 1280, False)
    await site.look_again("user-send-error", 390, True)
    await page.run("id_content.value = '{}'")
    await click(page, "#send [type=submit]", "36 messages")
    await site.look("delete", f"{carol}delete/?service=orders&offset=3", "cannot be restored")
    await click(page, "#content [type=submit]", "Send a message")
    await site.go(f"{carol}?service=orders", "a-device-")
    await click(page, "#live td form [type=submit]", "Send a message")
    await site.look("disconnect", f"{carol}disconnect/", "closes all open sockets")
    await click(page, "#content [type=submit]", "No open sockets")
    await site.look("purge", f"{carol}purge/?service=orders", "cannot be restored")
    await click(page, "#content [type=submit]", "No messages")
    await site.look("log-out", f"{carol}log_out/", "This ends all")
    await click(page, "#content [type=submit]", "Send a message")
    await site.go(f"auth/user/{keys['carol']}/history/", "Purged the inbox")


async def test_page_of_a_user_refreshes(
    gateways: list[Gateway], keys: dict[str, str], tmp_path: Path
) -> None:
    """Connections come and go by themselves; what somebody writes stays."""
    async with browser(tmp_path) as page:
        await log_in(page, gateways[0])
        url = gateways[0].http(f"/admin/auth/user/{keys['carol']}/websockets/")
        await page.open(url)
        await page.wait(f"{TEXT}.includes('No open sockets')")
        await page.run("id_content.value = 'half a mess'; window.sameDocument = true")
        async with gateways[1].connect("orders", "carol"):
            await page.wait(f"{TEXT}.includes('127.0.0.1')")
        await page.wait(f"{TEXT}.includes('No open sockets')")
        assert await page.run("id_content.value") == "half a mess"
        assert await page.run("window.sameDocument") is True
        assert await page.run("violations") == []


async def test_user_is_disconnected_without_scripts(
    gateways: list[Gateway], keys: dict[str, str], tmp_path: Path
) -> None:
    async with browser(tmp_path) as page, gateways[1].connect("orders", "carol") as socket:
        await log_in(page, gateways[0])
        await page.command("Emulation.setScriptExecutionDisabled", value=True)
        url = gateways[0].http(f"/admin/auth/user/{keys['carol']}/websockets/")
        await page.command("Page.navigate", url=url)
        await page.wait(f"location.href === '{url}' && {TEXT}.includes('127.0.0.1')")
        await page.run("document.querySelector('.object-tools a[href$=\"/disconnect/\"]').click()")
        await page.wait(f"{TEXT}.includes('This closes all open sockets')")
        await page.run("document.querySelector('#content [type=submit]').click()")
        async with asyncio.timeout(20):
            await socket.wait_closed()
        assert socket.close_code == 1008
        await page.wait(f"location.href === '{url}' && {TEXT}.includes('No open sockets')")
