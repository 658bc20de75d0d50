"""The site's settings with the benchmark's topic, its webhook and the server API."""

from __future__ import annotations

import os

from project.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "benchmarks.http_app"]  # type: ignore[name-defined]  # noqa: F405
DEBUG = False  # which would keep every query
ALLOWED_HOSTS = ["127.0.0.1"]
# As startproject has it: WhiteNoise's takes each request through another thread
MIDDLEWARE = [each for each in MIDDLEWARE if each.startswith("django.")]  # noqa: F405
ROOT_URLCONF = "benchmarks.http_app.urls"
LOGGING = {"version": 1, "disable_existing_loggers": False}
WSGATEWAY_SERVICES = None  # those that are declared
WSGATEWAY_WEBHOOKS = {
    "bench": {
        "url": os.environ["BENCH_BACKEND"],
        "secret": "whsec_YmVuY2htYXJrYmVuY2htYXJrYmVuY2htYXJr",
        "allow_private": ["127.0.0.0/8"],
    }
}
