"""``/metrics`` of the site: of the entry point, and as a view for other applications."""

from __future__ import annotations

import asyncio
import atexit
from threading import Lock
from typing import TYPE_CHECKING, Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from wsgateway.broker import runtime
from wsgateway.decorators import never_atomic
from wsgateway.metrics.access import Asker, is_forwarded, is_restricted, refusal_of

if TYPE_CHECKING:
    from wsgateway.metrics.exporter import Exporter

__all__ = ["join", "metrics", "respond"]

PLAIN = "text/plain; charset=utf-8"

_exporters: dict[str, Exporter] = {}
_lock = Lock()


def _after_fork() -> None:
    global _lock
    _lock = Lock()
    _exporters.clear()


runtime.on_fork(_after_fork)


def _exporter(port: str) -> Exporter:
    """Return the exporter of a port of the site; made and opened at the first call."""
    from wsgateway.metrics.exporter import Exporter  # with prometheus-client: 0.1 s at the start

    with _lock:
        found = _exporters.get(port)
        if found is None:
            found = _exporters[port] = Exporter(f"site:{port}")
            found.open()
            atexit.register(found.close)
        return found


def join(scope: Any) -> None:
    """Let the other workers at the port of a connection ask this one; only that tells the port."""
    _exporter(_port(scope))


async def respond(scope: Any) -> HttpResponse:
    """Return the answer to a request of the path ``/metrics``, while metrics are on."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    asker = Asker(
        (scope.get("client") or ("",))[0] or "",
        headers.get("authorization", ""),
        is_forwarded(headers),
    )
    return await _answer(asker, _port(scope), headers.get("accept", ""))


@never_atomic
@login_not_required
@require_safe
async def metrics(request: HttpRequest) -> HttpResponse:
    """Return metrics; 404 while they are off."""
    if not is_restricted():
        return HttpResponse(
            "metrics are off; set WSGATEWAY_METRICS_TOKEN or WSGATEWAY_METRICS_NETWORKS\n",
            content_type=PLAIN,
            status=404,
        )
    headers = request.headers
    asker = Asker(
        request.META.get("REMOTE_ADDR") or "",
        headers.get("authorization", ""),
        is_forwarded(headers),
    )
    return await _answer(asker, request.META["SERVER_PORT"], headers.get("accept", ""))


async def _answer(asker: Asker, port: str, accept: str) -> HttpResponse:
    if refusal := refusal_of(asker):
        response = HttpResponse(f"{refusal.text}\n", content_type=PLAIN, status=refusal.status)
        if refusal.status == 401:
            response["WWW-Authenticate"] = "Bearer"
        return response
    # In a thread: it waits for the broker, whose connection may live in this loop
    page = await asyncio.to_thread(_exporter(port).page, accept)
    return HttpResponse(page.body, content_type=page.content_type)


def _port(scope: Any) -> str:
    """Return the port, or the Unix socket, at which the server listens.

    Not the address: that is the connection's, and the workers of a server see different ones.
    """
    host, port = scope.get("server") or ("", None)
    return str(host if port is None else port)
