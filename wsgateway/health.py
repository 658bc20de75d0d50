"""Probes for load balancers: is the process alive, can it take sockets?"""

from __future__ import annotations

import logging

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from wsgateway.broker import get_broker
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
        broker = get_broker()
        await broker.open()
        await broker.wait_ready(READY_TIMEOUT)
    except WsGatewayError as exc:
        logger.warning("not ready: %s", exc)
        return JsonResponse({"ready": False}, status=503)
    return JsonResponse({"ready": True})
