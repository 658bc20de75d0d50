"""A Django project that consists of what the pages for front-end people show, and its processes."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats

from tests.acceptance.browser import Page
from tests.faults.traffic import broker_at
from tests.support import ROOT, Gateway, Process, running
from wsgateway.protocol.subjects import Inbox

PAGES = [
    ROOT / "docs/how-to/htmx.md",
    ROOT / "docs/reference/client-javascript.md",
]
BLOCK = re.compile(r"```(?:python|html|js)\n(?:#|<!--|//) (shop/\S+?)(?: -->)?\n(.*?)```", re.S)
MODULES = ROOT / "tests/js/node_modules"
SETTINGS = """
from project.settings import *

INSTALLED_APPS += ["shop"]
MIDDLEWARE.remove("project.middleware.content_security_policy")
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ROOT_URLCONF = "shop.urls"
"""
URLS = """
from pathlib import Path

from django.contrib.auth.decorators import login_required
from django.shortcuts import render
from django.urls import include, path

from shop import views

TEMPLATES = [file.name for file in (Path(__file__).parent / "templates/shop").iterdir()]
urlpatterns = [
    *(
        path(f"shop/{name}", views.orders, {"template": f"shop/{name}"})
        for name in TEMPLATES
    ),
    path("", include("project.urls")),
]
"""
PREPARE = """
import json

import django

django.setup()

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.http import HttpRequest

call_command("migrate", verbosity=0, run_syncdb=True)
call_command("collectstatic", verbosity=0, interactive=False)
keys = {}
for name in ("ann", "bob", "cid", "dora", "eve", "fay"):
    user = get_user_model().objects.create_superuser(name, password=name)
    request = HttpRequest()
    request.session = SessionStore()
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    keys[name] = request.session.session_key
print(json.dumps(keys))
"""


class Shop:
    """The project while it runs.

    Args:
        gateway: Serves its pages and sockets.
        sessions: The session key of each user.
    """

    def __init__(self, gateway: Gateway, sessions: dict[str, str]) -> None:
        self.gateway = gateway
        self._sessions = sessions

    async def log_in(self, page: Page, user: str) -> None:
        """Give the browser the session cookie of *user*, for every port of this machine."""
        cookie = {"name": "sessionid", "value": self._sessions[user], "domain": "127.0.0.1"}
        await page.command("Network.setCookie", **cookie, path="/")

    async def send(self, user: str, text: str) -> None:
        """Store a message for a user of the service ``orders``, as any other program does."""
        env = self.gateway.env
        async with broker_at([env["NATS_BROKER_URL"]], env["WSGATEWAY_PREFIX"]) as broker:
            await broker.publish(Inbox("orders", user), text.encode())

    async def empty_inboxes(self) -> None:
        """Remove all messages from all inboxes, as the limit on their age does."""
        client = await nats.connect(self.gateway.env["NATS_BROKER_URL"])
        stream = client.jetstream()
        subject = f"{self.gateway.env['WSGATEWAY_PREFIX']}.recv.*.*"
        await stream.purge_stream(await stream.find_stream_name_by_subject(subject))
        await client.close()


def _python(gateway: Gateway, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=gateway.env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_shop(folder: Path) -> None:
    """Write the app ``shop`` into *folder*, from the pages."""
    for page in PAGES:
        for name, text in BLOCK.findall(page.read_text()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    templates = folder / "shop/templates/shop"
    both = (templates / "orders_acknowledged.html").read_text(), (PAGES[0]).read_text()
    (templates / "orders_acknowledged_htmx4.html").write_text(for_htmx_4(*both))
    (folder / "shop/__init__.py").touch()
    (folder / "shop/settings.py").write_text(SETTINGS)
    (folder / "shop/urls.py").write_text(URLS)
    static = folder / "shop/static/shop"
    static.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODULES / "htmx.org/dist/htmx.min.js", static)
    shutil.copy(MODULES / "htmx-ext-ws/dist/ws.min.js", static)
    shutil.copy(MODULES / "htmx4/dist/htmx.min.js", static / "htmx4.min.js")
    shutil.copy(MODULES / "htmx4/dist/ext/hx-ws.min.js", static)


def for_htmx_4(template: str, page: str) -> str:
    """Return the template with the line that the page shows for htmx 4."""
    line = r'client\.on\("message".*;'
    [replacement] = re.findall(line, page.partition("## With htmx 4")[2])
    assert re.search(line, template)
    template = re.sub(line, lambda _: replacement, template)
    return template.replace("shop/htmx.min.js", "shop/htmx4.min.js")


@contextmanager
def build_shop(folder: Path, nats_url: str) -> Iterator[Shop]:
    """Run it as in production, with hashed static files: a gateway, and a worker for ``orders``."""
    write_shop(folder)
    env = {
        "DEBUG": "0",
        "HTTPS": "0",
        "SECRET_KEY": secrets.token_hex(32),
        "ALLOWED_HOSTS": "127.0.0.1",
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "STATIC_ROOT": str(folder / "static"),
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
        "NATS_BROKER_URL": nats_url,
        "WSGATEWAY_PREFIX": f"t{secrets.token_hex(6)}",
        "WSGATEWAY_IDENTITY": "wsgateway.identity.SessionIdentity",
    }
    gateway = Gateway(folder, env)
    sessions = json.loads(_python(gateway, PREPARE))
    worker = Process(
        [sys.executable, "manage.py", "runservice", "orders"], folder / "worker.log", gateway.env
    )
    with running(gateway), running(worker):
        worker.spawn()
        gateway.start()
        yield Shop(gateway, sessions)
