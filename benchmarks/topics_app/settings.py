"""The site's settings with the benchmark's topics."""

from __future__ import annotations

import os

from project.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.topics_app"]  # type: ignore[name-defined]  # noqa: F405
LOGGING = {"version": 1, "disable_existing_loggers": False}
WSGATEWAY_SERVICES = ["bench"]
WSGATEWAY_WINDOW = int(os.environ.get("BENCH_WINDOW", "256"))
