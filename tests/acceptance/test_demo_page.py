"""The demo page in a real browser.

`make screenshots` films it for the README and saves the documents' pictures. To look at every
state, light and dark, wide and on a phone, set SCREENSHOTS=folder.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.browser import CONTRAST, Page, browser
from tests.acceptance.film import Film
from tests.support import ROOT, Gateway, Process, running
from wsgateway.client import connect
from wsgateway.identity import make_token

CONTENT = "document.querySelector('#content').innerText"
HERE = "document.querySelector('#here').textContent"
LOGGED_OUT = "document.querySelector('nav a')?.textContent === 'Log in'"
ALL_WAIT = "document.querySelector('[data-user=bob] [data-part=waiting]').textContent === '100'"
BOTH_HALVES = """
[...document.querySelectorAll('.panel')].map((panel) => panel.getBoundingClientRect())
  .every(({ top, bottom }) => top >= 0 && bottom <= innerHeight)
"""


@pytest.fixture
def site(gateway_factory: Callable[..., Gateway], demo_database: Path, tmp_path: Path) -> Gateway:
    """A gateway with a copy of `demo_database`."""
    copy = shutil.copy(demo_database, tmp_path / "site.sqlite3")
    return gateway_factory(DATABASE_URL=f"sqlite:///{copy}", WSGATEWAY_OFFLINE_GRACE="0.5")


def part(user: str, name: str) -> str:
    """Return an expression for a part of a user's panel."""
    return f"document.querySelector('[data-user={user}] [data-part={name}]')"


def state(user: str, wanted: str) -> str:
    return f"{part(user, 'status')}?.dataset.state === '{wanted}'"


def texts(user: str, kind: str = "in") -> str:
    selector = f"[data-user={user}] .log .{kind} .text"
    return f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)"


async def log_in(page: Page, site: Gateway, name: str, before: str | None = None) -> None:
    if before:  # somebody else is logged in
        await page.open(site.http("/demo/"))
        await page.run("document.querySelector('nav form').submit()")
        await page.wait(f"location.href === '{site.http('/')}' && {LOGGED_OUT}")
    await page.open(site.http("/login/"))
    await enter(page, name)


async def enter(page: Page, name: str) -> None:
    """Fill in the log-in form that is open, and wait for the demo."""
    await page.run(f"id_username.value = id_password.value = '{name}'")
    await page.run("document.querySelector('main form').submit()")
    await page.wait(state(name, "open"))


async def write(page: Page, user: str, text: str, form: str = "write") -> None:
    await page.run(f"{part(user, form)}.elements.text.value = '{text}'")
    await page.run(f"{part(user, form)}.requestSubmit()")


async def counts(page: Page, user: str) -> dict[str, int]:
    script = ["received", "waiting", "lost", "twice"]
    return {name: int(await page.run(f"{part(user, name)}.textContent")) for name in script}


def publish(site: Gateway, user: str, text: str) -> None:
    command = [sys.executable, "manage.py", "publish", "demo", user, text]
    subprocess.run(command, cwd=ROOT, env=site.env, check=True, stdout=subprocess.DEVNULL)


