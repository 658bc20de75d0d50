"""Probes for load balancers: is the process alive, can it take sockets?

`wsgateway.asgi.application` answers them itself, before any middleware. The views are for projects
with another outermost application.
"""

from __future__ import annotations

import asyncio
import logging

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.decorators import never_atomic
from wsgateway.exceptions import BrokerMisconfigured, WsGatewayError, reason_of
from wsgateway.gateway.hub import is_draining

__all__ = ["alive", "healthz", "problems", "ready", "readyz"]

logger = logging.getLogger("wsgateway")

was_ready = True
"""Whether the last probe found everything ready."""

READY_TIMEOUT = 1.0
"""Seconds that `ready` gives a broker that is just connecting."""


async def alive() -> JsonResponse:
    """Answer 200 as long as the event loop runs."""
    return JsonResponse({"alive": True})


async def ready() -> JsonResponse:
    """Answer 200 if this process can serve sockets, or else 503 with the `problems`."""
    found = await problems()
    if found:
        return JsonResponse({"ready": False, "not_ready": found}, status=503)
    return JsonResponse({"ready": True})


async def problems() -> dict[str, str]:
    """Return what keeps this process from serving sockets, by part; nothing if it can.

    Strangers may read it, so it has no address and no name; the log has the whole reason.

    Returns:
        ``broker``, ``streams`` or ``gateway``, and what is wrong with it in a few words.
    """
    global was_ready
    found, reason = await _look()
    if found:
        # Probes come every few seconds: what they find is worth a line once
        log = logger.warning if was_ready else logger.debug
        log("not ready: %s", reason)
    elif not was_ready:
        logger.info("ready again")
    was_ready = not found
    return found


async def _look() -> tuple[dict[str, str], str]:
    """Return the `problems`, and the reason for the log."""
    if is_draining():
        return {"gateway": "draining"}, "the gateway is draining"
    try:
        connection = runtime.current()
    except BrokerMisconfigured as exc:
        return {"broker": "not configured"}, str(exc)
    try:
        async with asyncio.timeout(2 * READY_TIMEOUT):  # for a loop that is blocked
            await connection.run(_nothing, READY_TIMEOUT)
    except TimeoutError:
        return {"broker": "no answer in time"}, "no answer in time"
    except WsGatewayError as exc:
        if not connection.broker.connected:
            return {"broker": "not connected"}, reason_of(exc)
        wrong = isinstance(exc, BrokerMisconfigured)
        return {"streams": "misconfigured" if wrong else "not set up yet"}, reason_of(exc)
    return {}, ""


@never_atomic
@login_not_required
@require_safe
async def healthz(request: HttpRequest) -> JsonResponse:
    """See `alive`."""
    return await alive()


@never_atomic
@login_not_required
@require_safe
async def readyz(request: HttpRequest) -> JsonResponse:
    """See `ready`."""
    return await ready()


async def _nothing(broker: Broker) -> None:
    """Do nothing: it is enough that the broker is ready."""
