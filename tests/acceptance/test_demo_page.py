"""The demo page in a real browser."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.browser import Page, browser
from tests.support import ROOT, Gateway

ITEMS = "[...document.querySelectorAll('#inbox li span')].map(e => e.textContent)"
CONNECTED = "document.querySelector('#status')?.dataset.state === 'connected'"


@pytest.fixture
def site(gateway_factory: Callable[..., Gateway]) -> Gateway:
    """A gateway whose database knows the demo users."""
    gateway = gateway_factory()
    script = "from wsgateway.launcher import create_demo_users as c; c()"
    for command in (["migrate", "-v0"], ["shell", "-v0", "-c", script]):
        subprocess.run(
            [sys.executable, "manage.py", *command], cwd=ROOT, env=gateway.env, check=True
        )
    return gateway


async def log_in(page: Page, site: Gateway, name: str) -> None:
    await page.open(site.http("/login/"))
    await page.run(f"id_username.value = id_password.value = '{name}'")
    await page.run("document.querySelector('main form').submit()")
    await page.wait(CONNECTED)


async def submit(page: Page, form: str, **fields: str) -> None:
    for name, value in fields.items():
        await page.run(f"document.forms['{form}'].elements['{name}'].value = '{value}'")
    await page.run(f"document.forms['{form}'].requestSubmit()")


def publish(site: Gateway, user: str, text: str) -> None:
    command = [sys.executable, "manage.py", "publish", "demo", user, text]
    subprocess.run(command, cwd=ROOT, env=site.env, check=True, stdout=subprocess.DEVNULL)


async def test_messages_arrive_at_once_later_and_after_a_restart(
    site: Gateway, tmp_path: Path
) -> None:
    await asyncio.to_thread(publish, site, "ann", "while away")
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await page.wait(f"{ITEMS}.includes('while away')")
        await submit(page, "publish", user="ann", text="now")
        await page.wait(f"{ITEMS}.includes('now')")
        assert await page.run("published.textContent") == "Stored for ann at offset 2."
        await submit(page, "send", frame="to the service")
        await page.wait("sent.textContent === 'Sent: to the service'")
        await asyncio.to_thread(site.stop)
        await page.wait("document.querySelector('#status').dataset.state === 'waiting'")
        await asyncio.to_thread(site.start)
        await page.wait(CONNECTED, 30)
        await asyncio.to_thread(publish, site, "ann", "after the restart")
        await page.wait(f"{ITEMS}.includes('after the restart')")
        assert await page.run(ITEMS) == ["while away", "now", "after the restart"]
        if folder := os.environ.get("SCREENSHOTS"):
            await take_pictures(page, Path(folder))


async def take_pictures(page: Page, folder: Path) -> None:
    await page.screenshot(folder / "demo-wide.png", 1000, 760)
    await page.screenshot(folder / "demo-phone.png", 390, 844, dark=True)


async def test_page_fits_a_phone(site: Gateway, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await log_in(page, site, "admin")
        await submit(page, "publish", user="admin", text="x" * 300)
        await page.wait(f"{ITEMS}.length === 1")
        await page.screenshot(tmp_path / "phone.png", 360, 640)
        assert await page.run("document.documentElement.scrollWidth") <= 360
        assert await page.run(
            "[...document.querySelectorAll('input:not([type=hidden])')]"
            ".every(field => field.labels.length === 1)"
        )
