"""The project's settings with the soak's service installed."""

from __future__ import annotations

from project.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "tests.soak"]  # noqa: F405
globals().update(WSGATEWAY_SERVICES=None)  # those that `ws_services` declares
