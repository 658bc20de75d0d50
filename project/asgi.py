"""The ASGI application: pages by Django, websockets by the gateway.

No session middleware wraps the sockets: a resolver that needs the session loads it itself, so
sockets that cookies or tokens identify cost no database query.
"""

from __future__ import annotations

import os

from django.core.exceptions import ImproperlyConfigured

import wsgateway.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

try:
    application = wsgateway.asgi.application()
except ImproperlyConfigured as exc:  # one line for the operator, not a page
    raise SystemExit(f"cannot start: {exc}") from exc
