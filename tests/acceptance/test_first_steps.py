"""Rows of ``docs/how-to/troubleshooting.md`` that show when a step of the README is left out.

The tests of the steps themselves are in `tests.acceptance.test_readme`.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.acceptance.test_first_check import example, manage, project
from tests.support import ROOT, Process, listening, running, site_env, wait_for
from tests.troubleshooting import Symptom

__all__ = ["example", "project"]  # fixtures

COOKIE = {"Cookie": "sessionid=of0a0former0database0000000000"}
WITHOUT_ENTRY_POINT = """
import os
from django.core.asgi import get_asgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()
from channels.routing import ProtocolTypeRouter, URLRouter
from wsgateway.routing import websocket_urlpatterns
application = ProtocolTypeRouter(
    {"http": django_application, "websocket": URLRouter(websocket_urlpatterns)}
)
"""


@contextmanager
def served(project: Path, port: int, *command: str) -> Iterator[Process]:
    """Run a server of the project until it listens, by default Daphne; its broker is in memory."""
    with (project / "mysite/settings.py").open("a") as settings:
        settings.write('PUBSUB_BROKER = "memory"\n')
    module = command or ("daphne", "-p", str(port), "mysite.asgi:application")
    env = site_env(PYTHONPATH=str(ROOT))
    server = Process([sys.executable, "-m", *module], project / "server.log", env, project)
    with running(server):
        server.spawn()
        wait_for(lambda: listening(port), 30, "it listens")
        yield server


def websocket(port: int, path: str) -> websockets.asyncio.client.connect:
    url = f"ws://127.0.0.1:{port}{path}"
    return websockets.asyncio.client.connect(url, additional_headers=COOKIE, proxy=None)


@pytest.mark.troubleshooting("Not Found: /ws/…")
def test_apps_that_are_not_installed(symptom: Symptom, project: Path, free_port: int) -> None:
    """``manage.py check`` finds nothing: the checks are those of an installed app."""
    path = project / "mysite/settings.py"
    path.write_text(path.read_text().replace('"daphne", "channels", "wsgateway", ', ""))
    assert "System check identified no issues" in manage(project, "check")
    runserver = ("django", "runserver", str(free_port), "--noreload", "--settings=mysite.settings")
    with served(project, free_port, *runserver) as server:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{free_port}/ws/orders/")
        wait_for(lambda: symptom.is_in(server.output), what="the row")


@pytest.mark.troubleshooting("no such table: django_session")
async def test_project_without_tables(symptom: Symptom, project: Path, free_port: int) -> None:
    with served(project, free_port) as server:
        async with websocket(free_port, "/ws/orders/") as ws:
            with pytest.raises(ConnectionClosed, match="1011"):
                await ws.recv()
        wait_for(lambda: symptom.is_in(server.output), what="the row")


@pytest.mark.troubleshooting("with 1008 (4501): this session is not logged in, or has ended")
async def test_session_that_does_not_exist(symptom: Symptom, project: Path, free_port: int) -> None:
    manage(project, "migrate")
    with served(project, free_port) as server:
        async with websocket(free_port, "/ws/orders/") as ws:
            with pytest.raises(ConnectionClosed):
                await ws.recv()
        wait_for(lambda: symptom.is_in(server.output), what="the row")


@pytest.mark.troubleshooting("No route found for path")
async def test_unknown_path_without_the_entry_point(
    symptom: Symptom, project: Path, free_port: int
) -> None:
    (project / "mysite/asgi.py").write_text(WITHOUT_ENTRY_POINT)
    with served(project, free_port) as server:
        with pytest.raises(InvalidStatus, match="500"):
            async with websocket(free_port, "/ws/orders"):
                pass
        wait_for(lambda: symptom.is_in(server.output), what="the row")


@pytest.mark.troubleshooting("no service '…'; known: none")
def test_service_without_a_handler(symptom: Symptom, project: Path) -> None:
    (project / "shop/ws_services.py").unlink()
    symptom.must_show_in(manage(project, "runservice", "orders"))
