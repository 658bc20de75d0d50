"""System checks of INSTALLED_APPS and ASGI_APPLICATION."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import CookieMiddleware
from django.apps import apps
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.core.wsgi import get_wsgi_application
from django.urls import path, re_path

import wsgateway.asgi
from tests.support import ROOT, site_env
from tests.troubleshooting import Symptom
from tests.unit.test_checks import messages
from wsgateway.checks.installation import (
    check_apps,
    check_entry_point,
    check_outbox,
    check_runserver,
    has_gateway,
)
from wsgateway.routing import gateway, gateway_router, refuse_unknown_path, websocket_urlpatterns


def test_W001_channels_is_missing(settings: Any) -> None:
    settings.INSTALLED_APPS = ["daphne", "wsgateway"]
    assert set(messages()) == {"W001"}


@pytest.mark.parametrize("value", [None, ""])
def test_W002_asgi_application_is_missing(settings: Any, value: str | None) -> None:
    """As in what startproject makes: WSGI only."""
    settings.ASGI_APPLICATION = value
    settings.ROOT_URLCONF = "mysite.urls"
    found = check_apps()
    assert [m.id for m in found] == ["wsgateway.W002"]
    assert "'mysite.asgi.application'" in str(found[0].hint)
    settings.INSTALLED_APPS = ["channels", "wsgateway"]
    assert check_apps() == []  # in production, a project that only sends
    settings.DEBUG = True
    assert [m.id for m in check_apps()] == ["wsgateway.W002"]


def test_W003_asgi_application_is_not_the_entry_point(settings: Any) -> None:
    settings.ASGI_APPLICATION = "channels.routing.ProtocolTypeRouter"
    assert set(messages()) == {"W003"}
    settings.ASGI_APPLICATION = f"{__name__}.hidden"
    assert set(messages()) == {"W003"}
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert set(messages()) == set()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("there.is.no.such", "ModuleNotFoundError: No module named 'there'"),
        ("project.asgi.app", 'ImportError: Module "project.asgi" does not define a "app"'),
        ("application", "ImportError: application doesn't look like a module path"),
        ("project.asgi", "it is of type module, not an application"),
        ("tests.unit.test_checks_installation.wsgi", "it is a WSGI application, which serves no"),
        ("project.asgi:application", "the colon is for the command line of a server"),
        ("tests.asgi_that_exits.application", "SystemExit: cannot start: no reason"),
        (5, "it is of type int, not a dotted path"),
    ],
)
def test_W010_asgi_application_cannot_be_imported(
    settings: Any, monkeypatch: pytest.MonkeyPatch, path: Any, why: str
) -> None:
    class Exits(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise SystemExit("cannot start: no reason.")

    import_module("project.asgi")
    monkeypatch.setitem(sys.modules, "tests.asgi_that_exits", Exits("tests.asgi_that_exits"))
    settings.ASGI_APPLICATION = path
    found = messages()
    assert set(found) == {"W010"}
    assert why in found["W010"]


@pytest.mark.parametrize(
    ("path", "text", "hint"),
    [
        ("mysite.asgi:application", "the colon is for", "Write 'mysite.asgi.application'."),
        (f"{__name__}.wsgi", "it is a WSGI application", "Name the application in your asgi.py, "),
        (
            f"{__name__}.entry_point",
            "NATS_BROKER_URL is empty and DEBUG is off.",
            "Set NATS_BROKER_URL to your NATS servers, ",
        ),
        (f"{__name__}.no_secret", "The SECRET_KEY setting must not be empty.", "Correct that."),
    ],
)
def test_W010_hints_at_the_cause(settings: Any, path: str, text: str, hint: str) -> None:
    """The hint was the same for all: to correct the path, which was right in the last two."""
    settings.ASGI_APPLICATION = path
    settings.NATS_BROKER_URL = ""
    settings.PUBSUB_BROKER = "nats"
    (found,) = check_entry_point()
    assert found.id == "wsgateway.W010"
    assert text in found.msg
    assert str(found.hint).startswith(hint)
    assert ("asgi.py" in str(found.hint)) is ("wsgi" in path)


def test_W010_does_not_repeat_what_another_check_says(settings: Any) -> None:
    """The entry point raises it as well, so that servers say it, which run no checks."""
    settings.ASGI_APPLICATION = f"{__name__}.entry_point"
    settings.WSGATEWAY_SERVICES = "demo"
    assert set(messages()) == {"E002"}
    settings.WSGATEWAY_SERVICES = ["demo"]
    assert messages() == {}


def __getattr__(name: str) -> Any:
    """As an ``asgi.py`` that is imported now."""
    if name == "entry_point":
        return wsgateway.asgi.application()
    if name == "no_secret":
        raise ImproperlyConfigured("The SECRET_KEY setting must not be empty.")
    raise AttributeError(name)


async def hidden(scope: Any, receive: Any, send: Any) -> None:
    """An application of which nobody can see what is in it."""


pages: Any = get_asgi_application()
wsgi: Any = get_wsgi_application()
with_login: Any = AuthMiddlewareStack
chat: Any = AsyncWebsocketConsumer.as_asgi()
opaque: Any = hidden
refuse: Any = refuse_unknown_path
ours: Any = wsgateway.asgi.application()
routed: Any = URLRouter([re_path("^chat/", chat), *websocket_urlpatterns])
below: Any = URLRouter([path("chat/", chat), path("live/", gateway_router)])
WITH_GATEWAY: list[Any] = [
    ours,
    wsgateway.asgi.application(http=pages, websocket=with_login(routed)),
    ProtocolTypeRouter({"http": pages, "websocket": AllowedHostsOriginValidator(below)}),
    wsgateway.asgi.application(websocket=CookieMiddleware(below)),
    ASGIStaticFilesHandler(ours),
    URLRouter([re_path("^live/", with_login(gateway_router))]),
    URLRouter([path("live/<service>/", with_login(gateway))]),
]
CANNOT_TELL: list[Any] = [
    opaque,
    ProtocolTypeRouter({"websocket": opaque}),
    wsgateway.asgi.application(websocket=URLRouter([re_path("^chat/", chat), re_path("", opaque)])),
]
WITHOUT: list[Any] = [
    pages,
    ASGIStaticFilesHandler(pages),
    ProtocolTypeRouter({"http": pages}),
    ProtocolTypeRouter({"http": pages, "websocket": URLRouter([re_path("^chat/", chat)])}),
    wsgateway.asgi.application(websocket=with_login(URLRouter([path("", chat)]))),
    URLRouter([path("", chat), re_path("", refuse)]),
    URLRouter([path("live/", with_login(gateway_router))]),
]


@pytest.mark.parametrize("application", [*WITH_GATEWAY, *CANNOT_TELL])
def test_gateway_is_found_in_an_application(settings: Any, application: Any) -> None:
    assert has_gateway(application) is (None if application in CANNOT_TELL else True)


@pytest.mark.parametrize("application", WITHOUT)
def test_W011_application_without_the_gateway(
    settings: Any, monkeypatch: pytest.MonkeyPatch, application: Any
) -> None:
    """As startproject makes it: sockets got 404, or an error in Django's handler."""
    monkeypatch.setattr("project.asgi.application", application)
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert has_gateway(application) is False
    found = [m for m in check_entry_point() if m.id == "wsgateway.W011"]
    assert len(found) == 1
    assert "wsgateway.asgi.application()" in str(found[0].hint)
    assert "only the channel layer" in str(found[0].hint)


