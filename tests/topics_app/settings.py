"""The project's settings with topics that everybody may read, and some write."""

from __future__ import annotations

import os

from project.settings import *  # noqa: F403
from tests import LIMITS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.topics_app"]  # noqa: F405
WSGATEWAY_OFFLINE_GRACE = float(os.environ.get("OFFLINE_GRACE", "10"))
globals().update(LIMITS, WSGATEWAY_SERVICES=None)  # those that `ws_services` declares
