"""The tutorial, done as it says, from an empty folder to production settings.

``TUTORIAL_NEWEST=1`` does it with the newest versions of everything, ``TUTORIAL_PYTHON=program``
with another Python. ``TUTORIAL_RESULT=folder`` saves the project that comes out: that is what
``examples/chat/`` is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.browser import CONTRAST, Page, browser
from tests.acceptance.tutorial import PAGES, PASSWORD, Walk, read_page
from tests.support import ROOT, wait_for

EXAMPLE = ROOT / "examples/chat"
NEWEST = bool(os.environ.get("TUTORIAL_NEWEST"))
LEFT_OUT = (".venv", ".nats", ".pytest_cache", "__pycache__", "staticfiles", "wheels", "README.md")
"""What is not part of the project that the tutorial builds."""
VARYING = [
    (re.compile(r"django-insecure-[^'\"]+"), "…"),
    (re.compile(r"/en/[\w.]+/|Django [\d.]+\d( on [\d: -]+)?"), "…"),
]
"""What Django writes differently each time, or in each version."""
OURS = 'INSTALLED_APPS = ["daphne"'
"""Where Django's own part of the settings ends."""

SET_UP, FIRST_MESSAGE, SERVICE, OFFLINE, ROOM, TESTS, DEPLOY = PAGES
TEXTS = "[...document.querySelectorAll('#messages li')].map((item) => item.firstChild.data)"
HEIGHT = 460
STATE = "document.querySelector('#state')?.textContent"


@pytest.fixture
def walk(tmp_path: Path, wheel: Path) -> Iterator[Walk]:
    """A reader in an empty folder."""
    pins = [] if NEWEST else ["-c", str(ROOT / "requirements-dev.txt")]
    walk = Walk(tmp_path, wheel, pins)
    yield walk
    walk.close()


class Reader:
    """A user in a browser.

    Args:
        page: The browser's tab.
        url: The site's.
        name: The user's.
    """

    def __init__(self, page: Page, url: str, name: str) -> None:
        self._page = page
        self._url = url
        self._name = name

    async def log_in(self) -> None:
        """Open the site, which shows a login page, and log in."""
        await self._page.command("Page.navigate", url=f"{self._url}/")
        await self._page.wait("document.readyState === 'complete' && !!window.id_username")
        await self._page.run(f"id_username.value = '{self._name}'")
        await self._page.run(f"id_password.value = '{PASSWORD}'")
        await self._page.run("id_password.form.querySelector('[type=submit], button').click()")
        await self.sees_state("open")

    async def opens(self, path: str = "/") -> None:
        """Open a page."""
        await self._page.open(self._url + path)
        await self.sees_state("open", path)

    async def leaves(self) -> None:
        """Close the page, as far as the site can tell."""
        await self._page.open("about:blank")

    async def sees_state(self, state: str, path: str = "/") -> None:
        """Wait until the page says this of its connection."""
        await self._page.wait(f"location.pathname === '{path}' && {STATE} === '{state}'")

    async def sees(self, *texts: str) -> None:
        """Wait until the page shows these messages, and no others."""
        wanted = json.dumps(texts)
        try:
            await self._page.wait(f"JSON.stringify({TEXTS}) === JSON.stringify({wanted})")
        except TimeoutError:
            pytest.fail(f"{self._name} should see {wanted}, but sees {await self._page.run(TEXTS)}")

    async def writes(self, text: str) -> None:
        """Send a message to the first of the others."""
        fill = f"document.querySelector('#write').elements.text.value = {json.dumps(text)}"
        await self._page.run(f"{fill}; document.querySelector('#write').requestSubmit()")

    async def looks(self, folder: Path) -> None:
        """Check that the page can be read, light and dark, wide and on a phone.

        With DOCS_IMAGES=folder, save what the tutorial shows.
        """
        await self._page.command("Page.bringToFront")  # the other tab may be
        for width, dark in itertools.product((1280, 390, 640), (False, True)):
            path = folder / f"chat-{width}-{'dark' if dark else 'light'}.png"
            await self._page.screenshot(path, width, HEIGHT, dark=dark)
            assert await self._page.run("document.documentElement.scrollWidth") <= width
            assert await self._page.run(CONTRAST) == []
            if width == 640 and (images := os.environ.get("DOCS_IMAGES")):
                shutil.copy(path, Path(images) / f"tutorial-chat{'-dark' if dark else ''}.png")


