"""The project's settings with the tests' services installed."""

from __future__ import annotations

from project.settings import *  # noqa: F403
from tests import LIMITS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.service_app"]  # noqa: F405
globals().update(LIMITS, WSGATEWAY_SERVICES=None)  # those that `ws_services` declares
