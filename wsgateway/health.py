"""Probes for load balancers: is the process alive, can it take sockets?"""

from __future__ import annotations

import asyncio
import logging

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from wsgateway import portal
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError

__all__ = ["healthz", "readyz"]

logger = logging.getLogger("wsgateway")

READY_TIMEOUT = 1.0
"""Seconds that `readyz` gives a broker that is just connecting."""


@require_safe
async def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 as long as the event loop runs."""
    return JsonResponse({"alive": True})


@require_safe
async def readyz(request: HttpRequest) -> JsonResponse:
    """Answer 200 if the broker can be reached, or else 503. The reason goes to the log only."""
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            await portal.call(_nothing)
    except (WsGatewayError, TimeoutError) as exc:
        logger.warning("not ready: %s", exc or "no answer in time")
        return JsonResponse({"ready": False}, status=503)
    return JsonResponse({"ready": True})


async def _nothing(broker: Broker) -> None:
    """Ask nothing: that the broker is ready is enough."""
