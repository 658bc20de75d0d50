"""INSTALLED_APPS and ASGI_APPLICATION: what serves websockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import find_commands
from django.urls import Resolver404, resolve
from django.urls.resolvers import RoutePattern
from django.utils.module_loading import import_string

from wsgateway.checks.base import ended, possible
from wsgateway.checks.start import START_CHECKS
from wsgateway.conf import settings
from wsgateway.entry_point import Application
from wsgateway.health import healthz, readyz
from wsgateway.metrics.access import is_restricted
from wsgateway.metrics.site import metrics
from wsgateway.sse import needs_asgi

__all__ = [
    "check_apps",
    "check_entry_point",
    "check_outbox",
    "check_probes",
    "check_runserver",
    "has_gateway",
]

INNER = ("websocket", "inner", "application", "app")
"""Where applications keep the one that they wrap."""
WSGI_RUNSERVERS = ("whitenoise.runserver_nostatic",)
"""Apps whose ``runserver`` is Django's with something added."""


def check_outbox(**kwargs: Any) -> list[CheckMessage]:
    """E008: the outbox without the app whose settings and checks it needs; it registers this."""
    if settings.is_installed("wsgateway"):
        return []
    return [
        Error(
            "'wsgateway.outbox' is in INSTALLED_APPS, but 'wsgateway' is not.",
            hint="Add 'wsgateway' before it.",
            id="wsgateway.E008",
        )
    ]


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
    # Without either, the project may be one that only sends
    if (settings.debug or settings.is_installed("daphne")) and not settings.asgi_application:
        found.append(
            Warning(
                "ASGI_APPLICATION is not set, so no command of this project serves websockets.",
                hint=f"{_example()} Silence this if another project has the gateway.",
                id="wsgateway.W002",
            )
        )
    return found


def check_runserver(**kwargs: Any) -> list[CheckMessage]:
    """W012: in development, ``runserver`` is Django's own, which knows nothing but WSGI.

    That daphne comes too late in INSTALLED_APPS is daphne.E001.
    """
    if not settings.debug or settings.is_installed("daphne") or _own_runserver():
        return []
    return [
        Warning(
            "'daphne' is not in INSTALLED_APPS, so runserver serves no websockets.",
            hint="Add it as the first entry: its runserver serves them. Silence this if you start "
            f"another server, for example with `daphne {_server_path()}`.",
            id="wsgateway.W012",
        )
    ]


def _server_path() -> str:
    """Return ASGI_APPLICATION as servers take it."""
    path: Any = settings.asgi_application or "mysite.asgi.application"
    return ":".join(str(path).rsplit(".", 1))


def _own_runserver() -> bool:
    """Say whether an app that we do not know has its own command ``runserver``."""
    for app in apps.get_app_configs():
        if app.name in WSGI_RUNSERVERS or app.name.partition(".")[0] == "django":
            continue
        if "runserver" in find_commands(str(Path(app.path) / "management")):
            return True
    return False


def _example() -> str:
    """Return how ASGI_APPLICATION is set in this project."""
    package = (settings.root_urlconf or "mysite.urls").rpartition(".")[0]
    path = ".".join(filter(None, (package, "asgi.application")))
    return f"Name the application in your asgi.py, for example {path!r}."


def _outermost_application() -> Any:
    """Return what ASGI_APPLICATION names; None if it does not, or cannot be imported."""
    return None if _import_problem() else import_string(settings.asgi_application or "")


def _import_problem() -> tuple[str, str] | None:
    """Return why ASGI_APPLICATION cannot be used, and what to do."""
    path: Any = settings.asgi_application
    if not isinstance(path, str):
        return f"it is of type {type(path).__name__}, not a dotted path", _example()
    try:
        application = import_string(path)
    except ImproperlyConfigured as exc:  # another setting's fault
        problem, _, cure = str(exc).rstrip(".").partition("; ")
        return problem, f"{cure[:1].upper()}{cure[1:]}." if cure else "Correct that."
    except (Exception, SystemExit) as exc:  # whatever asgi.py does
        if ":" in path:
            dotted = path.replace(":", ".")
            return "the colon is for the command line of a server", f"Write {dotted!r}."
        problem = f"{type(exc).__name__}: {exc}".rstrip(". :")
        return problem, f"Correct what this says, or the path. {_example()}"
    if isinstance(application, WSGIHandler):
        return "it is a WSGI application, which serves no websockets", _example()
    if callable(application):
        return None
    return f"it is of type {type(application).__name__}, not an application", _example()


