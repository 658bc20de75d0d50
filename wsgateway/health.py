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
from wsgateway.exceptions import BrokerUnavailable, WsGatewayError
from wsgateway.gateway.hub import is_draining

__all__ = ["alive", "healthz", "ready", "readyz"]

logger = logging.getLogger("wsgateway")

was_ready = True
"""Whether the last probe found the broker."""

READY_TIMEOUT = 1.0
"""Seconds that `ready` gives a broker that is just connecting."""


async def alive() -> JsonResponse:
    """Answer 200 as long as the event loop runs."""
    return JsonResponse({"alive": True})


async def ready() -> JsonResponse:
    """Answer 200 if the broker can be reached and sockets are taken, or else 503.

    The reason goes to the log only.
    """
    global was_ready
    try:
        if is_draining():
            raise BrokerUnavailable("the gateway lets its sockets go and takes no more")
        async with asyncio.timeout(2 * READY_TIMEOUT):  # for a loop that stands still
            await runtime.call(_nothing, READY_TIMEOUT)
    except (WsGatewayError, TimeoutError) as exc:
        # Probes come every few seconds: what they find is worth a line once
        log = logger.warning if was_ready else logger.debug
        log("not ready: %s", exc if str(exc) else "no answer in time")
        was_ready = False
        return JsonResponse({"ready": False}, status=503)
    if not was_ready:
        logger.info("ready again")
    was_ready = True
    return JsonResponse({"ready": True})


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
