"""``manage.py check`` in a project from ``startproject``: right, and with one ordinary mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_readme import start_project
from tests.support import ROOT, site_env


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the README has it."""
    folder = tmp_path_factory.mktemp("example")
    start_project(folder)
    return folder


@pytest.fixture
def project(example: Path, tmp_path: Path) -> Path:
    """A copy to make mistakes in."""
    return Path(shutil.copytree(example, tmp_path / "copy"))


def manage(project: Path, *arguments: str) -> str:
    """Return what a command of the project prints, whether it fails or not."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project,
        env=site_env(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_project_of_the_readme_has_no_issues(project: Path) -> None:
    assert "System check identified no issues (0 silenced)." in manage(project, "check")


MISTAKES = [
    ("settings.py", '"daphne", ', "", "(wsgateway.W012) 'daphne' is not in INSTALLED_APPS"),
    ("settings.py", '"channels", ', "", "(wsgateway.W001) 'channels' is not in INSTALLED_APPS"),
    ("settings.py", "ASGI_APPLICATION", "ASGI_APP", "(wsgateway.W002) ASGI_APPLICATION is not set"),
    ("settings.py", "mysite.asgi.", "mysite.asg.", "cannot be used: ModuleNotFoundError"),
    ("settings.py", "NATS_BROKER_URL", "NATS_BROKER_URLS", "Did you mean NATS_BROKER_URL?"),
    (
        "settings.py",
        'NATS_BROKER_URL = ""',
        'NATS_BROKER_URL = "ws://nats:8080"',
        "NATS over websockets is not supported",
    ),
    (
        "settings.py",
        'NatsChannelLayer"',
        'NatsChannelLayer", "CONFIG": {"hosts": [("127.0.0.1", 6379)]}',
        "(wsgateway.E007) CHANNEL_LAYERS['default']['CONFIG']: hosts names port 6379",
    ),
    (
        "settings.py",
        'NatsChannelLayer"',
        'NatsChannelLayer", "CONFIG": {"prefix": "asgi"}',
        "(wsgateway.W009) CHANNEL_LAYERS['default']: prefix is 'asgi'",
    ),
    (
        "asgi.py",
        "wsgateway.asgi.application()",
        "django.core.asgi.get_asgi_application()",
        "(wsgateway.W011) ASGI_APPLICATION is 'mysite.asgi.application', where no websocket",
    ),
]


@pytest.mark.parametrize(
    ("file", "right", "wrong", "text"),
    MISTAKES,
    ids=[mistake[2] or mistake[1] for mistake in MISTAKES],
)
def test_one_mistake_gets_one_answer(
    project: Path, file: str, right: str, wrong: str, text: str
) -> None:
    path = project / "mysite" / file
    code = path.read_text().replace(
        "import wsgateway.asgi", "import django.core.asgi, wsgateway.asgi"
    )
    assert right in code
    path.write_text(code.replace(right, wrong))
    output = manage(project, "check")
    assert text in output
    assert "HINT: " in output
    assert "System check identified 1 issue (0 silenced)." in output


def test_project_without_the_app_does_not_start(project: Path) -> None:
    """Its own checks cannot run; the first thing that imports asgi.py says it."""
    path = project / "mysite/settings.py"
    path.write_text(path.read_text().replace('"channels", "wsgateway", ', '"channels", '))
    output = manage(project, "runserver", "--noreload", "0")
    assert "'wsgateway' is not in INSTALLED_APPS; add it there" in output
