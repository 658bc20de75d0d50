"""``manage.py gateway init``: a project that does what it prints lacks nothing."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forking import Forker
from tests.support import ROOT, site_env

Manage = Callable[..., str]

STEP = re.compile(r"^(?P<text>\S.*):\n\n(?P<code>(?:(?:    .*)?\n)+)", re.M)
FILE = re.compile(
    r"(?P<how>Add this to the end of|Replace all of|Create|Replace CHANNEL_LAYERS in)"
    r" (?P<name>[\w/.]+\w)"
)
OWN_ROUTES = """
import os
from django.core.asgi import get_asgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()
from channels.routing import ProtocolTypeRouter, URLRouter
application = ProtocolTypeRouter({"http": django_application, "websocket": URLRouter([])})
"""
CHANNELS_PROJECT = """
INSTALLED_APPS = ["daphne", "channels", *INSTALLED_APPS, "chat", "wsgateway"]
ASGI_APPLICATION = "mysite.asgi.application"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [("127.0.0.1", 6379)]},
    },
}
"""
CHANNELS_ASGI = """
import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_asgi_app = get_asgi_application()

from chat.routing import websocket_urlpatterns

application = ProtocolTypeRouter(
    {
        "http": django_asgi_app,
        "websocket": AuthMiddlewareStack(
            URLRouter(websocket_urlpatterns)
        ),
    }
)
"""
CHANNELS_ROUTING = """
from channels.generic.websocket import WebsocketConsumer
from django.urls import re_path

websocket_urlpatterns = [re_path(r"ws/chat/(?P<room_name>\\w+)/$", WebsocketConsumer.as_asgi())]
"""
COMPLETE = "Nothing is missing.\n"


@pytest.fixture(scope="module")
def manage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manage]:
    """Runs a command of a project, and returns what it prints."""
    env = site_env(PYTHONPATH=str(ROOT))
    forker = Forker(Path(sys.executable), tmp_path_factory.mktemp("forker"), env)

    def manage(project: Path, *arguments: str, script: str = "manage.py") -> str:
        done = forker.run([*script.split(), *arguments], project, env)
        return (done.stdout + done.stderr).decode()

    yield manage
    forker.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, manage: Manage) -> Path:
    """What ``startproject`` makes."""
    folder = tmp_path_factory.mktemp("started")
    manage(folder, "startproject", "mysite", ".", script="-m django")
    return folder


def follow(project: Path, printed: str, manage: Manage) -> None:
    """Do what was printed."""
    steps = printed.partition("\nThen\n")[0].rstrip() + "\n"
    found = list(STEP.finditer(steps))
    assert found
    for step in found:
        code = re.sub(r"^    ", "", step["code"], flags=re.M).strip() + "\n"
        if match := FILE.match(step["text"]):
            path = project / match["name"]
            assert path.exists() == (match["how"] != "Create")
            keeps = match["how"].startswith("Add") or "CHANNEL_LAYERS" in match["how"]
            kept = path.read_text() if keeps else ""
            path.write_text(kept + code)
        else:
            words = shlex.split(code)
            assert words[:2] == ["python", "manage.py"]
            manage(project, *words[2:])


def test_what_it_prints_completes_a_new_project(
    started: Path, tmp_path: Path, manage: Manage
) -> None:
    """Only the app is there; INSTALLED_APPS of the README, taken literally, removed the admin.

    Here they are a tuple, to which no list can be added.
    """
    project = Path(shutil.copytree(started, tmp_path / "copy"))
    settings = project / "mysite/settings.py"
    only_app = 'INSTALLED_APPS = (*INSTALLED_APPS, "wsgateway")'
    settings.write_text(f"{settings.read_text()}\n{only_app}\n")
    follow(project, manage(project, "gateway", "init"), manage)
    assert "System check identified no issues (0 silenced)." in manage(project, "check")
    again = manage(project, "gateway", "init")
    assert again.startswith(COMPLETE)
    assert re.findall(r"gateway send (\w+) ann hello", again) == ["chat"]
    assert "django.contrib.admin" in runpy.run_path(str(settings))["INSTALLED_APPS"]


def test_what_it_prints_completes_a_channels_project(
    started: Path, tmp_path: Path, manage: Manage
) -> None:
    """It once printed hints without code for the Channels tutorial's own chat."""
    project = Path(shutil.copytree(started, tmp_path / "copy"))
    manage(project, "startapp", "chat")
    (project / "chat/routing.py").write_text(CHANNELS_ROUTING)
    (project / "mysite/asgi.py").write_text(CHANNELS_ASGI)
    with (project / "mysite/settings.py").open("a") as file:
        file.write(CHANNELS_PROJECT)
    follow(project, manage(project, "gateway", "init"), manage)
    assert "System check identified no issues (0 silenced)." in manage(project, "check")
    assert manage(project, "gateway", "init").startswith(COMPLETE)
    found = manage(
        project, "shell", "-v", "0", "-c", "from mysite.asgi import routes; print(routes.routes)"
    )
    assert "room_name" in found


@pytest.mark.parametrize(
    ("asgi", "text"),
    [
        (OWN_ROUTES, "Where it says websocket_urlpatterns, name the list of your routes:"),
        (
            "import wsgateway.asgi\napplication = wsgateway.asgi.application()\n",
            "Add this to mysite/asgi.py, before application is made; servers do not set it:",
        ),
    ],
    ids=["own routes", "no settings module"],
)
def test_asgi_with_code_of_its_own_is_not_to_be_replaced(
    tmp_path: Path, manage: Manage, asgi: str, text: str
) -> None:
    project = Path(shutil.copytree(ROOT / "examples/chat", tmp_path / "copy"))
    assert manage(project, "gateway", "init").startswith(COMPLETE)
    (project / "mysite/asgi.py").write_text(asgi)
    printed = manage(project, "gateway", "init")
    assert text in printed
    assert "Replace" not in printed
