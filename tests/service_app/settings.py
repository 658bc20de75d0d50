"""The project's settings with the tests' services installed."""

from __future__ import annotations

from project.settings import *  # noqa: F403
from tests import LIMITS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.service_app"]  # type: ignore[name-defined]  # noqa: F405
WSGATEWAY_SERVICES = None  # those that `ws_services` declares
globals().update(LIMITS)
