"""The deployable site: settings from the environment, ASGI and WSGI applications, Procfile."""

from __future__ import annotations
