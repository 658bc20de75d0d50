"""The outermost ASGI application."""

from __future__ import annotations

from typing import Any

import pytest

from wsgateway.asgi import Application
from wsgateway.transport import SERVER_SEND


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


async def test_each_type_has_its_application_and_websockets_keep_the_servers_send() -> None:
    called: dict[str, Any] = {}

    def note(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            called[name] = scope.get(SERVER_SEND)

        return app

    app = Application(note("http"), note("websocket"), note("lifespan"))
    for kind in ("http", "websocket", "lifespan"):
        await app({"type": kind}, None, nothing)
    assert called == {"http": None, "websocket": nothing, "lifespan": None}
    with pytest.raises(ValueError, match="no application serves the type 'channel'"):
        await app({"type": "channel"}, None, nothing)


async def test_error_of_the_applications_own_is_not_taken_for_an_unknown_path() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await Application(nothing, fails, nothing)({"type": "websocket"}, None, nothing)
