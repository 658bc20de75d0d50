"""Log-out closes the session's sockets, on whichever gateway they are."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from typing import Any

from wsgateway import portal
from wsgateway.broker.base import Broker
from wsgateway.exceptions import BrokerClosed, WsGatewayError

__all__ = ["TOPIC", "on_logout", "session_topic"]

logger = logging.getLogger("wsgateway")

TOPIC = "logout"
PATIENCE = 2.0
"""Seconds that a log-out may wait for the broker."""

AGAIN = 1.0
"""Seconds until gateways are told a second time."""

_tasks: set[asyncio.Task[None]] = set()  # kept from garbage collection


def session_topic(session_key: str) -> bytes:
    """Return what names a session in a broadcast, without giving the session away."""
    return hashlib.sha256(session_key.encode()).hexdigest().encode()


def _once_more(broker: Broker, payload: bytes) -> None:
    with contextlib.suppress(BrokerClosed):
        broker.broadcast(TOPIC, payload)


def on_logout(request: Any = None, **kwargs: Any) -> None:
    """Tell every gateway; receiver of Django's ``user_logged_out``.

    A log-out succeeds even if the broker is away; then the sockets stay until they reconnect.
    """
    key = getattr(getattr(request, "session", None), "session_key", None)
    if not key:
        return
    payload = session_topic(key)

    async def tell(broker: Broker) -> None:
        broker.broadcast(TOPIC, payload)
        # Django says so before it ends the session: a client that came back at once got in again
        asyncio.get_running_loop().call_later(AGAIN, _once_more, broker, payload)

    async def tell_soon() -> None:
        try:
            await portal.call(tell)
        except WsGatewayError as exc:
            logger.warning("a log-out did not reach the gateways: %s", exc)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            portal.call_sync(tell, PATIENCE)
        except (WsGatewayError, TimeoutError) as exc:
            logger.warning("a log-out did not reach the gateways: %s", exc or "no answer in time")
    else:
        task = asyncio.create_task(tell_soon())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
