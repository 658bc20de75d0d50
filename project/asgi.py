"""The ASGI application: pages by Django, websockets by the gateway.

No session middleware wraps the sockets: a resolver that needs the session loads it itself, so
sockets that cookies or tokens identify cost no database query.
"""

from __future__ import annotations

import os
from typing import Any, cast

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

try:
    django_application = get_asgi_application()
except ImproperlyConfigured as exc:  # one line for the operator, not a page
    raise SystemExit(f"cannot start: {exc}") from exc

from wsgateway.routing import lifespan, refuse_unknown_path, websocket_urlpatterns

unknown: Any = refuse_unknown_path
sockets: Any = URLRouter([*websocket_urlpatterns, re_path(r"", unknown)])

application = ProtocolTypeRouter(
    {"http": django_application, "websocket": sockets, "lifespan": cast("Any", lifespan)}
)
