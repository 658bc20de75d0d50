"""Where the gateway's routes can be mounted, and what they leave to others."""

from __future__ import annotations

from typing import Any

import pytest
from channels.routing import URLRouter
from django.urls import path, re_path

from wsgateway.asgi import Application
from wsgateway.routing import gateway_router, refuse_unknown_path, websocket_urlpatterns

gateway_below_ws: Any = URLRouter(websocket_urlpatterns)
last_route: Any = refuse_unknown_path
found: list[tuple[str, dict[str, str]]] = []


def app(name: str) -> Any:
    """Return an application that notes that it was found."""

    async def note(scope: Any, receive: Any, send: Any) -> None:
        found.append((name, scope["url_route"]["kwargs"]))

    return note


@pytest.fixture(autouse=True)
def gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a note in the gateway's place."""
    found.clear()
    for route in gateway_router.routes:
        monkeypatch.setattr(route, "callback", app("gateway"))


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


async def sent_at(routes: list[Any], url: str) -> list[Any]:
    """Return what a client of *url* is sent."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "websocket", "path": url, "root_path": "", "headers": []}
    await Application(nothing, URLRouter(routes), nothing, {})(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("routes", "url", "kwargs"),
    [
        (websocket_urlpatterns, "/ws/orders/", {"service": "orders"}),
        (websocket_urlpatterns, "/ws/orders/ann/", {"service": "orders", "user": "ann"}),
        ([path("live/", gateway_router)], "/live/orders/", {"service": "orders"}),
        ([path("", gateway_router)], "/orders/ann/", {"service": "orders", "user": "ann"}),
        ([path("live/", gateway_below_ws)], "/live/ws/s/", {"service": "s"}),
        (
            [path("<tenant>/live/", gateway_router)],
            "/acme/live/orders/",
            {"tenant": "acme", "service": "orders"},
        ),
        (
            [re_path(r"^(?P<user>\w+)/live/", gateway_router)],
            "/bob/live/orders/ann/",
            {"service": "orders", "user": "ann"},
        ),
    ],
)
async def test_gateway_is_found_below_any_prefix(
    routes: list[Any], url: str, kwargs: dict[str, str]
) -> None:
    assert await sent_at(routes, url) == []
    assert found == [("gateway", kwargs)]


async def test_own_consumers_come_first_if_their_routes_do() -> None:
    own = [path("ws/chat/<room>/", app("chat")), *websocket_urlpatterns]
    await sent_at(own, "/ws/chat/lobby/")
    await sent_at(own, "/ws/orders/ann/")
    assert [name for name, _ in found] == ["chat", "gateway"]


@pytest.mark.parametrize(
    "routes", [websocket_urlpatterns, [*websocket_urlpatterns, re_path(r"", last_route)]]
)
@pytest.mark.parametrize("url", ["/", "/ws/", "/ws/orders", "/ws/a/b/c/", "/nowhere/"])
async def test_unknown_path_is_closed_with_a_code(routes: list[Any], url: str) -> None:
    """Channels' router raised a ValueError: HTTP 500 and a traceback."""
    accepted, closed = await sent_at(routes, url)
    assert accepted["type"] == "websocket.accept"
    assert (closed["type"], closed["code"], closed["reason"]) == (
        "websocket.close",
        1008,
        "unknown path" if url.endswith("/") else "unknown path; is the slash at its end missing?",
    )
    assert found == []
