"""A project's tests with ``PUBSUB_BROKER = "memory"``: each begins with an empty store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PLUGIN, ROOT, site_env

SETTINGS = """
SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "channels", "wsgateway"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CHANNEL_LAYERS = {"default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"}}
WSGATEWAY_SERVICES = ["orders"]
PUBSUB_BROKER = "memory"
ROOT_URLCONF = "tests_of_mine"
ALLOWED_HOSTS = ["*"]
STATIC_URL = "/static/"
"""
TESTS = """
import asyncio
from urllib.request import urlopen

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.http import HttpResponse
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase
from django.urls import path

from wsgateway import inbox_group, send
from wsgateway.testing import assert_not_sent, assert_sent

layer = get_channel_layer()


def view(request):
    send("orders", "ann", text="from a view")
    return HttpResponse("ok")


urlpatterns = [path("", view)]


def use_everything():
    assert_not_sent()
    with_group = async_to_sync(get_channel_layer().group_send)
    with_group(inbox_group("orders", "bob"), {"type": "ws.message", "text": "hi"})
    send("orders", "ann", text="hi")
    assert_sent("orders", "ann", text="hi", count=1)
    assert_sent("orders", "bob", text="hi", count=1)
    layer.send_sync("work", {"type": "x", "n": 1})
    assert async_to_sync(layer.receive)("work") == {"type": "x", "n": 1}
    for _ in range(100):
        layer.send_sync("work", {"type": "x"})
    async_to_sync(layer.group_add)("room", "work")


class Simple(SimpleTestCase):
    def test_one(self):
        use_everything()

    def test_two(self):
        use_everything()


class Transaction(TransactionTestCase):
    def test_one(self):
        use_everything()

    async def test_two(self):
        await layer.send("work", {"type": "x"})
        assert_not_sent()


class WithData(TestCase):
    @classmethod
    def setUpTestData(cls):
        send("orders", "ann", text="data")

    def test_one(self):
        use_everything()

    def test_two(self):
        use_everything()


class Live(LiveServerTestCase):
    # The server's thread stores where the test looks

    def fetch(self):
        assert_not_sent()
        with urlopen(f"{self.live_server_url}/") as response:
            assert response.status == 200
        assert_sent("orders", "ann", text="from a view", count=1)

    test_one = test_two = lambda self: self.fetch()


class WithoutData(TestCase):
    test_one = test_two = lambda self: use_everything()
"""
FUNCTIONS = """
import pytest
from channels.layers import get_channel_layer

from tests_of_mine import use_everything


@pytest.mark.parametrize("number", [1, 2])
def test_plain(number):
    use_everything()


@pytest.mark.django_db
@pytest.mark.parametrize("number", [1, 2])
def test_database(number):
    use_everything()


@pytest.mark.parametrize("number", [1, 2])
def test_fixture(number, wsgateway_memory):
    use_everything()


@pytest.mark.parametrize("number", [1, 2])
async def test_asynchronous(number):
    await get_channel_layer().send("work", {"type": "x", "n": number})
    assert await get_channel_layer().receive("work") == {"type": "x", "n": number}
    await get_channel_layer().send("work", {"type": "x"})
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "settings_of_mine.py").write_text(SETTINGS)
    (tmp_path / "tests_of_mine.py").write_text(TESTS)
    (tmp_path / "test_functions.py").write_text(FUNCTIONS)
    return tmp_path


def run(project: Path, *arguments: str) -> str:
    env = site_env(
        PYTHONPATH=f"{ROOT}:{project}",
        DJANGO_SETTINGS_MODULE="settings_of_mine",
    )
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


def test_each_test_of_manage_py_test_begins_with_nothing(project: Path) -> None:
    """What one test had published was there in the next; the layer looked for a NATS server."""
    output = run(project, "django", "test", "tests_of_mine", "--shuffle")
    assert "Ran 10 tests" in output, output
    assert "\nOK" in output, output


def test_each_test_of_pytest_begins_with_nothing(project: Path) -> None:
    options = ["-q", "-n2", "-p", "no:cacheprovider", *PLUGIN]  # each process has its own
    output = run(
        project,
        "pytest",
        *options,
        "-o",
        "asyncio_mode=auto",
        "tests_of_mine.py",
        "test_functions.py",
    )
    assert "18 passed" in output, output
