"""nginx and Caddy as ``deploy/`` configures them, in front of two gateways."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.deployment import DEPLOY, tool
from tests.authority import Authority
from tests.support import Process, listening, wait_for
from wsgateway.broker.embedded import free_port


class Proxy:
    """A proxy that runs.

    Args:
        base: Its origin.
        context: For TLS; None without.
        log: Where it notes what it was asked.
        plain: Where it listens without TLS, if that is another port.
    """

    def __init__(
        self, base: str, context: ssl.SSLContext | None, log: Path, plain: int = 0
    ) -> None:
        self.base = base
        self.context = context
        self.log = log
        self.plain = plain

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection for any number of requests."""
        host = self.base.partition("://")[2]
        if self.context is None:
            return http.client.HTTPConnection(host, timeout=20)
        return http.client.HTTPSConnection(host, timeout=20, context=self.context)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Ask for a page; redirects are not followed."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
            return response.status, {k.lower(): v for k, v in response.getheaders()}, body

    def ws(self, path: str) -> str:
        """Return the URL of a websocket."""
        return self.base.replace("http", "ws", 1) + path


def replaced(text: str, wanted: dict[str, str]) -> str:
    """Return *text* with other values; each of the old ones is in it."""
    for old, new in wanted.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, gateways: list[int], static: Path) -> Iterator[Proxy]:
    """Run the site of ``deploy/nginx/`` with these gateways and this folder of static files."""
    program = tool("nginx", ".ci/run installs it")
    certificate, key = Authority(folder).issue("localhost")
    plain, port = free_port(), free_port()
    site = replaced(
        re.sub(r".*listen \[::\].*\n", "", (DEPLOY / "nginx/wsgateway.conf").read_text()),
        {
            "listen 80;": f"listen 127.0.0.1:{plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "127.0.0.1:8001": f"127.0.0.1:{gateways[0]}",
            "127.0.0.1:8002": f"127.0.0.1:{gateways[1]}",
            "/etc/letsencrypt/live/chat.example.com/fullchain.pem": certificate,
            "/etc/letsencrypt/live/chat.example.com/privkey.pem": key,
            "/srv/wsgateway/staticfiles": str(static),
            "/var/log/nginx": str(folder),
            "chat.example.com": "localhost",
        },
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""  # it cannot look into our folder otherwise
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off;\n{user}pid {folder}/pid;\nevents {{}}\nhttp {{\n{paths}{site}\n}}\n"
    )
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(path)]
    check([*command, "-t"])
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    log = folder / "wsgateway.log"
    with started(Process(command, folder / "output.log", dict(os.environ)), port):
        yield Proxy(f"https://localhost:{port}", context, log, plain)


@contextmanager
def caddy(folder: Path, gateways: list[int]) -> Iterator[Proxy]:
    """Run the site of ``deploy/caddy/`` with these gateways, without TLS."""
    program = tool("caddy", ".ci/run installs it")
    port = free_port()
    env = {
        **os.environ,
        "SITE_ADDRESS": f"http://localhost:{port}",
        "GATEWAYS": " ".join(f"127.0.0.1:{each}" for each in gateways),
        "CADDY_ADMIN": f"127.0.0.1:{free_port()}",
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    options = ["--adapter", "caddyfile", "--config", str(DEPLOY / "caddy/Caddyfile")]
    check([program, "validate", *options], env)
    log = folder / "output.log"
    with started(Process([program, "run", *options], log, env), port):
        yield Proxy(f"http://localhost:{port}", None, log)


def check(command: list[str], env: dict[str, str] | None = None) -> None:
    """Let a proxy check its configuration."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


@contextmanager
def started(process: Process, port: int) -> Iterator[None]:
    process.spawn()
    try:
        wait_for(lambda: listening(port) or not process.running, 30, f"{process.command} listens")
        assert process.running, process.output
        yield
    finally:
        process.stop()
