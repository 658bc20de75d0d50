"""Commands that a reader can copy, with the addresses of this site."""

from __future__ import annotations

import sys
from pathlib import Path

from django.conf import settings

from wsgateway.broker.project_server import embedded_url_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Inbox, Subjects

__all__ = ["broker_url", "manage_py", "nats_publish", "program"]


def broker_url() -> str:
    """Return the URLs of the NATS servers, without passwords; "" if the broker is in memory.

    Starts the embedded server if the project uses one and no process has started it. Blocking.

    Raises:
        BrokerMisconfigured: No broker can be used.
    """
    if wsgateway_settings.BROKER != "nats":
        return ""
    return _without_passwords(wsgateway_settings.URL or embedded_url_from_settings())


def nats_publish(url: str, inbox: Inbox, text: str) -> str:
    """Return the command that sends *text* to *inbox* through the server at *url*."""
    return f"nats --server {url} pub {Subjects(wsgateway_settings.PREFIX).recv(inbox)} '{text}'"


def program(name: str) -> Path:
    """Return the path of a program beside the running Python, as short as it can be written."""
    path = Path(sys.executable).with_name(name)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def manage_py() -> str:
    """Return how to call ``manage.py`` in a new terminal."""
    command = f"{program(Path(sys.executable).name)} manage.py"
    return f"DEBUG=1 {command}" if settings.DEBUG else command


def _without_passwords(urls: str) -> str:
    return ",".join(
        f"{url.rpartition('//')[0]}//{url.rpartition('//')[2].rpartition('@')[2]}"
        for url in urls.replace(" ", "").split(",")
        if url
    )
