"""What processes say when they start, and do not say when they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from tests.support import ROOT, Gateway, Process, listening, running, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port

LISTENS = {"daphne": "Listening on TCP address 127.0.0.1:{}", "uvicorn": "127.0.0.1:{} (Press"}


@pytest.mark.parametrize("server", LISTENS)
def test_web_process_says_where_it_listens_and_which_broker_it_uses(
    gateway_factory: Callable[..., Gateway], nats_server: EmbeddedServer, server: str
) -> None:
    """On daphne it said nothing at all before the first socket."""
    url = nats_server.url.replace("//", "//gate:s3cret@")
    gateway = gateway_factory(server, NATS_BROKER_URL=url)
    gateway.wait_for_line(f"starting the gateway with NATS at 127.0.0.1:{nats_server.port}\n")
    gateway.wait_for_line(f"connected to NATS at 127.0.0.1:{nats_server.port}\n")
    gateway.wait_for_line(LISTENS[server].format(gateway.port))
    assert "s3cret" not in gateway.output


@pytest.mark.parametrize("server", LISTENS)
def test_web_process_says_within_ten_seconds_that_the_broker_is_away(
    gateway_factory: Callable[..., Gateway], server: str
) -> None:
    """On daphne, the first socket's user noticed before its operator."""
    gateway = gateway_factory(server, NATS_BROKER_URL=f"nats://127.0.0.1:{free_port()}")
    began = time.monotonic()
    gateway.wait_for_line("connection refused (1 attempt in ")
    assert time.monotonic() - began < 10


def test_nothing_is_imported_once_a_server_listens() -> None:
    """Daphne imported NATS' modules then, and a burst of first clients waited for a second."""
    script = (
        "import asyncio, sys, project.asgi\n"
        "from wsgateway.routing import open_gateway\n"
        "before = set(sys.modules)\n"
        "asyncio.run(open_gateway())\n"
        "print('late:', *sorted(set(sys.modules) - before))"
    )
    env = site_env(DEBUG="1", NATS_BROKER_URL=f"nats://127.0.0.1:{free_port()}")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stdout == "late:\n", done.stderr


SETTINGS = """
    from pathlib import Path

    DEBUG = True
    SECRET_KEY = "x"
    BASE_DIR = Path(__file__).resolve().parent
    INSTALLED_APPS = [
        "daphne",
        "channels",
        "wsgateway",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ]
    ROOT_URLCONF = "mysite"
    urlpatterns = []
    ASGI_APPLICATION = "mysite_asgi.application"
    CHANNEL_LAYERS = {"default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"}}
    WSGATEWAY_SERVICES = ["orders"]
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}
    }
"""
ASGI = """
    import os

    import wsgateway.asgi

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite")
    application = wsgateway.asgi.application()
"""


class Project:
    """An ordinary project in development, as the README makes one; it has no LOGGING."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "mysite.py").write_text(textwrap.dedent(SETTINGS))
        (folder / "mysite_asgi.py").write_text(textwrap.dedent(ASGI))
        path = f"{folder}:{ROOT}"
        self.env = site_env(PYTHONPATH=path, DJANGO_SETTINGS_MODULE="mysite")

    def run(self, *arguments: str) -> str:
        """Run a command; return all it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def process(self, *arguments: str) -> Process:
        """Return a command that is not started yet."""
        command = [sys.executable, "-m", "django", *arguments]
        return Process(command, self.folder / f"{arguments[0]}.log", self.env, self.folder)

    def touch(self) -> None:
        """Change a module; the reloader misses what happens before its first look."""
        path = self.folder / "mysite.py"
        if time.time() - path.stat().st_mtime > 2:
            path.touch()

    def runserver(self, *options: str) -> Process:
        process = self.process("runserver", str(self.port), *options)
        process.spawn()
        return process


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def test_runserver_shows_the_embedded_server_with_a_command_that_works(
    project: Project,
) -> None:
    """Without LOGGING, nothing that the gateway logs was seen; the port had to be guessed."""
    with running(project.runserver("--noreload")) as process:
        process.wait_for_line("connected to NATS at ", 40)
        port = re.search(r"starting the gateway with NATS at 127\.0\.0\.1:(\d+)\n", process.output)
        shown = re.search(r"nats --server (\S+) subscribe 'ws\.>'", process.output)
        assert port
        assert shown
        assert shown[1] == f"nats://127.0.0.1:{port[1]}"
        client = await nats.connect(shown[1])
        heard = await client.subscribe("ws.>")
        await client.flush()
        project.run("shell", "-c", "import wsgateway; wsgateway.send('orders', 'ann', text='hi')")
        while (await heard.next_msg(30)).data != b"hi":
            pass  # what gateways tell each other
        await client.close()
        process.stop()


COMMANDS = [
    ["migrate"],  # runs the checks, too
    ["setup_streams"],
    ["shell", "-c", "import wsgateway; wsgateway.send('orders', 'ann', text='hi')"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_end_without_a_lost_connection(project: Project, command: list[str]) -> None:
    """The embedded server ended before the connection to it: "lost the connection to NATS"."""
    output = project.run(*command)
    assert "lost the connection" not in output
    assert "Traceback" not in output


STAY = """
import time, wsgateway
wsgateway.send("orders", "ann", text="hi")
time.sleep(120)
"""


def test_reload_keeps_the_embedded_server(project: Project) -> None:
    """Each change of a file restarted it, so every client "lost the connection to NATS"."""

    def reloads() -> bool:
        project.touch()
        return "reloading" in site.output

    with (
        running(project.runserver()) as site,
        running(project.process("shell", "-c", STAY)) as other,
    ):
        try:
            site.wait_for_line("connected to NATS at ", 50)  # it has started the server
            other.spawn()
            other.wait_for_line("connected to NATS at ", 50)
            record = project.folder / ".nats" / "server.json"
            before = record.read_text()
            wait_for(reloads, 50, "a reload")
            wait_for(lambda: site.output.count("connected to NATS at ") == 2, 50, "the reload")
            assert record.read_text() == before
            for process in (site, other):
                assert "lost the connection" not in process.output
                assert "Traceback" not in process.output
        finally:
            os.killpg(site.pid, signal.SIGINT)  # as a terminal's Ctrl-C
            site.wait(20)
    port = json.loads(before)["port"]
    wait_for(lambda: not listening(port), what="the server ends with the reloader")
