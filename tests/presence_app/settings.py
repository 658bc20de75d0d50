"""The project's settings with an app that notes the signals of ``runevents``."""

from __future__ import annotations

from project.settings import *  # noqa: F403
from tests import LIMITS, SERVICES

INSTALLED_APPS = [*INSTALLED_APPS, "tests.presence_app.apps.NotesConfig"]  # noqa: F405
globals().update(LIMITS, WSGATEWAY_SERVICES=SERVICES)
