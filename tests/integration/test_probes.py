"""Probes, and our views, in projects whose settings and middleware get in the way."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import URLPattern

from project.demo.urls import urlpatterns as demo_patterns
from tests.support import Gateway
from tests.troubleshooting import Symptom
from wsgateway import asend
from wsgateway.urls import urlpatterns as probe_patterns

Factory = Callable[..., Gateway]
Answer = tuple[int, str, bytes]


STRICT = {
    "DJANGO_SETTINGS_MODULE": "tests.strict_site.settings",
    "DEBUG": "0",
    "ALLOWED_HOSTS": "chat.example.com",
}


def ask(gateway: Gateway, path: str, method: str = "GET", **headers: str) -> Answer:
    """Return status, content length and body; as a probe asks: by IP address, without TLS."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request(method, path, headers={"Host": "10.0.0.7", **headers})
    response = connection.getresponse()
    answer = response.status, response.headers.get("content-length", ""), response.read()
    connection.close()
    return answer


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_entry_point_answers_probes_before_any_middleware(
    gateway_factory: Factory, server: str
) -> None:
    """Middleware answered probes: with 302 and 301, which count as healthy, or 400 for the host."""
    gateway = gateway_factory(server, **STRICT)
    assert ask(gateway, "/healthz") == (200, "15", b'{"alive": true}')
    assert ask(gateway, "/readyz") == (200, "15", b'{"ready": true}')
    assert ask(gateway, "/healthz", "HEAD") == (200, "15", b"")
    assert ask(gateway, "/healthz?from=kubelet")[0] == 200
    for path, method in (("/", "GET"), ("/healthz", "POST"), ("/healthz/", "GET")):
        assert ask(gateway, path, method)[0] == 418


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_entry_point_says_503_while_the_broker_is_away(
    gateway_factory: Factory, free_port: int, server: str
) -> None:
    gateway = gateway_factory(server, NATS_BROKER_URL=f"nats://127.0.0.1:{free_port}")
    assert ask(gateway, "/healthz") == (200, "15", b'{"alive": true}')
    status, _, body = ask(gateway, "/readyz")
    assert (status, json.loads(body)) == (
        503,
        {"ready": False, "not_ready": {"broker": "not connected"}},
    )


# -- the views, for projects with another outermost application -------------------------------


def test_views_answer_probes_despite_atomic_requests_and_required_logins(
    gateway_factory: Factory,
) -> None:
    """They answered 500: You cannot use ATOMIC_REQUESTS with async views; or 302 to the login."""
    gateway = gateway_factory(application="tests.asgi_apps:auth_stack", **STRICT)
    tenant = {"Host": "chat.example.com", "X-Forwarded-Proto": "https"}
    assert ask(gateway, "/healthz", **tenant)[::2] == (200, b'{"alive": true}')
    assert ask(gateway, "/readyz", **tenant)[::2] == (200, b'{"ready": true}')
    assert ask(gateway, "/demo/", **tenant)[0] == 302  # what is not a probe wants a login


@pytest.mark.troubleshooting("HTTP/1.1 301 Moved Permanently")
def test_redirect_meets_probes_behind_another_entry_point(
    symptom: Symptom, gateway_factory: Factory
) -> None:
    strict = {**STRICT, "ALLOWED_HOSTS": "*", "DJANGO_SETTINGS_MODULE": "project.settings"}
    for application in ("tests.asgi_apps:auth_stack", "project.asgi:application"):
        gateway = gateway_factory(application=application, **strict)
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        line = f"HTTP/1.1 {response.status} {response.reason}"
        connection.close()
        assert symptom.is_in(line) == (application == "tests.asgi_apps:auth_stack"), line


@pytest.mark.parametrize("pattern", [*probe_patterns, *demo_patterns], ids=lambda p: str(p.name))
def test_views_bear_atomic_requests_on_every_database(
    pattern: URLPattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alias in connections:
        monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
    BaseHandler().make_view_atomic(pattern.callback)  # raises for an async view that is atomic


@pytest.mark.troubleshooting("You cannot use ATOMIC_REQUESTS with async views")
def test_async_views_of_the_projects_own(symptom: Symptom, monkeypatch: pytest.MonkeyPatch) -> None:
    async def order(request: HttpRequest) -> HttpResponse:
        await asend("orders", "ann", text="hello")
        return HttpResponse()

    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    make_atomic: Any = BaseHandler().make_view_atomic
    with pytest.raises(RuntimeError) as caught:
        make_atomic(order)
    symptom.must_show_in(str(caught.value))
    make_atomic(transaction.non_atomic_requests(order))


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/demo/publish/", "/demo/token/"])
async def test_scripts_get_json_where_pages_require_a_login(
    async_client: AsyncClient, settings: Any, path: str
) -> None:
    """They got the login page, with status 200, and took it for success."""
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    answer = await async_client.post(path, {"user": "bob", "text": "hi"})
    assert answer.status_code == 403
    assert "error" in answer.json()