async def do(walk: Walk, page: str, *sections: str) -> None:
    """Do what sections of a page say, without keeping the browser waiting for answers."""
    for section in sections:
        await asyncio.to_thread(walk.section, page, section)


def answer(walk: Walk, path: str) -> str:
    """Return what the site answers, as the platform's router asks it."""
    request = urllib.request.Request(walk.url + path, headers={"X-Forwarded-Proto": "https"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())


@pytest.mark.timeout(600)  # half a minute on a machine that has nothing else to do
async def test_tutorial_as_it_stands(walk: Walk, tmp_path: Path) -> None:
    await do(walk, SET_UP, "Install", "Add wsgateway", "Check", "Start")
    async with browser(tmp_path) as tab, tab.another() as other_tab:
        ann = Reader(tab, walk.url, "ann")
        # Another name of the same host has cookies of its own, as a private window has
        bob = Reader(other_tab, walk.url.replace("127.0.0.1", "localhost"), "bob")
        await receive_first_messages(walk, ann)
        await write_to_each_other(walk, ann, bob)
        await go_and_come_back(walk, ann, bob)
        await meet_in_the_room(walk, ann, bob)
        await ann.opens()
        await ann.looks(Path(os.environ.get("SCREENSHOTS") or tmp_path))
    await do(walk, TESTS, "")
    await deploy(walk)
    assert walk.walked == [block for page in PAGES for block in read_page(page)]
    compare_with_example(walk)


async def receive_first_messages(walk: Walk, ann: Reader) -> None:
    await do(walk, FIRST_MESSAGE, "The page")
    await ann.log_in()
    await do(walk, FIRST_MESSAGE, "Send a message")
    await ann.sees("Hello, ann", "Hello from Django")
    await ann.leaves()
    await do(walk, FIRST_MESSAGE, "Close the tab")
    await ann.opens()
    await ann.sees("You were away", "So these two waited")
    await ann.leaves()
    await do(walk, FIRST_MESSAGE, "Stop the server")
    await ann.opens()
    await ann.sees("Nobody is running")
    await ann.leaves()


async def write_to_each_other(walk: Walk, ann: Reader, bob: Reader) -> None:
    await do(walk, SERVICE, "The handler", "The page", "Run it")
    await asyncio.to_thread(walk.reload)
    await bob.log_in()
    await ann.opens()
    await ann.sees()
    await ann.writes("Are you coming to the sprint on Friday?")
    await bob.sees("Are you coming to the sprint on Friday?")
    await bob.writes("Yes, and I will bring cake.")
    await ann.sees("Are you coming to the sprint on Friday?", "Yes, and I will bring cake.")
    await bob.leaves()
    await ann.leaves()


async def go_and_come_back(walk: Walk, ann: Reader, bob: Reader) -> None:
    await do(walk, OFFLINE, "Keep a history")
    await asyncio.to_thread(walk.reload)
    await asyncio.to_thread(walk.servers["runservice"].wait_for_line, "chat: ready")
    said = ["I booked the train.", "Which one?"]
    await ann.opens()
    await ann.writes(said[0])
    await ann.sees(said[0])
    await bob.opens()
    await bob.sees(said[0])
    await bob.opens()
    await bob.sees(said[0])
    await stop_the_worker(walk, ann, bob, said)
    await stop_the_site(walk, ann, bob, said)


async def stop_the_worker(walk: Walk, ann: Reader, bob: Reader, said: list[str]) -> None:
    """Write while nobody handles messages: they wait, in NATS."""
    await asyncio.to_thread(walk.stop, "runservice")
    await bob.writes(said[1])
    await asyncio.to_thread(wait_for, lambda: waiting(walk) == 1, 60, "the message waits")
    await bob.sees(said[0])
    await do(walk, OFFLINE, "Stop the worker")
    await bob.sees(*said)
    await ann.sees(*said)


def waiting(walk: Walk) -> int:
    """Return how many messages wait for the worker, as the command of the page shows it."""
    [block] = [block for block in read_page(OFFLINE) if "gateway status" in block.code]
    found = re.search(r"^chat +\d+ +\d+ +(\d+) .* 0 +\d+$", walk.run(block.code), re.M)
    return int(found[1]) if found else -1


async def stop_the_site(walk: Walk, ann: Reader, bob: Reader, said: list[str]) -> None:
    """Write while there is no connection: messages wait, in the pages."""
    await asyncio.to_thread(walk.stop, "runserver")
    await ann.sees_state("waiting")
    await bob.sees_state("waiting")
    await ann.writes("The early one.")
    await do(walk, OFFLINE, "Stop the site")
    said.append("The early one.")
    await bob.sees(*said)
    await ann.sees(*said)
    await bob.writes("See you there!")
    said.append("See you there!")
    await ann.sees(*said)
    await ann.opens()
    await ann.sees(*said)


async def meet_in_the_room(walk: Walk, ann: Reader, bob: Reader) -> None:
    await bob.leaves()
    await do(walk, ROOM, "Who may enter", "The page")
    await asyncio.to_thread(walk.reload)
    await ann.opens("/room/")
    await ann.writes("Who is coming on Friday?")
    await ann.sees("Who is coming on Friday?")
    await bob.opens("/room/")
    await bob.writes("I am.")
    for reader in (ann, bob):
        await reader.sees("Who is coming on Friday?", "I am.")
    await bob.leaves()
    await do(walk, ROOM, "Try it")
    await bob.opens("/room/")
    for reader in (ann, bob):
        await reader.sees("Who is coming on Friday?", "I am.", "The sprint begins at nine.")


async def deploy(walk: Walk) -> None:
    """Run the site with the settings for production."""
    await do(walk, DEPLOY, "Settings for production", "NATS")
    walk.stop()
    await do(walk, DEPLOY, "Try it on your machine")
    [procfile] = [block.code for block in read_page(DEPLOY) if block.code.startswith("release:")]
    for line in procfile.splitlines():
        for command in line.partition(": ")[2].split(" && "):
            assert any(command in block.code.splitlines() for block in walk.walked), command
    assert "<label" in await asyncio.to_thread(answer, walk, "/accounts/login/")
    assert "class WsGateway" in await asyncio.to_thread(
        answer, walk, "/static/wsgateway/wsgateway.js"
    )
    assert "Traceback" not in walk.servers["daphne"].output


def compare_with_example(walk: Walk) -> None:
    """Check that ``examples/chat/`` is what came out; save it if that is wanted."""
    project = walk.project
    made = read_files(project)
    if folder := os.environ.get("TUTORIAL_RESULT"):
        for name in made:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, Path(folder) / name)
    example = read_files(EXAMPLE)
    assert made.keys() == example.keys()
    if NEWEST:  # the rest is what another version of Django writes
        made, example = ({name: files[name] for name in walk.written} for files in (made, example))
        name = "mysite/settings.py"
        made[name], example[name] = made[name].partition(OURS)[2], example[name].partition(OURS)[2]
    assert made == example


def read_files(folder: Path) -> dict[str, str]:
    """Return the files of a project, without what differs from run to run."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not set(LEFT_OUT) & set(name.parts) and path.suffix != ".sqlite3":
            found[str(name)] = path.read_text()
            for pattern, constant in VARYING:
                found[str(name)] = pattern.sub(constant, found[str(name)])
    return found
