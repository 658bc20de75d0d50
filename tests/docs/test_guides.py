"""How-to guides with programs of their own: what the pages show, together in one project."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.browser import Page, browser
from tests.faults.traffic import broker_at
from tests.pages import DocumentPage
from tests.support import ROOT, Process, running, site_env, until
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.subjects import Inbox

pytestmark = pytest.mark.timeout(120)
MOBILE = DocumentPage("how-to/mobile-app.md")
JOB = DocumentPage("how-to/job-progress.md")
LLM = DocumentPage("how-to/stream-llm-tokens.md")
APPS = ("accounts", "reports", "assistant")
PREFIX = "guides"

SETTINGS = """
INSTALLED_APPS = ["daphne", "channels", "wsgateway", *INSTALLED_APPS, "reports", "assistant"]
ASGI_APPLICATION = "mysite.asgi.application"
NATS_BROKER_URL = "{nats}"
WSGATEWAY_PREFIX = "guides"
"""
QUICKER = """
WSGATEWAY_SERVICES += ["orders", "assistant"]
WSGATEWAY_REVALIDATE_INTERVAL = 0.5
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""
URLS = """
from django.urls import include, path

urlpatterns = [
    path("", include("accounts.urls")),
    path("", include("reports.urls")),
    path("", include("assistant.urls")),
]
"""
ASGI = """
import os

import wsgateway.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
application = wsgateway.asgi.application()
"""
PREPARE = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("makemigrations", "reports", verbosity=0)
call_command("migrate", verbosity=0)
call_command("createcachetable")
for name in ("ann", "bob", "carol"):
    client = Client()
    client.force_login(User.objects.create_user(name, password=name))
    print(name, client.cookies["sessionid"].value)
