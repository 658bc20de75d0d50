"""The outermost ASGI application."""

from __future__ import annotations

import shutil
from importlib import metadata
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

import wsgateway.asgi
from tests.event_streams import Reader
from tests.troubleshooting import Symptom
from wsgateway.asgi import Application
from wsgateway.gateway import refusals
from wsgateway.gateway.transport import SERVER_SEND
from wsgateway.routing import lifespan, websocket_urlpatterns


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


async def test_each_type_has_its_application_and_keeps_the_servers_send() -> None:
    called: dict[str, Any] = {}

    def note(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            called[name] = scope.get(SERVER_SEND)

        return app

    app = Application(note("http"), note("websocket"), note("lifespan"), {})
    for kind in ("http", "websocket", "lifespan"):
        await app({"type": kind, "path": "/"}, None, nothing)
    assert called == {"http": nothing, "websocket": nothing, "lifespan": None}
    with pytest.raises(ValueError, match="no application serves the type 'channel'"):
        await app({"type": "channel"}, None, nothing)


async def test_streams_are_served_below_their_path_and_nowhere_else() -> None:
    called: list[str] = []

    def note(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            called.append(f"{name} {scope['path']}")

        return app

    app = Application(note("http"), nothing, nothing, {}, {}, ("/sse/", note("streams")))
    for path in ("/sse/orders/", "/sse", "/ssetup/", "/"):
        await app({"type": "http", "path": path, "method": "GET"}, None, nothing)
    assert called == ["streams /sse/orders/", "http /sse", "http /ssetup/", "http /"]


@pytest.mark.parametrize("root", ["", "/site"])
async def test_path_of_streams_can_be_changed(settings: Any, root: str) -> None:
    settings.FORCE_SCRIPT_NAME = root or None
    app = wsgateway.asgi.application(sse="/events")
    for path in ("/events/", "/events/orders"):
        async with Reader(app, root + path) as answer:
            assert answer.status == 404
            assert "read events at" in answer.problem["detail"]
    assert wsgateway.asgi.application().stream_path == "/sse/"
    assert wsgateway.asgi.application(sse=None).stream_path is None


def test_without_asgi_a_reader_of_events_is_told_so() -> None:
    answer = Client().get("/sse/orders/")
    assert answer.status_code == 501
    assert answer["content-type"] == "application/problem+json"
    assert "need an ASGI server" in answer.json()["detail"]


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


def test_routes_without_a_router_are_refused_at_once() -> None:
    """Each socket ended in HTTP 500: 'list' object is not callable."""
    routes: Any = websocket_urlpatterns
    with pytest.raises(TypeError, match="not list; wrap routes in"):
        wsgateway.asgi.application(websocket=routes)


# -- settings with which every socket would fail -------------------------------------------------


@pytest.fixture
def no_servers(settings: Any) -> Any:
    """Settings of a project that has not set NATS_BROKER_URL."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ""
    settings.DEBUG = False
    return settings


def without_nats_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.troubleshooting("NATS_BROKER_URL is empty and DEBUG is off;")
def test_no_servers_in_production(symptom: Symptom, no_servers: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as error:
        wsgateway.asgi.application()
    symptom.must_show_in(str(error.value))
    no_servers.PUBSUB_BROKER = "memory"
    wsgateway.asgi.application()
    no_servers.PUBSUB_BROKER, no_servers.NATS_BROKER_URL = "nats", "nats://127.0.0.1:4222"
    wsgateway.asgi.application()


@pytest.mark.troubleshooting("the program nats-server was not found;")
def test_no_nats_server_in_development(
    symptom: Symptom, no_servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_servers.DEBUG = True
    wsgateway.asgi.application()
    without_nats_server(monkeypatch)
    with pytest.raises(ImproperlyConfigured) as error:
        wsgateway.asgi.application()
    symptom.must_show_in(str(error.value))
    no_servers.NATS_BROKER_URL = "nats://127.0.0.1:4222"
    wsgateway.asgi.application()


def test_every_impossible_setting_is_named_with_its_cure(settings: Any) -> None:
    settings.WSGATEWAY_WINDOW = 0
    settings.WSGATEWAY_PREFIX = "a b"
    settings.WSGATEWAY_IDENTITY = ["mysite.identity.Own"]
    with pytest.raises(ImproperlyConfigured) as error:
        wsgateway.asgi.application()
    for text in ("WSGATEWAY_WINDOW is 0, but must be 1 or more", "'a b'", "mysite.identity.Own"):
        assert text in str(error.value)


def test_channel_layer_that_cannot_work_is_named_with_its_cure(settings: Any) -> None:
    """The first consumer or `group_send` failed, in a server that had started."""
    config = {"hosts": [("localhost", 6379)]}
    layer = {"BACKEND": "wsgateway.layer.NatsChannelLayer", "CONFIG": config}
    settings.CHANNEL_LAYERS = {"default": layer}
    with pytest.raises(ImproperlyConfigured, match=r"port 6379, where Redis listens\. List the"):
        wsgateway.asgi.application()
    settings.CHANNEL_LAYERS = {"default": {**layer, "CONFIG": {"hosts": [("localhost", 4222)]}}}
    wsgateway.asgi.application()


async def test_server_that_speaks_lifespan_does_not_start_without_a_broker(no_servers: Any) -> None:
    """Uvicorn took the exception for "lifespan is not supported", and served."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        sent.append(event)

    await lifespan({"type": "lifespan"}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "NATS_BROKER_URL is empty and DEBUG is off" in sent[0]["message"]


async def test_without_the_entry_point_a_socket_is_refused_not_failed(
    no_servers: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each socket ended in HTTP 500 and a traceback."""
    monkeypatch.setattr(refusals, "log", refusals.RefusalLog())
    no_servers.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    router: Any = URLRouter(websocket_urlpatterns)
    cookies = [(b"cookie", b"user=ann")]
    client = WebsocketCommunicator(router, "/ws/orders/", headers=cookies)
    assert await client.connect() == (True, None)
    closed = await client.receive_output()
    assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
    assert "(4014): broker unavailable. NATS_BROKER_URL is empty" in caplog.text
    await client.disconnect()
