"""Pages that Django makes itself, in a real browser, under the site's Content-Security-Policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.browser import Page, browser
from tests.support import Gateway
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.work import Job
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import set_aside

Factory = Callable[..., Gateway]

RECORD = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
STYLED = "[...document.styleSheets].reduce((sum, sheet) => sum + sheet.cssRules.length, 0)"
ADMIN_PAGES = (
    "",
    "auth/user/",
    "auth/user/add/",
    "auth/user/1/change/",
    "auth/user/1/password/",
    "wsgateway/",
    "wsgateway/overview/",
    "wsgateway/serviceentry/",
    "wsgateway/gatewayentry/",
    "wsgateway/streamentry/",
    "wsgateway/deadletterentry/",
    "wsgateway/deadletterentry/1/change/",
    "wsgateway_outbox/outboxmessage/",
)
FORGE = """
document.body.innerHTML = '<form method=post action=/login/></form>';
document.querySelector('form').submit();
"""


async def go(page: Page, url: str) -> None:
    """Open a page that may answer with an error."""
    await page.command("Page.navigate", url=url)
    await page.wait(f"document.readyState === 'complete' && location.href === '{url}'")


async def looks_right(page: Page, name: str) -> None:
    """Fail if the policy took something from the page; save pictures if somebody wants to look."""
    if folder := os.environ.get("SCREENSHOTS"):
        for dark in (False, True):
            look = "dark" if dark else "light"
            await page.screenshot(Path(folder) / f"{name}-{look}.png", 1200, 800, dark=dark)
    assert await page.run("violations") == []
    assert await page.run(STYLED) > 5


async def test_debug_pages_look_as_django_made_them(
    gateway_factory: Factory, demo_database: Path, tmp_path: Path
) -> None:
    """The policy forbids inline styles and scripts, of which these pages consist."""
    gateway = gateway_factory(
        DATABASE_URL=f"sqlite:///{demo_database}",
        DJANGO_SETTINGS_MODULE="tests.debug_site.settings",
    )
    async with browser(tmp_path) as page:
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
        await go(page, gateway.http("/nowhere/"))
        await looks_right(page, "debug-404")
        await go(page, gateway.http("/suspects/"))
        await looks_right(page, "debug-400")
        await go(page, gateway.http("/fails/"))
        await looks_right(page, "debug-500")
        await page.run("document.querySelector('#traceback h2 a').click()")  # an inline handler
        await page.wait("document.querySelector('#browserTraceback').style.display === 'none'")
        await go(page, gateway.http("/"))
        await page.run(FORGE)
        await page.wait("document.readyState === 'complete' && document.title.startsWith('403')")
        await looks_right(page, "debug-403")


async def test_pages_of_the_admin_need_nothing_inline(
    gateway_factory: Factory, broker: NatsBroker, demo_database: Path, tmp_path: Path
) -> None:
    job = Job(Inbox("orders", "ann"), b"<style>", {"Ws-Frame": "text"}, sequence=1, id="1")
    job.attempt = 5
    await set_aside(broker, job, ValueError("bad"))
    copy = shutil.copy(demo_database, tmp_path / "site.sqlite3")
    gateway = gateway_factory(DATABASE_URL=f"sqlite:///{copy}")
    async with browser(tmp_path) as page:
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
        await go(page, gateway.http("/admin/login/"))
        await looks_right(page, "admin-login")
        await page.run("id_username.value = id_password.value = 'admin'")
        await page.run("document.querySelector('form').submit()")
        await page.wait("document.readyState === 'complete' && location.pathname === '/admin/'")
        for name in ADMIN_PAGES:
            await go(page, gateway.http(f"/admin/{name}"))
            await looks_right(page, f"admin-{name.replace('/', '-')}")
