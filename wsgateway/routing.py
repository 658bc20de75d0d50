"""The websocket routes, for a project's ``URLRouter``; and the server's lifespan.

The gateway's routes match any name, so list routes of your own before them.
"""

from __future__ import annotations

import logging
from typing import Any

from channels.routing import URLRouter
from django.core.exceptions import ImproperlyConfigured
from django.urls import path, re_path

from wsgateway.consumers import GatewayConsumer, socket_of
from wsgateway.exceptions import IdentityRefused, WsGatewayError, reason_of
from wsgateway.gateway import uvicorn
from wsgateway.gateway.hub import get_hub
from wsgateway.gateway.refusals import refuse
from wsgateway.protocol.codes import CloseCode
from wsgateway.sse import serve_events, unknown_path

__all__ = [
    "gateway_router",
    "lifespan",
    "open_gateway",
    "refuse_unknown_path",
    "sse_router",
    "websocket_urlpatterns",
]

logger = logging.getLogger("wsgateway")

gateway: Any = GatewayConsumer.as_asgi()

gateway_router: Any = URLRouter(
    [
        re_path(r"^(?P<service>[^/]+)/(?P<user>[^/]+)/$", gateway),
        re_path(r"^(?P<service>[^/]+)/$", gateway),
    ]
)
"""The gateway below a prefix of your choice, for example ``path("live/", gateway_router)``."""

events: Any = serve_events
no_events: Any = unknown_path

sse_router: Any = URLRouter(
    [
        re_path(r"^(?P<service>[^/]+)/(?P<user>[^/]+)/$", events),
        re_path(r"^(?P<service>[^/]+)/$", events),
        re_path(r"", no_events),
    ]
)
"""Server-sent events below a prefix of your choice, in a ``URLRouter`` for HTTP."""

websocket_urlpatterns: list[Any] = [path("ws/", gateway_router)]
"""The gateway below ``ws/``, for your own ``URLRouter``."""


async def refuse_unknown_path(scope: Any, receive: Any, send: Any) -> None:
    """Close with 4506 and log what to do; Channels' router would end in a traceback.

    `wsgateway.asgi.application` does this for every path without a route. With another outermost
    application, make it the last route: ``re_path(r"", refuse_unknown_path)``.
    """
    await receive()
    code = CloseCode.UNKNOWN_PATH
    reason = code.reason
    if not scope["path"].endswith("/"):
        reason += "; is the slash at its end missing?"
    cure = "add a route to the URLRouter in asgi.py, or correct the client's path"
    await refuse(socket_of(scope, send), IdentityRefused(code, reason, cure), scope)


async def open_gateway() -> None:
    """Connect as the server starts, so that the log says at once what is wrong; never raises."""
    try:
        await get_hub().open()
    except (WsGatewayError, ImproperlyConfigured) as exc:
        logger.error("refusing all websockets: %s", reason_of(exc))


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Connect to the broker when the server starts, and close the connection when it ends.

    For servers that speak ASGI's lifespan, as uvicorn does; for daphne, which does not,
    `wsgateway.asgi.application` connects.
    """
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            try:
                await get_hub().open()
            except (WsGatewayError, ImproperlyConfigured) as exc:
                await send({"type": "lifespan.startup.failed", "message": str(exc)})
                return
            uvicorn.warn_of_limit(receive)
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await get_hub().close()
            await send({"type": "lifespan.shutdown.complete"})
            return