@pytest.mark.parametrize(("route", "reaches"), [(path, False), (re_path, True)])
async def test_router_behind_middleware_is_reached_as_the_check_says(
    monkeypatch: pytest.MonkeyPatch, route: Any, reaches: bool
) -> None:
    """Every check was silent about ``path()``, although no socket was served."""
    called = []

    async def consumer(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["url_route"]["kwargs"])

    for inner in gateway_router.routes:
        monkeypatch.setattr(inner, "callback", consumer)
    router: Any = URLRouter([route("live/", CookieMiddleware(gateway_router))])
    with contextlib.suppress(ValueError):  # no route
        await router({"type": "websocket", "path": "/live/orders/", "headers": []}, None, None)
    assert bool(called) is reaches
    monkeypatch.undo()
    assert bool(has_gateway(router)) is reaches


BARE = ["channels", "wsgateway", "django.contrib.staticfiles"]


@pytest.mark.parametrize(
    ("installed", "warns"),
    [
        (BARE, True),
        (["whitenoise.runserver_nostatic", *BARE], True),
        (["daphne", *BARE], False),
        (["whitenoise.runserver_nostatic", "daphne", *BARE], False),
        (["tests.people_app", *BARE], True),
    ],
)
def test_W012_runserver_serves_no_websockets(
    settings: Any, installed: list[str], warns: bool
) -> None:
    settings.DEBUG = True
    settings.INSTALLED_APPS = [*installed, *AUTH]
    assert set(messages()) == ({"W012"} if warns else set())
    assert all("`daphne " in str(m.hint) for m in check_runserver())
    settings.DEBUG = False
    assert set(messages()) == set()


