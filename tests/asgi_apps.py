"""ASGI applications as projects have them, for `test_servers.py`."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

from django.core.asgi import get_asgi_application

http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

import wsgateway.asgi  # noqa: E402
from wsgateway.routing import websocket_urlpatterns  # noqa: E402


def wrapping(inner: Any) -> Any:
    """Return middleware that wraps send in a coroutine function, as many do."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(event: Any) -> None:
            await send(event)

        await inner(scope, receive, wrapped)

    return middleware


stack: Any = AuthMiddlewareStack(URLRouter(websocket_urlpatterns))

entry_point = wsgateway.asgi.application(http=http, websocket=wrapping(stack))
validated = wsgateway.asgi.application(http=http, websocket=AllowedHostsOriginValidator(stack))
auth_stack = ProtocolTypeRouter({"http": http, "websocket": stack})
unknown_middleware = ProtocolTypeRouter({"http": http, "websocket": wrapping(stack)})
