"""The outermost ASGI application of a project: ``daphne project.asgi:application``.

It keeps the server's own ``send`` where the gateway finds it, so that middleware that wraps
``send`` cannot break closing or back-pressure. It answers the lifespan protocol, and refuses
websockets that no route wants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from wsgateway.transport import SERVER_SEND

__all__ = ["Application", "application"]

App = Callable[[Any, Any, Any], Awaitable[None]]


def application(*, http: App | None = None, websocket: App | None = None) -> Application:
    """Return the ASGI application of a project, for its ``asgi.py``.

    Args:
        http: Answers requests; None: Django does.
        websocket: Serves websockets, for example
            ``AuthMiddlewareStack(URLRouter(websocket_urlpatterns))``; None: the gateway does.
    """
    from django.core.asgi import get_asgi_application

    http = http or get_asgi_application()  # first: what follows imports models
    from channels.routing import URLRouter

    from wsgateway.routing import lifespan, websocket_urlpatterns

    return Application(http, websocket or URLRouter(websocket_urlpatterns), lifespan)


class Application:
    """See `application`.

    Args:
        http: Answers requests.
        websocket: Serves websockets.
        lifespan: Speaks ASGI's lifespan.
    """

    def __init__(self, http: App, websocket: App, lifespan: App) -> None:
        self._applications = {
            "http": http,
            "websocket": self._serve_websocket,
            "lifespan": lifespan,
        }
        self._websocket = websocket

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        try:
            serve = self._applications[scope["type"]]
        except KeyError:
            raise ValueError(f"no application serves the type {scope['type']!r}") from None
        await serve(scope, receive, send)

    async def _serve_websocket(self, scope: Any, receive: Any, send: Any) -> None:
        from wsgateway.routing import refuse_unknown_path

        try:
            await self._websocket({**scope, SERVER_SEND: send}, receive, send)
        except ValueError as exc:
            # Channels' router raises this before it has received anything.
            if not str(exc).startswith("No route found for path"):
                raise
            await refuse_unknown_path(scope, receive, send)
