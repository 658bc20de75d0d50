"""The site's settings."""

from __future__ import annotations

from project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.debug_site.urls"
