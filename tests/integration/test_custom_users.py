"""A user model of the project's own, in another database than the sessions: see `people_app`."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support import ROOT, site_env

PROGRAM = """
import django; django.setup()
from tests.people_app.revoke import main; main()
"""
WITHOUT_USERS = """
import asyncio, types, sys
import django
from django.conf import settings
sys.modules["urls"] = types.ModuleType("urls")
sys.modules["urls"].urlpatterns = []
settings.configure(
    INSTALLED_APPS=["channels", "wsgateway"], SECRET_KEY="x", DEBUG=True, ROOT_URLCONF="urls",
    WSGATEWAY_IDENTITY=["wsgateway.identity.TokenIdentity"], WSGATEWAY_SERVICES=["orders"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
from django.core.management import call_command
call_command("check", databases=["default"], deploy=True, fail_level="CRITICAL")
from wsgateway.identity import make_token, resolve_identity
query = f"token={make_token('orders', 'ann')}".encode()
print(asyncio.run(resolve_identity({"headers": [], "query_string": query})))
"""


def test_revocation_with_a_custom_user_model_and_several_databases() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=site_env(DJANGO_SETTINGS_MODULE="tests.people_app.settings"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["logged in", [], [None, None]],
        ["ann is called anna", ["changed ann"], [None, None]],
        ["bob has moved", ["changed bob"], [None, None]],
        ["ann is locked", ["changed ann"], [4501, None]],
        ["bob is deleted", ["changed bob"], [4501, 4501]],
    ]


def test_project_without_users_and_sessions() -> None:
    """Nothing of django.contrib is needed where tokens say who it is."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_USERS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Identity(service='orders', user='ann', device='default')" in done.stdout
