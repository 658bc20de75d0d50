"""The outermost ASGI application of a project: ``daphne project.asgi:application``.

It keeps the server's own ``send`` where the gateway finds it, so that middleware that wraps
``send`` cannot break closing or back-pressure. It answers the lifespan protocol and the probes,
and refuses websockets that no route wants.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from django.conf import ENVIRONMENT_VARIABLE
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from wsgateway import declared
from wsgateway.apps import require_installed
from wsgateway.broker.addresses import split_urls
from wsgateway.conf import settings
from wsgateway.entry_point import App, Application
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.metrics.access import is_restricted

if TYPE_CHECKING:
    from django.http import HttpResponse

__all__ = ["Application", "application"]


def application(
    *,
    http: App | None = None,
    websocket: App | None = None,
    healthz: str | None = "/healthz",
    readyz: str | None = "/readyz",
    metrics: str | None = "/metrics",
    sse: str | None = "/sse/",
) -> Application:
    """Return the ASGI application of a project, for its ``asgi.py``.

    Args:
        http: Answers requests; None: Django does.
        websocket: Serves websockets, for example
            ``AuthMiddlewareStack(URLRouter(websocket_urlpatterns))``; None: the gateway does.
        healthz: Path of the liveness probe, which no middleware sees; None: *http* answers it.
        readyz: The same for the readiness probe.
        metrics: The same for the metrics, while they are on; otherwise *http* answers it.
        sse: Path below which the gateway serves server-sent events; None: *http* answers there.

    Raises:
        TypeError: An argument is not an application, but a list of routes, for example.
        ImproperlyConfigured: Nothing says where the settings are, ``wsgateway`` is not in
            INSTALLED_APPS, or every socket or ``group_send`` would fail with these settings.
            Servers run no system checks.
    """
    _require_settings()
    from django.core.asgi import get_asgi_application

    for name, app in (("http", http), ("websocket", websocket)):
        _require_callable(name, app)
    http = http or get_asgi_application()  # first: what follows imports models
    require_installed()
    _require_usable_settings()
    from channels.routing import URLRouter
    from django.urls import path as url

    from wsgateway.gateway import daphne
    from wsgateway.health import alive, ready
    from wsgateway.routing import lifespan, open_gateway, sse_router, websocket_urlpatterns

    declared.discover()  # or it would import ``ws_services`` once the server listens
    daphne.at_start(open_gateway)
    probes = {path: probe for path, probe in ((healthz, alive), (readyz, ready)) if path}
    pages = {metrics: _metrics} if metrics else {}
    websocket = websocket or URLRouter(websocket_urlpatterns)
    streams = None
    if sse:
        prefix = f"/{sse.strip('/')}/"
        streams = prefix, URLRouter([url(prefix[1:], sse_router)])
    made = Application(http, websocket, lifespan, probes, pages, streams)
    daphne.at_start(made.begin)
    return made


async def _metrics(scope: Any) -> HttpResponse | None:
    if not is_restricted():
        return None
    from wsgateway.metrics.site import respond

    return await respond(scope)


def _require_callable(name: str, app: App | None) -> None:
    if app is not None and not callable(app):
        raise TypeError(
            f"{name} must be an ASGI application, not {type(app).__name__}; "
            "wrap routes in channels.routing.URLRouter"
        )


def _require_settings() -> None:
    """Refuse a server's process that nobody has told where the settings are."""
    if not django_settings.configured and not os.environ.get(ENVIRONMENT_VARIABLE):
        raise ImproperlyConfigured(
            f"{ENVIRONMENT_VARIABLE} is not set; in asgi.py, before you call "
            f'wsgateway.asgi.application(), write os.environ.setdefault("{ENVIRONMENT_VARIABLE}", '
            '"mysite.settings") with the name of your project'
        )


def _require_usable_settings() -> None:
    from wsgateway.broker import targets
    from wsgateway.broker.project_server import require_embedded
    from wsgateway.checks import START_CHECKS

    problems = [f"{error.msg} {error.hint}" for check in START_CHECKS for error in check()]
    if not problems:
        try:
            targets.load()
            if settings.BROKER == "nats" and not split_urls(settings.URL):
                require_embedded()
        except BrokerMisconfigured as exc:
            problems.append(str(exc))
    if problems:
        raise ImproperlyConfigured(" ".join(problems))
