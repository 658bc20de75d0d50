"""The gateway's admin in a real browser: a thousand users, half of them connected."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.acceptance.browser import Page, browser
from tests.support import ROOT, Gateway

Factory = Callable[..., Gateway]

USERS, CONNECTED = 1000, 500
CREATE = f"""
from django.contrib.auth.models import User
User.objects.bulk_create(User(username=f"user{{n:04}}") for n in range({USERS}))
"""
RECORD = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
FIGURES = r"""
Object.fromEntries([...document.querySelectorAll('.wsgateway-figures div')].map((div) =>
  [div.querySelector('dt').textContent,
   div.querySelector('dd').textContent.trim().split(/\s/)[0]]))
"""
CELLS = """
[...document.querySelectorAll('#live {rows} tr')].map((row) =>
  [...row.cells].map((cell) => cell.textContent.trim()))
"""


STATES = """
[...document.querySelectorAll('#result_list .field-gateway_online')]
  .map((cell) => cell.textContent.trim())
  .reduce((sums, text) => ({...sums, [text]: (sums[text] ?? 0) + 1}), {})
"""


@pytest.fixture
def database(demo_database: Path, tmp_path: Path) -> str:
    """The URL of a database with a thousand users."""
    copy = shutil.copy(demo_database, tmp_path / "site.sqlite3")
    return f"sqlite:///{copy}"


@pytest.fixture
def gateways(gateway_factory: Factory, database: str) -> list[Gateway]:
    """Two gateways of one site."""
    found = [gateway_factory(DATABASE_URL=database) for _ in range(2)]
    command = [sys.executable, "manage.py", "shell", "-v0", "-c", CREATE]
    subprocess.run(command, cwd=ROOT, env=found[0].env, check=True)
    return found


@asynccontextmanager
async def connected(gateways: list[Gateway], count: int) -> AsyncIterator[None]:
    """Keep a socket of each of *count* users open, in turn on each gateway."""
    async with AsyncExitStack() as stack:
        for first in range(0, count, 50):
            numbers = range(first, min(first + 50, count))
            await asyncio.gather(
                *(
                    stack.enter_async_context(
                        gateways[n % len(gateways)].connect("demo", f"user{n:04}")
                    )
                    for n in numbers
                )
            )
        yield


async def log_in(page: Page, gateway: Gateway) -> None:
    await page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD)
    await page.open(gateway.http("/admin/login/"))
    await page.run("id_username.value = id_password.value = 'admin'")
    await page.run("document.querySelector('form').submit()")
    await page.wait("document.readyState === 'complete' && location.pathname === '/admin/'")


async def test_a_thousand_users_half_of_them_connected(
    gateways: list[Gateway], tmp_path: Path
) -> None:
    async with browser(tmp_path) as page, connected(gateways, CONNECTED):
        await log_in(page, gateways[0])
        await page.open(gateways[0].http("/admin/wsgateway/overview/"))
        figures = await page.run(FIGURES)
        assert figures["Sockets"] == figures["Users online"] == str(CONNECTED)
        assert figures["Gateways"] == "2"
        await page.open(gateways[0].http("/admin/wsgateway/gatewayentry/"))
        rows = await page.run(CELLS.format(rows="tbody"))
        assert [row[1:3] for row in rows] == [["open", str(CONNECTED // 2)]] * 2
        (total,) = await page.run(CELLS.format(rows="tfoot"))
        assert total[2] == str(CONNECTED)

        # The list of users: a page of them, then those who are online
        await page.open(gateways[0].http("/admin/auth/user/"))
        assert await page.run(STATES) == {"online": 97, "offline": 3}
        await page.open(gateways[0].http("/admin/auth/user/?online=yes"))
        assert f"{CONNECTED} users" in await page.run(
            "document.querySelector('.paginator').textContent"
        )
        assert await page.run(STATES) == {"online": 100}

        # Killed: the page finds out by itself, and nothing of it counts any more
        await page.open(gateways[0].http("/admin/wsgateway/overview/"))
        await page.run("window.sameDocument = true")
        gateways[1].kill()
        await page.wait(f"({FIGURES})['Sockets'] === '{CONNECTED // 2}'")
        assert (await page.run(FIGURES))["Gateways"] == "1"
        assert await page.run("window.sameDocument") is True
        assert await page.run("violations") == []


async def test_page_refreshes_until_it_is_paused_and_says_when_it_cannot(
    gateways: list[Gateway], tmp_path: Path
) -> None:
    status = "document.querySelector('.wsgateway-refresh [role=status]').textContent"
    button = "document.querySelector('.wsgateway-refresh button')"
    async with browser(tmp_path) as page:
        await log_in(page, gateways[0])
        await page.open(gateways[0].http("/admin/wsgateway/overview/"))
        assert (await page.run(FIGURES))["Sockets"] == "0"
        async with connected(gateways, 4):
            await page.wait(f"({FIGURES})['Sockets'] === '4'")
            await page.run(f"{button}.click()")
            assert await page.run(status) == "Paused."
        await page.run(f"{button}.click()")
        await page.wait(f"({FIGURES})['Sockets'] === '0'")
        await asyncio.to_thread(gateways[0].stop)
        await page.wait(f"{status}.startsWith('Not up to date')")
        await asyncio.to_thread(gateways[0].start)
        await page.wait(f"{status} === ''")


async def test_drain_without_scripts(gateways: list[Gateway], tmp_path: Path) -> None:
    """What the pages show, and what can be done there, needs no script."""
    async with browser(tmp_path) as page:
        await log_in(page, gateways[0])
        await page.command("Emulation.setScriptExecutionDisabled", value=True)
        url = gateways[0].http("/admin/wsgateway/gatewayentry/")
        await page.command("Page.navigate", url=url)
        text = "(document.querySelector('#content')?.innerText ?? '')"
        await page.wait(f"location.href === '{url}' && {text}.includes('2 gateways')")
        assert await page.run("document.querySelector('.wsgateway-refresh').hidden")
        await page.run("document.querySelector('#live a[href$=\"/drain/\"]').click()")
        await page.wait(f"{text}.includes('Do you want to drain')")
        await page.run("document.querySelector('#content input[type=submit]').click()")
        await page.wait(f"location.href === '{url}' && {text}.includes('draining')")
