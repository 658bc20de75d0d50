"""The outermost ASGI application of a project: ``daphne project.asgi:application``.

It keeps the server's own ``send`` where the gateway finds it, so that middleware that wraps
``send`` cannot break closing or back-pressure. It answers the lifespan protocol and the probes,
and refuses websockets that no route wants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from wsgateway.apps import require_installed
from wsgateway.broker.addresses import split_urls
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.gateway.transport import SERVER_SEND

if TYPE_CHECKING:
    from django.http import HttpResponse

__all__ = ["Application", "application"]

App = Callable[[Any, Any, Any], Awaitable[None]]
Probe = Callable[[], Awaitable["HttpResponse"]]


def application(
    *,
    http: App | None = None,
    websocket: App | None = None,
    healthz: str | None = "/healthz",
    readyz: str | None = "/readyz",
) -> Application:
    """Return the ASGI application of a project, for its ``asgi.py``.

    Args:
        http: Answers requests; None: Django does.
        websocket: Serves websockets, for example
            ``AuthMiddlewareStack(URLRouter(websocket_urlpatterns))``; None: the gateway does.
        healthz: Path of the liveness probe, which no middleware sees; None: *http* answers it.
        readyz: The same for the readiness probe.

    Raises:
        TypeError: An argument is not an application, but a list of routes, for example.
        ImproperlyConfigured: ``wsgateway`` is not in INSTALLED_APPS, or every socket or
            ``group_send`` would fail with these settings. Servers run no system checks.
    """
    from django.core.asgi import get_asgi_application

    for name, app in (("http", http), ("websocket", websocket)):
        if app is not None and not callable(app):
            raise TypeError(
                f"{name} must be an ASGI application, not {type(app).__name__}; "
                "wrap routes in channels.routing.URLRouter"
            )
    http = http or get_asgi_application()  # first: what follows imports models
    require_installed()
    _require_usable_settings()
    from channels.routing import URLRouter

    from wsgateway.gateway import daphne
    from wsgateway.health import alive, ready
    from wsgateway.routing import lifespan, open_gateway, websocket_urlpatterns

    daphne.at_start(open_gateway)
    probes = {path: probe for path, probe in ((healthz, alive), (readyz, ready)) if path}
    return Application(http, websocket or URLRouter(websocket_urlpatterns), lifespan, probes)


def _require_usable_settings() -> None:
    from wsgateway.broker.embedded import require_embedded
    from wsgateway.checks import START_CHECKS

    problems = [f"{error.msg} {error.hint}" for check in START_CHECKS for error in check()]
    if not problems and settings.BROKER == "nats" and not split_urls(settings.URL):
        try:
            require_embedded()
        except BrokerMisconfigured as exc:
            problems.append(str(exc))
    if problems:
        raise ImproperlyConfigured(" ".join(problems))


class Application:
    """See `application`.

    Args:
        http: Answers requests.
        websocket: Serves websockets.
        lifespan: Speaks ASGI's lifespan.
        probes: What answers GET and HEAD of a path below the site's, before *http*.
    """

    def __init__(
        self, http: App, websocket: App, lifespan: App, probes: Mapping[str, Probe]
    ) -> None:
        self._applications = {
            "http": self._serve_http,
            "websocket": self._serve_websocket,
            "lifespan": lifespan,
        }
        self._http = http
        self.websocket = websocket
        self.probes = probes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        try:
            serve = self._applications[scope["type"]]
        except KeyError:
            raise ValueError(f"no application serves the type {scope['type']!r}") from None
        await serve(scope, receive, send)

    async def _serve_http(self, scope: Any, receive: Any, send: Any) -> None:
        scope, path = _below_root(scope)
        probe = self.probes.get(path)
        if probe is None or scope["method"] not in ("GET", "HEAD"):
            await self._http(scope, receive, send)
            return
        response = await probe()
        content = response.content
        headers = {**response.headers, "Content-Length": str(len(content))}
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            }
        )
        body = content if scope["method"] == "GET" else b""
        await send({"type": "http.response.body", "body": body})

    async def _serve_websocket(self, scope: Any, receive: Any, send: Any) -> None:
        from wsgateway.routing import refuse_unknown_path

        scope, _ = _below_root(scope)
        try:
            await self.websocket({**scope, SERVER_SEND: send}, receive, send)
        except ValueError as exc:
            # Channels' router raises this before it has received anything.
            if not str(exc).startswith("No route found for path"):
                raise
            await refuse_unknown_path(scope, receive, send)


def _below_root(scope: Any) -> tuple[Any, str]:
    """Return *scope* with a path that begins with the root path, and the rest of that path.

    The root is FORCE_SCRIPT_NAME or the server's root path. Some proxies remove it from the path,
    and some servers add it again. Where it is missing, Channels' router refuses sockets, and Django
    leads visitors out of the site after the log-in.
    """
    root = (settings.script_name or scope.get("root_path") or "").rstrip("/")
    path: str = scope["path"]
    if not root:
        return scope, path
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    return {**scope, "root_path": root, "path": root + path}, path
