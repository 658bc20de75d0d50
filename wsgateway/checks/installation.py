"""INSTALLED_APPS and ASGI_APPLICATION: what serves websockets."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Warning
from django.urls import Resolver404, resolve
from django.utils.module_loading import import_string

from wsgateway.asgi import Application
from wsgateway.conf import settings
from wsgateway.health import healthz, readyz

__all__ = ["check_apps", "check_entry_point", "check_probes"]


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


def _outermost_application() -> Any:
    """Return what ASGI_APPLICATION names; None if it does not, or cannot be imported."""
    try:
        return import_string(settings.asgi_application or "")
    except (Exception, SystemExit):  # the server that loads it says so, and better
        return None


def check_entry_point(**kwargs: Any) -> list[CheckMessage]:
    """W003: another outermost application than ours, which middleware can hide from the gateway."""
    found = _outermost_application()
    if found is None or isinstance(found, Application):
        return []
    return [
        Warning(
            f"ASGI_APPLICATION is {settings.asgi_application!r}, which "
            "wsgateway.asgi.application() did not make.",
            hint="Middleware that wraps send then hides the server's socket from the gateway. "
            "Use wsgateway.asgi.application(http=..., websocket=...) in asgi.py.",
            id="wsgateway.W003",
        )
    ]


def check_probes(**kwargs: Any) -> list[CheckMessage]:
    """W008: a view that is never called, because the entry point answers its path as a probe."""
    application = _outermost_application()
    if not isinstance(application, Application) or not settings.root_urlconf:
        return []
    return [
        Warning(
            f"Your URLconf has a view for {path!r}, but wsgateway.asgi.application() answers "
            "that path itself.",
            hint="To keep your view, pass healthz=None or readyz=None, or another path. "
            "Otherwise remove it.",
            id="wsgateway.W008",
        )
        for path in application.probes
        if _has_own_view(path)
    ]


def _has_own_view(path: str) -> bool:
    """Say whether the project has a view for *path*, and not only one for every path."""
    try:
        match = resolve(path)
    except Resolver404:
        return False
    return path.strip("/") in match.route and match.func not in (healthz, readyz)
