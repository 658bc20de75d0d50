"""The websocket routes, for a project's ``URLRouter``; and the server's lifespan."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from wsgateway.consumers import GatewayConsumer
from wsgateway.delivery import get_hub

__all__ = ["lifespan", "refuse_unknown_path", "websocket_urlpatterns"]

gateway: Any = GatewayConsumer.as_asgi()

websocket_urlpatterns: list[Any] = [
    re_path(r"^ws/(?P<service>[^/]+)/(?P<user>[^/]+)/$", gateway),
    re_path(r"^ws/(?P<service>[^/]+)/$", gateway),
]
"""The gateway's routes."""


async def refuse_unknown_path(scope: Any, receive: Any, send: Any) -> None:
    """End the handshake with HTTP 403; Channels' router would end it with a traceback.

    The last route of a project: ``re_path(r"", refuse_unknown_path)``.
    """
    await receive()
    await send({"type": "websocket.close"})


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Connect to the broker when the server starts, and close the connection when it ends.

    For servers that speak ASGI's lifespan, as uvicorn does; daphne does not, and connects with
    the first socket.
    """
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            await get_hub().open()
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await get_hub().close()
            await send({"type": "lifespan.shutdown.complete"})
            return
