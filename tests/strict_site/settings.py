"""Production settings with all that projects put in front of their views."""

from __future__ import annotations

from project.settings import *  # noqa: F403
from project.settings import DATABASES, MIDDLEWARE

DATABASES = {
    name: {**DATABASES["default"], "ATOMIC_REQUESTS": True} for name in ("default", "other")
}
MIDDLEWARE = [
    "tests.strict_site.middleware.tenant_by_host",
    *MIDDLEWARE,
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
]
