"""The site's settings, with the bridges that BENCH_BRIDGES names as JSON."""

from __future__ import annotations

import json
import os

from project.settings import *  # noqa: F403

LOGGING = {"version": 1, "disable_existing_loggers": False}
WSGATEWAY_SERVICES = ["bench"]
WSGATEWAY_BRIDGES = json.loads(os.environ.get("BENCH_BRIDGES", "{}"))