async def picture(page: Page, name: str, height: int = 1000) -> None:
    """Save pictures of this state, if somebody wants to look: SCREENSHOTS=folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        for dark in (False, True):
            look = "dark" if dark else "light"
            await page.screenshot(Path(folder) / f"{name}-{look}.png", 1200, height, dark=dark)
            await page.screenshot(Path(folder) / f"{name}-phone-{look}.png", 390, 844, dark=dark)
        await page.screenshot(Path(folder) / f"{name}-wide.png", 1200, height)


async def test_what_is_written_to_a_cut_connection_arrives_once_it_is_mended(
    site: Gateway, tmp_path: Path
) -> None:
    async with browser(tmp_path) as page:
        await picture_of_strangers(page, site)
        await log_in(page, site, "ann")
        await page.wait(state("bob", "open"))
        await picture(page, "empty")
        await write(page, "ann", "hello bob")
        await page.wait(f"{texts('bob')}.includes('hello bob')")
        delivered = "document.querySelector('[data-user=ann] .out .mark-text').textContent"
        await page.wait(f"{delivered}.startsWith('✓✓ #')")
        acknowledged = "document.querySelector('[data-user={}] .in .mark-text')?.textContent"
        await page.wait(f"{acknowledged.format('bob')} === '✓ acknowledged'")
        await write(page, "bob", "hello ann")
        await page.wait(f"{acknowledged.format('ann')} === '✓ acknowledged'")
        assert await page.run(texts("ann")) == ["hello ann"]
        await picture(page, "talking")

        film = Film("demo")
        await film.shoot(page, 1500, tmp_path)
        await page.run(f"{part('bob', 'cut')}.click()")
        await page.wait(state("bob", "waiting"))
        await film.shoot(page, 1500, tmp_path)
        await page.run(f"{part('ann', 'burst')}.click()")
        while film.is_wanted and not await page.run(ALL_WAIT):
            await film.shoot(page, 200, tmp_path)
        await page.wait(ALL_WAIT, 30)
        assert (await counts(page, "bob"))["received"] == 1
        await film.shoot(page, 2000, tmp_path)
        await picture(page, "cut")

        await page.run(f"{part('bob', 'cut')}.click()")
        await film.shoot(page, 300, tmp_path)
        await page.wait(f"{part('bob', 'received')}.textContent === '101'")
        assert await counts(page, "bob") == {"received": 101, "waiting": 0, "lost": 0, "twice": 0}
        assert (await page.run(texts("bob")))[1:] == [f"{n} of 100" for n in range(1, 101)]
        await page.wait(f"{part('ann', 'sent')}.textContent === '101'")
        await film.shoot(page, 3500, tmp_path)
        film.save()
        await picture(page, "mended")


@pytest.mark.timeout(90)  # two log-ins, a worker, and three tries of a message
async def test_service_answers_even_if_the_connection_is_cut_meanwhile(
    site: Gateway, tmp_path: Path
) -> None:
    command = [sys.executable, "manage.py", "runservice", "demo"]
    worker = Process(command, tmp_path / "worker.log", site.env)
    mark = "[...document.querySelectorAll('[data-user=ann] .out .mark-text')].at(-1)?.textContent"
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await write(page, "ann", "first", "ask")
        await page.wait(f"{mark} === '✓ stored'")
        await page.run(f"{part('ann', 'cut')}.click()")
        await page.wait(state("ann", "waiting"))
        await write(page, "ann", "second", "ask")
        assert await page.run(mark) == "queued"
        with running(worker):
            worker.spawn()
            await page.run(f"{part('ann', 'cut')}.click()")
            await page.wait(f"{texts('ann')}.length === 2", 30)
            assert await page.run(texts("ann")) == ["echo: first", "echo: second"]
            assert await page.run(mark) == "✓✓ answered"
            await write(page, "ann", "/refuse", "ask")
            await page.wait(f"{mark} === 'refused: you asked for it'")
            crash = "document.querySelector('[data-user=ann] [data-ask$=crash]')"
            await page.run(f"{crash}.click()")
            await page.wait(f"{mark}?.startsWith('failed 3 times; set aside as a dead letter')")
            await picture(page, "asked")
            link = "document.querySelector('[data-user=ann] .mark-text a').href"
            dead_letters = await page.run(link)
            worker.stop()
        await log_in(page, site, "admin", "ann")
        await page.open(dead_letters)
        assert "DemoBug: this message fails at every attempt" in await page.run(CONTENT)


async def picture_of_strangers(page: Page, site: Gateway) -> None:
    await page.open(site.http("/"))
    await picture(page, "stranger", 600)
    await page.open(site.http("/login/"))
    await picture(page, "login", 600)


async def test_messages_arrive_later_and_after_a_restart(site: Gateway, tmp_path: Path) -> None:
    await asyncio.to_thread(publish, site, "ann", "while away")
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await page.wait(f"{texts('ann')}.includes('while away')")
        await asyncio.to_thread(site.stop)
        await page.wait(f"{state('ann', 'waiting')} || {state('ann', 'connecting')}")
        await write(page, "ann", "anybody there?", "ask")
        queued = "document.querySelector('[data-user=ann] .out .mark-text').textContent"
        assert await page.run(queued) == "queued"
        await picture(page, "down")
        await asyncio.to_thread(site.start)
        await page.wait(f"{state('ann', 'open')} && {state('bob', 'open')}", 40)
        await page.wait(f"{queued} === '✓ stored'")
        await asyncio.to_thread(publish, site, "ann", "after the restart")
        await page.wait(f"{texts('ann')}.includes('after the restart')")
        assert await page.run(texts("ann")) == ["while away", "after the restart"]


async def test_page_fits_a_phone_and_can_be_read(site: Gateway, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await page.wait(state("bob", "open"))
        await write(page, "bob", "x" * 300)
        await page.wait(f"{texts('ann')}.length === 1")
        await page.run(f"{part('bob', 'cut')}.click()")
        for dark in (False, True):
            await page.screenshot(tmp_path / "phone.png", 360, 640, dark=dark)
            assert await page.run("document.documentElement.scrollWidth") <= 360
            assert await page.run(CONTRAST) == []
        await page.screenshot(tmp_path / "phone.png", 390, 844)
        assert await page.run(BOTH_HALVES), "one had to scroll to see what the other side got"
        assert await page.run(
            "[...document.querySelectorAll('input:not([type=hidden])')]"
            ".every(field => field.labels.length === 1)"
        )


@pytest.mark.timeout(90)  # three log-ins
async def test_page_that_is_loaded_again_shows_what_it_showed(
    site: Gateway, tmp_path: Path
) -> None:
    """It was empty after a reload, as if everything had been lost."""
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await page.wait(state("bob", "open"))
        await write(page, "ann", "hello bob")
        await page.wait(f"{texts('bob')}.includes('hello bob')")
        await write(page, "bob", "hello ann")
        await page.wait(f"{texts('ann')}.includes('hello ann')")
        await page.run(f"{part('bob', 'cut')}.click()")
        await page.wait(state("bob", "waiting"))
        await write(page, "ann", "later")
        await page.wait(f"{part('bob', 'waiting')}.textContent === '1'")
        await page.command("Page.reload")
        await page.wait(f"{texts('bob')}.length >= 2 && {texts('ann', 'out')}.length >= 2")
        await page.wait(f"{texts('bob', 'out')}.length >= 1 && {state('ann', 'open')}")
        for _ in range(2):
            assert await page.run(texts("bob")) == ["hello bob", "later"]
            assert await page.run(texts("ann", "out")) == ["hello bob", "later"]
            assert await page.run(texts("ann")) == await page.run(texts("bob", "out"))
            assert await page.run(texts("ann")) == ["hello ann"]
            assert (await counts(page, "bob"))["lost"] == 0
            await picture(page, "reloaded")
            await out_and_in_again(page, site)
            await page.wait(f"{texts('bob')}.length >= 2 && {texts('bob', 'out')}.length >= 1")


async def out_and_in_again(page: Page, site: Gateway) -> None:
    """Log out in another tab; the page said "Closed", with nothing to do about it."""
    async with page.another() as tab:
        await tab.open(site.http("/demo/"))
        await tab.run("document.querySelector('nav form').submit()")
        await tab.wait(LOGGED_OUT)
    await page.wait(state("ann", "closed"))
    await page.wait("document.querySelector('#logged-out').checkVisibility()")
    await picture(page, "logged-out")
    await page.run("document.querySelector('#logged-out a').click()")
    await page.wait("document.readyState === 'complete' && location.pathname === '/login/'")
    await enter(page, "ann")


async def say(page: Page, user: str, text: str) -> None:
    await write(page, user, text)
    await page.wait(f"{marks(user, 'out')}.at(-1)?.startsWith('✓✓ #')")


def marks(user: str, kind: str) -> str:
    selector = f"[data-user={user}] .log .{kind} .mark-text"
    return f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)"


async def meet(page: Page, gateway: Gateway) -> None:
    """Let somebody come to the lobby and go, at another gateway than the page's."""
    url, token = gateway.ws("/ws/demo/"), make_token("demo", "cleo")
    async with connect(url, token=token, proxy=None) as client:
        await client.topic("demo-room.lobby").open()
        await page.wait(f"{HERE} === 'Here now: ann, bob, cleo'")
    await page.wait(f"{HERE} === 'Here now: ann, bob'")


