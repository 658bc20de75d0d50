"""docs/how-to/channels-tutorial-chat.md, in a browser: the tutorial's chat with topics."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command

from tests.acceptance.browser import browser
from tests.docs.channels_chat import TUTORIAL
from tests.pages import DocumentPage
from tests.support import ROOT, Process, running, site_env
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.client import connect
from wsgateway.protocol.subjects import Inbox
from wsgateway.retention import retention_of

pytestmark = pytest.mark.timeout(60)
PAGE = DocumentPage("how-to/channels-tutorial-chat.md")
MOVING = DocumentPage("how-to/from-channels-redis.md")
LAYER = PAGE.code("CHANNEL_LAYERS")
TUTORIALS_END = """
INSTALLED_APPS = ["daphne", *INSTALLED_APPS, "chat"]
ASGI_APPLICATION = "mysite.asgi.application"
"""
VIEWS = """
from django.shortcuts import render


def room(request, room_name):
    return render(request, "chat/room.html", {"room_name": room_name})
"""
URLS = """
from django.contrib import admin
from django.urls import path

from chat import views

urlpatterns = [path("chat/<str:room_name>/", views.room), path("admin/", admin.site.urls)]
"""
SERVE = """
import sys
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
for name in ("ann", "bob"):
    client = Client()
    client.force_login(User.objects.create_superuser(name))
    print("session of", name, client.cookies["sessionid"].value)
call_command("runserver", sys.argv[1], use_reloader=False)
"""
"""One process does it all: starting Django takes a second."""
KEEP_SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...args) {
    sockets.push(super(...args));
  }
};
"""
SHOWN = "document.querySelector('#chat-log').value"


class Site:
    """The tutorial's project after the last step of the page.

    Args:
        folder: Where it is made.
        nats: The NATS server's URL.
    """

    def __init__(self, folder: Path, nats: str) -> None:
        call_command("startproject", "mysite", folder)
        with (folder / "mysite/settings.py").open("a") as settings:
            rights = PAGE.code("WSGATEWAY_SERVICES")
            test = f'NATS_BROKER_URL = "{nats}"\nWSGATEWAY_PREFIX = "c{secrets.token_hex(5)}"\n'
            settings.write("\n".join([TUTORIALS_END, LAYER, rights, test]))
        PAGE.write_files(folder)
        (folder / "chat/__init__.py").touch()
        (folder / "chat/views.py").write_text(VIEWS)
        (folder / "mysite/urls.py").write_text(URLS)
        self.port = free_port()
        env = site_env(PYTHONPATH=str(ROOT), DJANGO_SETTINGS_MODULE="mysite.settings")
        command = [sys.executable, "-c", SERVE, str(self.port)]
        self.process = Process(command, folder / "server.log", env, folder)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def session(self, user: str) -> str:
        found = re.search(f"session of {user} (.+)", self.process.output)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, nats_server: EmbeddedServer) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("rooms"), nats_server.url)
    with running(made.process):
        made.process.spawn()
        made.process.wait_for_line("connected to NATS")
        yield made


def test_unchanged_chat_has_the_settings_of_the_guide_that_moves_it() -> None:
    """Which `test_from_channels_redis.py` runs, with the tutorial's consumer."""
    moved = MOVING.code("INSTALLED_APPS += ").splitlines()
    code = [line.split("  #")[0] for line in moved if "SILENCED" not in line]
    assert [line.split("  #")[0] for line in LAYER.splitlines()] == code


def test_lines_are_as_few_as_the_page_says() -> None:
    files = PAGE.files()
    ours = lines_of(files["chat/ws_services.py"]) + lines_of(files["mysite/asgi.py"])
    theirs = sum(map(lines_of, TUTORIAL.values()))
    assert f"needs {ours} lines of Python instead of {theirs}." in PAGE.text


def lines_of(code: str) -> int:
    return len([line for line in code.splitlines() if line.strip()])


def test_room_keeps_by_default_what_the_page_says() -> None:
    keep = retention_of("room", {})
    days = keep.max_age / 86400
    assert f"the room keeps {keep.max_messages:,}, for {days:g} days" in PAGE.text


async def test_room_remembers_names_writers_and_survives_a_lost_network(
    site: Site, tmp_path: Path
) -> None:
    bob = connect(
        site.url("/ws/chat/").replace("http", "ws"),
        additional_headers={"Cookie": f"sessionid={site.session('bob')}"},
        origin=site.url(""),
        proxy=None,
    )
    async with asyncio.timeout(45), bob, bob.topic("room.lobby", since="all") as room:
        await room.send("before you came")
        assert (await room.recv()).data == "before you came"
        async with browser(tmp_path) as page:

            async def write(text: str) -> None:
                await page.run(f"document.querySelector('#chat-message-input').value = '{text}'")
                await page.run("document.querySelector('form').requestSubmit()")

            await page.open(site.url("/static/wsgateway/wsgateway.d.ts"))
            await page.run(f"document.cookie = 'sessionid={site.session('ann')}; path=/'")
            await page.command("Page.addScriptToEvaluateOnNewDocument", source=KEEP_SOCKETS)
            await page.open(site.url("/chat/lobby/"))
            log = "bob: before you came\n"
            await page.wait(f"{SHOWN} === {json.dumps(log)}")
            await write("hello")
            heard = await room.recv()
            assert (heard.data, heard.sender) == ("hello", Inbox("chat", "ann"))
            log += "ann: hello\n"
            await page.wait(f"{SHOWN} === {json.dumps(log)}")

            await page.network(offline=True)
            await page.run("sockets[0].close()")
            await room.send("while you were away")
            assert (await room.recv()).data == "while you were away"
            await write("from a tunnel")
            assert await page.run(SHOWN) == log
            await page.network(offline=False)
            heard = await room.recv()
            assert (heard.data, heard.sender) == ("from a tunnel", Inbox("chat", "ann"))
            log += "bob: while you were away\nann: from a tunnel\n"
            await page.wait(f"{SHOWN} === {json.dumps(log)}")


def test_visitors_have_to_log_in(site: Site) -> None:
    with urllib.request.urlopen(site.url("/chat/lobby/")) as answer:
        assert answer.url == site.url("/admin/login/?next=/chat/lobby/")
