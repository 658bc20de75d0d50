"""The outermost ASGI application."""

from __future__ import annotations

from typing import Any

import pytest

import wsgateway.asgi
from wsgateway.asgi import Application
from wsgateway.transport import SERVER_SEND


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


async def test_each_type_has_its_application_and_websockets_keep_the_servers_send() -> None:
    called: dict[str, Any] = {}

    def note(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            called[name] = scope.get(SERVER_SEND)

        return app

    app = Application(note("http"), note("websocket"), note("lifespan"), {})
    for kind in ("http", "websocket", "lifespan"):
        await app({"type": kind, "path": "/"}, None, nothing)
    assert called == {"http": None, "websocket": nothing, "lifespan": None}
    with pytest.raises(ValueError, match="no application serves the type 'channel'"):
        await app({"type": "channel"}, None, nothing)


async def test_error_of_the_applications_own_is_not_taken_for_an_unknown_path() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await Application(nothing, fails, nothing, {})(
            {"type": "websocket", "path": "/"}, None, nothing
        )


@pytest.mark.parametrize(
    ("forced", "root", "path", "seen"),
    [
        (None, "", "/ws/", ("", "/ws/")),
        (None, "/app", "/app/ws/", ("/app", "/app/ws/")),
        (None, "/app", "/ws/", ("/app", "/app/ws/")),  # daphne, behind a proxy that strips
        (None, "/app/", "/app/ws/", ("/app", "/app/ws/")),
        ("/app", "", "/app/ws/", ("/app", "/app/ws/")),
        ("/app", "", "/ws/", ("/app", "/app/ws/")),
        ("/app", "/other", "/app/ws/", ("/app", "/app/ws/")),
        (None, "/app", "/apple/ws/", ("/app", "/app/apple/ws/")),
        (None, "/app", "/app", ("/app", "/app")),
    ],
)
async def test_path_begins_with_what_the_site_is_below(
    settings: Any, forced: str | None, root: str, path: str, seen: tuple[str, str]
) -> None:
    """Channels' router refused sockets that Django's pages took, see `URLRouter.__call__`."""
    settings.FORCE_SCRIPT_NAME = forced
    scopes: list[Any] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    scope = {"type": "websocket", "path": path, "root_path": root}
    await Application(nothing, note, nothing, {})(scope, None, nothing)
    [found] = scopes
    assert (found["root_path"], found["path"]) == seen


@pytest.mark.parametrize("path", ["/healthz", "/app/healthz"])
async def test_probe_is_below_the_sites_path_or_not(settings: Any, path: str) -> None:
    """Load balancers ask below the site's path, the orchestrator asks the process itself."""
    settings.FORCE_SCRIPT_NAME = "/app"
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "GET", "path": path}
    await wsgateway.asgi.application()(scope, None, send)
    assert [event.get("status") or event["body"] for event in sent] == [200, b'{"alive": true}']
