"""``pip install wsgateway`` in another Django project and an environment without anything else."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, site_env

pytestmark = pytest.mark.timeout(300)  # pip downloads

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])
WITHOUT_EXTRAS = {
    "aiokafka",
    "health_check",
    "ninja",
    "pamqp",  # the first that the bridge to RabbitMQ imports
    "pydantic",
    "pytest",
    "websockets",
}
"""What modules import at their top that only extras, and projects' tests, need."""

SETTINGS = """
SECRET_KEY = "x"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.staticfiles", "channels", "wsgateway", "wsgateway.outbox",
    "django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.admin",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "/static/"
ROOT_URLCONF = "wsgateway.urls"
ASGI_APPLICATION = "minimal_asgi.application"
PUBSUB_BROKER = "memory"
WSGATEWAY_SERVICES = ["orders"]
CHANNEL_LAYERS = {"default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"}}
"""
ASGI = "import wsgateway.asgi\n\napplication = wsgateway.asgi.application()\n"
USE = """
import importlib, pkgutil
from importlib import metadata
from pathlib import Path

import django

django.setup()

from django.contrib.staticfiles import finders
from django.core.exceptions import ImproperlyConfigured
from django.template.loader import get_template

import wsgateway

root = Path(wsgateway.__file__).parent
assert (root / "py.typed").exists()
for path in root.glob("templates/**/*.html"):
    get_template(str(path.relative_to(root / "templates")))
for path in root.glob("static/**/*.*"):
    assert finders.find(str(path.relative_to(root / "static")), find_all=False), path
[plugin] = [e for e in metadata.entry_points(group="pytest11") if e.name == "wsgateway"]
assert plugin.value == "wsgateway.testing.plugin"

missing = set()
for module in pkgutil.walk_packages([str(root)], "wsgateway.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as exc:
        missing.add(exc.name)
    except ImproperlyConfigured as exc:
        assert "pip install 'wsgateway[" in str(exc), exc
print(wsgateway.__file__, *sorted(missing))
"""
OFFERS = """
import json

import django

django.setup()

from django.contrib.auth import get_user_model
from django.core.management import call_command, get_commands
from django.urls import include

call_command("migrate", verbosity=0)
urls, _, _ = include("wsgateway.urls")
print(json.dumps({
    "urls": [str(pattern.pattern) for pattern in urls.urlpatterns],
    "commands": {name: app for name, app in get_commands().items() if "wsgateway" in app},
    "users": get_user_model().objects.count(),
}))
"""
THEIR_TESTS = """
from wsgateway import send
from wsgateway.testing import assert_sent


def test_memory(wsgateway_memory):
    send("orders", "ann", text="hello")
    assert_sent("orders", "ann", text="hello")


def test_nats(wsgateway_nats):
    assert send("orders", "ann", text="hello").offset == 1
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=site_env(**env),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Environment:
    """A virtual environment that holds a wheel and what it declares, with a minimal project.

    Versions are those with which the suite runs.
    """

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        uv = (sys.executable, "-m", "uv", "--quiet")
        run(*uv, "venv", "--python", sys.executable, folder / "venv", cwd=folder)
        install = (*uv, "pip", "install", "--python", self.python)
        run(*install, "-c", ROOT / "requirements-dev.txt", *requirements, cwd=folder)
        (folder / "minimal.py").write_text(SETTINGS)
        (folder / "minimal_asgi.py").write_text(ASGI)

    def run(self, *args: str) -> str:
        names = {"DJANGO_SETTINGS_MODULE": "minimal", "PYTHONPATH": str(self.folder)}
        names["PYTHONDONTWRITEBYTECODE"] = ""  # uv has compiled nothing
        return run(self.python, "-W", "error", *args, cwd=self.folder, **names)

    def missing_modules(self) -> set[str]:
        """Use everything that is installed; return the modules that it would import besides."""
        where, *missing = self.run("-c", USE).split()
        assert where.startswith(str(self.folder))
        return set(missing)


def test_wheel_holds_what_the_app_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("wsgateway/")}
        others = {name.partition("/")[0] for name in archive.namelist()} - {"wsgateway"}
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "wsgateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == kept
    assert "wsgateway/py.typed" in held
    assert [name for name in others if not name.endswith(".dist-info")] == []


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What ``pip install wsgateway`` makes, without extras."""
    return Environment(tmp_path_factory.mktemp("plain"), str(wheel))


def test_declared_dependencies_suffice(plain: Environment) -> None:
    assert "no issues" in plain.run("-m", "django", "check")
    assert plain.missing_modules() == WITHOUT_EXTRAS


def test_installed_package_offers_no_page_no_form_and_no_user(plain: Environment) -> None:
    """An `include` published a form, and a command of the package created admin/admin."""
    offers = json.loads(plain.run("-c", OFFERS))
    assert offers["urls"] == ["healthz", "readyz", "metrics", "^sse/"]
    commands = {"deadletters", "gateway", "publish", "runbridge", "runevents", "runservice"}
    commands |= {"setup_bridges", "setup_streams"}
    # The outbox's command is there for those who have installed the outbox
    assert offers["commands"] == {
        **dict.fromkeys(commands, "wsgateway"),
        "runoutbox": "wsgateway.outbox",
    }
    assert offers["users"] == 0


def test_wheel_holds_nothing_of_the_demo(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if name.startswith("wsgateway/")]
        sources = {name: archive.read(name).decode() for name in held if name.endswith(".py")}
    assert [name for name in held if "demo" in name or "launcher" in name] == []
    pages = [name for name in held if name.endswith(".html")]
    assert pages
    assert [name for name in pages if not name.startswith("wsgateway/templates/admin/")] == []
    makers = ("create_user(", "create_superuser(", "rungateway")
    assert [name for name, text in sources.items() if any(word in text for word in makers)] == []


def test_extras_bring_the_rest_and_pytest_finds_the_fixtures(wheel: Path, tmp_path: Path) -> None:
    extras = f"{wheel}[{','.join(EXTRAS)}]"
    environment = Environment(tmp_path, extras, "pytest", "pytest-django")
    assert environment.missing_modules() == set()
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS)
    # Twisted warns of itself
    done = environment.run("-W", "default", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "2 passed" in done
