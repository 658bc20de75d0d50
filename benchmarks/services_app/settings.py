"""The site's settings with the benchmark's services; BENCH_REDIS makes it the peer's site."""

from __future__ import annotations

import os

from project.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.services_app"]  # type: ignore[name-defined]  # noqa: F405
if "BENCH_REDIS" in os.environ:
    ASGI_APPLICATION = "benchmarks.services_app.peer.application"
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {
                # redis-py's default time-out ends channels_redis' blocking read, and the worker
                "hosts": [{"address": os.environ["BENCH_REDIS"], "socket_timeout": None}],
                "capacity": 1_000_000,
            },
        }
    }
LOGGING = {"version": 1, "disable_existing_loggers": False}
WSGATEWAY_SERVICES = None  # those that `ws_services` declares
