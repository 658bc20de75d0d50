"""``--metrics-port``: the metrics of commands that serve no site."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from wsgateway.exceptions import WsGatewayError, reason_of
from wsgateway.metrics.access import Asker, is_forwarded, is_restricted, refusal_of
from wsgateway.metrics.members import serve, stop

__all__ = ["MetricsPortRefused", "MetricsServer", "add_metrics_arguments", "metrics_served"]

logger = logging.getLogger("wsgateway")

PATH = "/metrics"
MAX_PORT = 65535
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class MetricsPortRefused(WsGatewayError, ValueError):
    """Nobody can listen at the address that ``--metrics-port`` and ``--metrics-host`` name."""

    def __init__(self, host: str, port: int, cause: BaseException) -> None:
        super().__init__(
            f"cannot serve metrics at port {port} of {host!r}: {reason_of(cause)}; choose another "
            "--metrics-port or --metrics-host. Only processes of the same user share a port"
        )


def add_metrics_arguments(parser: ArgumentParser) -> None:
    """Define where a command serves metrics."""
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve metrics for Prometheus here; several processes may share a port; 0: any",
    )
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to serve them at; default: 127.0.0.1, so only this machine sees them",
    )


class Teller(Protocol):
    """Tells an operator something."""

    def tell(self, text: str, /, **fields: object) -> None:
        """Say what just happened, in words or with *fields*."""

    def note(self, text: str) -> None:
        """Say what people who watch should know."""


@contextlib.contextmanager
def metrics_served(
    options: Mapping[str, Any], out: Teller, *, asks_broker: bool = True
) -> Iterator[None]:
    """Serve metrics while a command does something else, if its options say so.

    Args:
        options: With those of `add_metrics_arguments`.
        out: Hears where they are, and whether everybody can see them.
        asks_broker: See `wsgateway.metrics.exporter.Exporter`.

    Raises:
        MetricsPortRefused: Nobody can listen there.
    """
    port, host = options["metrics_port"], options["metrics_host"]
    if port is None:
        yield
        return
    server = MetricsServer(host, port, asks_broker=asks_broker)
    server.open()
    try:
        out.tell(f"metrics: {server.url}", event="metrics", url=server.url)
        if host not in LOOPBACK and not is_restricted():
            out.note(
                f"Everybody who can reach {host} can read the metrics. Set "
                "WSGATEWAY_METRICS_TOKEN or WSGATEWAY_METRICS_NETWORKS."
            )
        yield
    finally:
        server.close()


class MetricsServer(http.server.ThreadingHTTPServer):
    """Serves `PATH`, each request in a thread.

    All processes that share the port listen there, and the kernel chooses one for each connection.
    When one is killed, the next connection goes to another.

    Args:
        host: An address of this machine, or its name.
        port: 0: one that is free.
        asks_broker: See `wsgateway.metrics.exporter.Exporter`.

    Raises:
        MetricsPortRefused: Nobody can listen there.
    """

    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = True

    def __init__(self, host: str, port: int, *, asks_broker: bool = True) -> None:
        try:
            if not 0 <= port <= MAX_PORT:
                raise OverflowError(f"ports are numbers from 0 to {MAX_PORT}")
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        except (OSError, OverflowError) as exc:
            raise MetricsPortRefused(host, port, exc) from exc
        name = str(self.server_address[0])
        self.where = f"[{name}]:{self.server_port}" if ":" in name else f"{name}:{self.server_port}"
        """Address and port."""
        from wsgateway.metrics.exporter import Exporter  # with prometheus-client, when it is used

        self.exporter = Exporter(self.where, asks_broker=asks_broker)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"http://{self.where}{PATH}"

    def server_bind(self) -> None:
        """Listen, without asking the DNS for this machine's name, as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def open(self) -> None:
        """Begin to serve."""
        self.exporter.open()
        serve(self, "wsgateway-metrics")

    def close(self) -> None:
        """Serve no more."""
        self.exporter.close()
        stop(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong, where the base class prints it."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the client is gone
            logger.debug("metrics were not sent: %s", reason_of(error))
        else:
            logger.error("a request for metrics failed", exc_info=error)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = 10.0
    server_version = "wsgateway"
    sys_version = ""

    def do_GET(self) -> None:
        self._respond(has_body=True)

    def do_HEAD(self) -> None:
        self._respond(has_body=False)

    def _respond(self, *, has_body: bool) -> None:
        status, content_type, body = self._page()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def _page(self) -> tuple[int, str, bytes]:
        plain = "text/plain; charset=utf-8"
        if self.path.partition("?")[0] != PATH:
            return 404, plain, f"metrics are at {PATH}\n".encode()
        if is_restricted():
            forwarded = is_forwarded(self.headers)
            authorization = self.headers.get("Authorization", "")
            asker = Asker(self.client_address[0], authorization, forwarded)
            if refusal := refusal_of(asker):
                return refusal.status, plain, f"{refusal.text}\n".encode()
        page = self.server.exporter.page(self.headers.get("Accept", ""))
        return 200, page.content_type, page.body

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("metrics: %s", format % args)