def check_entry_point(**kwargs: Any) -> list[CheckMessage]:
    """W010: no application; W011: one without the gateway; W003: one that is not ours.

    Middleware of an application that is not ours can hide the server from the gateway.
    """
    path = settings.asgi_application
    if not path:
        return []  # W002
    if found := _import_problem():
        if any(check() for check in START_CHECKS):
            return []  # they have said it: our entry point raises what they find
        problem, hint = found
        text = ended(f"ASGI_APPLICATION is {path!r}, which cannot be used: {problem}")
        return [Warning(text, hint=hint, id="wsgateway.W010")]
    application = _outermost_application()
    if has_gateway(application) is False:
        return [
            Warning(
                f"ASGI_APPLICATION is {path!r}, where no websocket reaches the gateway.",
                hint="In asgi.py: application = wsgateway.asgi.application(). If you have routes "
                "of your own, add path('ws/', wsgateway.routing.gateway_router) to your URLRouter. "
                "Put middleware around that URLRouter: a path() to gateway_router behind "
                "middleware never matches. Silence this if you use only the channel layer.",
                id="wsgateway.W011",
            )
        ]
    if isinstance(application, Application):
        return []
    return [
        Warning(
            f"ASGI_APPLICATION is {path!r}, which wsgateway.asgi.application() did not create.",
            hint="In asgi.py: application = wsgateway.asgi.application(websocket=...), with what "
            "your ProtocolTypeRouter has for websockets. Without it, a websocket to an unknown "
            "path is a server error, Uvicorn finds no lifespan, /healthz and /readyz are missing, "
            "and middleware that wraps send hides the server's socket from the gateway.",
            id="wsgateway.W003",
        )
    ]


def has_gateway(application: Any) -> bool | None:
    """Say whether websockets can reach the gateway; None if it cannot be told."""
    from wsgateway.consumers import GatewayConsumer  # an application has loaded it, if any
    from wsgateway.routing import refuse_unknown_path

    consumer = getattr(application, "consumer_class", None)
    if consumer is not None:
        return isinstance(consumer, type) and issubclass(consumer, GatewayConsumer)
    if isinstance(application, ProtocolTypeRouter):
        inner = application.application_mapping.get("websocket")
        return inner is not None and has_gateway(inner)
    if isinstance(application, URLRouter):
        routes: Iterable[Any] = application.routes
        answers = {_reaches_gateway(route) for route in routes}
        return True if True in answers else None if None in answers else False
    for name in INNER:
        if callable(inner := getattr(application, name, None)):
            return has_gateway(inner)
    if isinstance(application, ASGIHandler) or application is refuse_unknown_path:
        return False
    return None


def _reaches_gateway(route: Any) -> bool | None:
    """Say the same of a route. Channels sees that more of the path follows only in a bare router.

    With middleware around it, ``path()`` matches nothing but itself.
    """
    inner = route.callback
    while not isinstance(inner, URLRouter) and callable(
        wrapped := next((a for name in INNER if (a := getattr(inner, name, None))), None)
    ):
        inner = wrapped
    if inner is not route.callback and isinstance(inner, URLRouter):
        pattern: Any = route.pattern
        if isinstance(pattern, RoutePattern) and vars(pattern)["_is_endpoint"]:
            return False
    return has_gateway(route.callback)


def check_probes(**kwargs: Any) -> list[CheckMessage]:
    """W008: a view that is never called, because the entry point answers its path itself."""
    application = _outermost_application()
    if not isinstance(application, Application) or not settings.root_urlconf:
        return []
    return [
        Warning(
            f"Your URLconf has a view for {path!r}, but wsgateway.asgi.application() answers "
            "that path itself.",
            hint="To keep your view, pass healthz=None, readyz=None, metrics=None or sse=None, or "
            "another path. Otherwise remove it.",
            id="wsgateway.W008",
        )
        for path in _answered(application)
        if _has_own_view(path)
    ]


def _answered(application: Application) -> list[str]:
    """Return the paths that the entry point answers."""
    can_tell = possible("WSGATEWAY_METRICS_TOKEN", "WSGATEWAY_METRICS_NETWORKS")
    pages = application.pages if can_tell and is_restricted() else ()
    streams = (application.stream_path,) if application.stream_path else ()
    return [*application.probes, *pages, *streams]


def _has_own_view(path: str) -> bool:
    """Say whether the project has a view for *path*, or below it; not only one for every path."""
    below = (path, f"{path}name/") if path.endswith("/") else (path,)
    for each in below:
        with contextlib.suppress(Resolver404):
            match = resolve(each)
            own = match.func not in (healthz, readyz, metrics, needs_asgi)
            if own and path.strip("/") in match.route:
                return True
    return False