def test_W012_runserver_of_another_app(settings: Any, tmp_path: Path) -> None:
    commands = tmp_path / "management" / "commands"
    commands.mkdir(parents=True)
    (commands / "runserver.py").write_text("")
    settings.DEBUG = True
    settings.INSTALLED_APPS = [*BARE, *AUTH]
    (channels,) = (app for app in apps.get_app_configs() if app.name == "channels")
    assert [m.id for m in check_runserver()] == ["wsgateway.W012"]
    channels.path = str(tmp_path)
    assert check_runserver() == []


AUTH = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]


def test_E008_outbox_without_the_gateway(settings: Any) -> None:
    """No check of ours ran: the app that registers them is the one that is missing."""
    assert check_outbox() == []
    settings.INSTALLED_APPS = ["wsgateway.outbox", *AUTH]
    assert [m.id for m in check_outbox()] == ["wsgateway.E008"]


@pytest.mark.parametrize("module", ["wsgateway.urls", "wsgateway.asgi"])
def test_gateway_without_its_app_is_refused(
    settings: Any, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    settings.INSTALLED_APPS = ["channels", *AUTH]
    monkeypatch.delitem(sys.modules, "wsgateway.urls", raising=False)
    with pytest.raises(ImproperlyConfigured, match="'wsgateway' is not in INSTALLED_APPS"):
        wsgateway.asgi.application() if module == "wsgateway.asgi" else import_module(module)


def output_of_check(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what ``manage.py check`` says."""
    try:
        call_command("check")
    except SystemCheckError as exc:
        return str(exc)
    return capsys.readouterr().err


@pytest.mark.troubleshooting("'daphne' is not in INSTALLED_APPS, so runserver serves no websockets")
def test_daphne_is_missing(
    symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.DEBUG = True
    assert not symptom.is_in(output_of_check(capsys))
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "daphne"]
    symptom.must_show_in(output_of_check(capsys))


@pytest.mark.troubleshooting(
    "Daphne must be listed before django.contrib.staticfiles in INSTALLED_APPS"
)
def test_daphne_comes_too_late(
    symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [app for app in settings.INSTALLED_APPS if app != "daphne"]
    settings.INSTALLED_APPS = [*others, "daphne"]
    symptom.must_show_in(output_of_check(capsys))


@pytest.mark.troubleshooting("ASGI_APPLICATION is not set")
def test_wsgi_only(symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings.ASGI_APPLICATION = None
    symptom.must_show_in(output_of_check(capsys))


@pytest.mark.troubleshooting("ASGI_APPLICATION is …, where no websocket reaches the gateway")
def test_what_startproject_makes(
    symptom: Symptom,
    settings: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("project.asgi.application", pages)
    symptom.must_show_in(output_of_check(capsys))


@pytest.mark.troubleshooting(
    "DJANGO_SETTINGS_MODULE is not set; in asgi.py, before you call wsgateway.asgi.application()"
)
def test_nothing_names_the_settings(symptom: Symptom) -> None:
    """Django spoke of LOGGING_CONFIG, which no line of an asgi.py mentions."""
    env = {name: value for name, value in site_env().items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", "import wsgateway.asgi; wsgateway.asgi.application()"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    symptom.must_show_in(done.stderr)


@pytest.mark.troubleshooting("'wsgateway' is not in INSTALLED_APPS; add it there")
def test_app_is_missing(symptom: Symptom, settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if "wsgateway" not in app]
    with pytest.raises(ImproperlyConfigured) as error:
        wsgateway.asgi.application()
    symptom.must_show_in(str(error.value))