"""
LOCK_OUT = """
from django.contrib.auth.models import User
bob, carol = User.objects.get(username="bob"), User.objects.get(username="carol")
bob.is_active = False
bob.save()
carol.set_password("new")
carol.save()
"""


RELOAD_IN_THE_MIDDLE = """
new MutationObserver((_, observer) => {
  if (!answer.textContent.startsWith('new-1 new-2 ')) return;
  observer.disconnect();
  sessionStorage.shown = answer.textContent;
  location.reload();
}).observe(answer, { childList: true }); null
"""
"""In the page itself: on a busy machine, the test would come too late."""


class Site:
    """A project with what the three pages show, served by ``runserver``."""

    def __init__(self, folder: Path, nats: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = site_env(PYTHONPATH=str(ROOT), DJANGO_SETTINGS_MODULE="mysite.settings")
        self.run("-m", "django", "startproject", "mysite", ".")
        blocks = [SETTINGS.format(nats=nats), MOBILE.code("WSGATEWAY_IDENTITY")]
        blocks += [JOB.code("WSGATEWAY_SERVICES"), LLM.code("CACHES"), QUICKER]
        with (folder / "mysite/settings.py").open("a") as settings:
            settings.write("\n".join(blocks))
        (folder / "mysite/urls.py").write_text(URLS)
        (folder / "mysite/asgi.py").write_text(ASGI)
        for page in (MOBILE, JOB, LLM):
            page.write_files(folder)
        (folder / "accounts/urls.py").write_text(MOBILE.code("urlpatterns"))
        views = folder / "accounts/views.py"
        views.write_text(views.read_text().replace("MAX_AGE = 600", "MAX_AGE = 5"))
        model = folder / "assistant/llm.py"
        endless = "range(1, 100_000 if prompt == 'endless' else 201)"
        model.write_text(model.read_text().replace("range(1, 201)", endless))
        for app in APPS:
            (folder / app / "__init__.py").touch()
        self.sessions = dict(line.split() for line in self.run("-c", PREPARE).splitlines())

    def run(self, *arguments: str) -> str:
        """Return what a Python process prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, log: str, *arguments: str) -> Process:
        """Return a Python process that has not begun."""
        command = [sys.executable, *arguments]
        return Process(command, self.folder / f"{log}.log", self.env, self.folder)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def app(self, user: str, program: str) -> Process:
        """Return the mobile page's program that has *program* in it, logged in as *user*."""
        text = MOBILE.code(program).replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        text = text.replace('SESSION = "…"', f'SESSION = "{self.sessions[user]}"')
        (self.folder / f"{user}.py").write_text(text)
        return self.start(user, f"{user}.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, nats_server: EmbeddedServer) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("guides"), nats_server.url)
    server = made.start("server", "manage.py", "runserver", str(made.port), "--noreload")
    worker = made.start("worker", "manage.py", "runservice", "assistant", "--noreload")
    with running(server), running(worker):
        server.spawn()
        worker.spawn()
        server.wait_for_line("connected to NATS")
        worker.wait_for_line("assistant: ready")
        yield made


@pytest.fixture
async def broker(nats_server: EmbeddedServer) -> AsyncIterator[NatsBroker]:
    async with broker_at([nats_server.url], PREFIX) as broker:
        yield broker


async def logged_in(page: Page, site: Site, path: str) -> None:
    """Open a page of the site as ann."""
    await page.open(site.url("/static/wsgateway/wsgateway.d.ts"))
    await page.run(f"document.cookie = 'sessionid={site.sessions['ann']}; path=/'")
    await page.run(f"document.cookie = 'csrftoken={'a' * 32}; path=/'")
    await page.open(site.url(path))


async def reload(page: Page) -> None:
    """Load the page again."""
    await page.run("window.isOld = true")
    await page.command("Page.reload")
    await page.wait("!window.isOld && document.readyState === 'complete'")


async def test_mobile_apps_get_messages_renew_tokens_and_can_be_locked_out(
    site: Site, broker: NatsBroker
) -> None:
    """The page's two programs; their tokens live for five seconds."""
    by_hand, by_client = "subprotocols=[", "GatewayError, connect"
    apps = {
        "ann": site.app("ann", by_hand),
        "bob": site.app("bob", by_client),
        "carol": site.app("carol", by_hand),
    }
    for name, app in apps.items():
        await broker.publish(Inbox("orders", name), f"for {name} before".encode())
        app.spawn()
    try:
        for name, app in apps.items():
            await until(lambda app=app, name=name: f"for {name} before" in app.output, 20)
        await until(lambda: "closed with 4501" in apps["ann"].output, 20, "the token expires")
        for name in apps:
            await broker.publish(Inbox("orders", name), f"for {name} later".encode())
        for name, app in apps.items():
            await until(lambda app=app, name=name: f"for {name} later" in app.output, 20)
            assert app.output.count(f"for {name} before") == 1

        setup = "import django\ndjango.setup()\n"
        await asyncio.to_thread(site.run, "-c", setup + LOCK_OUT)
        async with asyncio.timeout(30):
            while apps["ann"].running:  # the call misses an app that is renewing its token
                await asyncio.to_thread(site.run, "-c", setup + MOBILE.code("presence.disconnect"))
        for app in apps.values():
            await until(lambda app=app: not app.running, 20, "the app has stopped")
        assert "closed with 4505" in apps["ann"].output
        assert "log in again" in apps["bob"].output
    finally:
        for app in apps.values():
            app.kill()


async def test_progress_bar_survives_a_reload(site: Site, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await logged_in(page, site, "/assistant/")
        start = "fetch('/reports/', {method: 'POST', headers: {'X-CSRFToken': 'a'.repeat(32)}})"
        report = await page.run(f"{start}.then((response) => response.url)")
        await page.open(report)
        before = await page.wait("bar.value > 10 && bar.value")
        await reload(page)
        assert await page.run("bar.value") >= before
        await page.wait("bar.value === 100")
        await page.open(report)
        assert await page.run("bar.value") == 100


def tokens(prompt: str) -> str:
    """Return what the page's model answers."""
    return "".join(f"{prompt}-{number} " for number in range(1, 201))


async def ask(page: Page, prompt: str) -> None:
    await page.run(f"form.elements.prompt.value = {json.dumps(prompt)}; form.requestSubmit(); null")


async def test_reload_in_the_middle_shows_each_token_exactly_once(
    site: Site, tmp_path: Path, broker: NatsBroker
) -> None:
    async with browser(tmp_path) as page:
        await logged_in(page, site, "/assistant/")
        await ask(page, "old")  # something comes before what the reload reads again
        await page.wait("answer.dataset.state === 'done'")
        await page.run(RELOAD_IN_THE_MIDDLE)
        await ask(page, "new")
        await page.wait("sessionStorage.shown && window.answer?.dataset.state === 'done'")
        assert tokens("new").startswith(await page.run("sessionStorage.shown"))
        assert len(await page.run("sessionStorage.shown")) < len(tokens("new"))
        assert await page.run("answer.textContent") == tokens("new")
        parts = [m for m in (await read_all(broker)) if json.loads(m)["text"].startswith("new")]
        assert len(parts) < 200, "a part holds several tokens"

        await ask(page, "endless")
        await page.wait("answer.textContent.startsWith('endless-1 ')")
        await page.run("document.getElementById('stop').click()")
        await page.wait("answer.dataset.state === 'stopped'")
        shown = (await page.run("answer.textContent")).split()
        assert shown == [f"endless-{number}" for number in range(1, len(shown) + 1)]


async def read_all(broker: NatsBroker) -> list[bytes]:
    """Return what is in ann's inbox of the assistant."""
    batch = await broker.inboxes.read_after(Inbox("assistant", "ann"), 0, limit=1000)
    return [message.payload for message in batch.messages]
