"""The site's settings for tests: development, no broker unless a fixture chooses one."""

from __future__ import annotations

import os

os.environ.setdefault("DEBUG", "1")

from project.settings import *  # noqa: F403
from tests import LIMITS, SERVICES

# As most projects have it; daphne's own check, once imported, expects daphne's own configuration
INSTALLED_APPS = ["daphne", *INSTALLED_APPS[1:]]  # noqa: F405
WSGATEWAY_SERVICES = SERVICES
globals().update(LIMITS)
PUBSUB_BROKER = "memory"
NATS_BROKER_URL = ""
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