@pytest.mark.timeout(90)  # one site, one log-in, both rooms
async def test_room_marks_what_was_missed_and_a_private_one_opens_with_a_token(
    site: Gateway, gateway_factory: Callable[..., Gateway], tmp_path: Path, settings: Any
) -> None:
    settings.SECRET_KEY = "tests"
    async with browser(tmp_path) as page:
        await log_in(page, site, "ann")
        await page.open(site.http("/demo/room/"))
        await page.wait(f"{HERE} === 'Here now: ann, bob'", 15)
        await meet(page, gateway_factory())
        await say(page, "ann", "hello")
        await page.wait(f"{texts('bob')}.includes('hello')")
        await page.run(f"{part('bob', 'cut')}.click()")
        await page.wait(f"{state('bob', 'waiting')} && {HERE} === 'Here now: ann'")
        for text in ("first", "second"):
            await say(page, "ann", text)
        await picture(page, "room-cut")
        await page.run(f"{part('bob', 'cut')}.click()")
        missed = "sent while you were offline"
        await page.wait(f"{marks('bob', 'in')}.join() === ',{missed},{missed}'")
        await say(page, "ann", "third")
        await page.wait(f"{texts('bob')}.length === 4")
        assert await page.run(texts("bob")) == ["hello", "first", "second", "third"]
        assert await page.run(marks("bob", "in")) == ["", missed, missed, ""]
        await page.command("Page.reload")
        await page.wait(f"{texts('bob')}.length === 4 && {texts('ann', 'out')}.length === 4")
        await page.wait(f"{HERE} === 'Here now: ann, bob'")
        await picture(page, "room")
        await private_room(page, site)
        for dark in (False, True):
            await page.screenshot(tmp_path / "phone.png", 360, 640, dark=dark)
            assert await page.run("document.documentElement.scrollWidth") <= 360
            assert await page.run(CONTRAST) == []


async def private_room(page: Page, site: Gateway) -> None:
    """Let bob in and show him out; the page's token would have brought him back at once."""
    await page.open(site.http("/demo/room/private/"))
    refused = f"{part('bob', 'refused')}?.checkVisibility()"
    await page.wait(refused)
    words = f"{part('bob', 'refused')}.textContent"
    assert "bob may not read this room. It opens only with a token" in await page.run(words)
    await picture(page, "room-refused")
    await page.run(f"{part('ann', 'invite')}.click()")
    await page.wait(f"!{refused} && {part('bob', 'write')}.checkVisibility()")
    await say(page, "bob", "thank you")
    await page.wait(f"{texts('ann')}.includes('thank you')")
    await page.run(f"{part('ann', 'invite')}.click()")
    await page.wait(refused)
    assert "bob may not read this room any longer" in await page.run(words)
    await say(page, "ann", "alone again")
    assert await page.run(texts("bob")) == []
    await picture(page, "room-shown-out")
