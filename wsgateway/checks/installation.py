"""INSTALLED_APPS and ASGI_APPLICATION: what serves websockets."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Warning
from django.utils.module_loading import import_string

from wsgateway.asgi import Application
from wsgateway.conf import settings

__all__ = ["check_apps", "check_entry_point"]


def check_apps(**kwargs: Any) -> list[CheckMessage]:
    """W001, W002: without these ``runserver`` and ``runworker`` serve no websockets."""
    found: list[CheckMessage] = []
    if not settings.is_installed("channels"):
        found.append(
            Warning(
                "'channels' is not in INSTALLED_APPS.",
                hint="Add it; the gateway is a Channels consumer.",
                id="wsgateway.W001",
            )
        )
    if settings.is_installed("daphne") and not settings.asgi_application:
        found.append(
            Warning(
                "ASGI_APPLICATION is not set.",
                hint="Name the application whose websockets wsgateway.routing serves.",
                id="wsgateway.W002",
            )
        )
    return found


def check_entry_point(**kwargs: Any) -> list[CheckMessage]:
    """W003: another outermost application than ours, which middleware can hide from the gateway."""
    path = settings.asgi_application
    if not path:
        return []
    try:
        found = import_string(path)
    except (Exception, SystemExit):  # the server that loads it says so, and better
        return []
    if isinstance(found, Application):
        return []
    return [
        Warning(
            f"ASGI_APPLICATION is {path!r}, which wsgateway.asgi.application() did not make.",
            hint="Middleware that wraps send then hides the server's socket from the gateway. "
            "Use wsgateway.asgi.application(http=..., websocket=...) in asgi.py.",
            id="wsgateway.W003",
        )
    ]
