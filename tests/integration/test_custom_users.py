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
