"""The websocket consumer: accepts, receives, disconnects; hands everything to the delivery."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from wsgateway.broker.base import Receipt, Stored
from wsgateway.codes import CloseCode
from wsgateway.conf import settings
from wsgateway.delivery import Delivery, get_hub
from wsgateway.exceptions import (
    BrokerError,
    IdentityRefused,
    MessageTooBig,
    WsGatewayError,
)
from wsgateway.frames import Frame
from wsgateway.identity import resolve_identity
from wsgateway.origins import origin_allowed

__all__ = ["GatewayConsumer", "RateLimit"]

logger = logging.getLogger("wsgateway")

READY_TIMEOUT = 2.0
"""Seconds that a handshake waits for a broker that is just reconnecting."""


class RateLimit:
    """A token bucket.

    Args:
        rate: Tokens per second; 0 means no limit.
        burst: Tokens at most.
        clock: Returns seconds.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_then", "_tokens")

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._clock = clock
        self._then = clock()

    def take(self) -> bool:
        """Take one token; return False if there is none."""
        if not self._rate:
            return True
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class GatewayConsumer(AsyncWebsocketConsumer):
    """One websocket. Raw: one frame is one payload, both ways.

    What the client sends is published on ``ws.send.<service>.<user>``; what is stored on
    ``ws.recv.<service>.<user>`` is sent to it.
    """

    channel_layer_alias = None  # the gateway needs no channel of its own: nothing to set up

    delivery: Delivery | None = None
    limit: RateLimit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket until it is gone; leaves nothing behind however that ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.delivery is not None:
                await self.delivery.stop()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Handle an ASGI event. Channels' own version visits a thread for each frame."""
        kind = message["type"]
        if kind == "websocket.receive":
            await self.receive(message.get("text"), message.get("bytes"))
        elif kind == "websocket.connect":
            await self.connect()
        elif kind == "websocket.disconnect":
            raise StopConsumer

    # -- handshake -----------------------------------------------------------------------

    async def connect(self) -> None:
        """Find out whose socket this is; accept or refuse it; begin to deliver."""
        try:
            if not origin_allowed(self.scope):
                raise IdentityRefused(CloseCode.FORBIDDEN, "this origin may not connect")
            identity = await resolve_identity(self.scope)
        except IdentityRefused as exc:
            logger.info("refused a socket: %s", exc.reason, extra={"code": int(exc.code)})
            await self.base_send({"type": "websocket.close"})  # HTTP 403
            return
        self.limit = RateLimit(settings.RATE_LIMIT, settings.RATE_BURST)
        hub = get_hub()
        await hub.open()
        delivery = Delivery(hub, identity, self._write, self._refuse)
        try:
            await hub.broker.wait_ready(READY_TIMEOUT)
            # The handshake ends before the first message, and before anything can be received.
            await self.base_send({"type": "websocket.accept"})
            await delivery.start()
        except IdentityRefused as exc:
            await self._refuse(CloseCode(exc.code))
        except BrokerError as exc:
            logger.warning("refused a socket: %s", exc)
            await self._accept_and_refuse(CloseCode.BROKER_UNAVAILABLE)
        else:
            self.delivery = delivery

    async def _accept_and_refuse(self, code: CloseCode) -> None:
        """Refuse so that the client sees *code*; before the handshake it would see HTTP 403."""
        await self.base_send({"type": "websocket.accept"})
        await self._refuse(code)

    async def _refuse(self, code: CloseCode) -> None:
        await self.base_send({"type": "websocket.close", "code": code.raw, "reason": code.reason})

    # -- to the client -------------------------------------------------------------------

    async def _write(self, stored: Stored) -> None:
        frame = stored.frame
        key = "text" if frame.text else "bytes"
        await self.base_send({"type": "websocket.send", key: frame.data})

    # -- from the client -----------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Publish a frame; the broker's answer is awaited elsewhere, so frames are pipelined."""
        if self.delivery is None:
            return
        data = text_data if text_data is not None else bytes_data
        frame = Frame.of(data or b"")
        try:
            if len(frame.payload) > settings.MAX_MESSAGE_SIZE:
                raise MessageTooBig(len(frame.payload), settings.MAX_MESSAGE_SIZE)
        except MessageTooBig as exc:
            logger.info("refused a frame: %s", exc)
            await self._refuse(CloseCode.MESSAGE_TOO_BIG)
            return
        if not self.limit.take():
            await self._refuse(CloseCode.RATE_LIMIT)
            return
        receipt = await self.delivery.lane.put(frame, uuid.uuid4().hex)
        receipt.add_done_callback(self._on_receipt)

    def _on_receipt(self, receipt: asyncio.Future[Receipt]) -> None:
        """Close a raw socket whose frame was not stored: it has no other way to be told."""
        if receipt.cancelled():
            return
        error = receipt.exception()
        if error is None:
            return
        logger.warning("a client's frame was refused: %s", error)
        code = CloseCode.BROKER_UNAVAILABLE
        if isinstance(error, MessageTooBig):
            code = CloseCode.MESSAGE_TOO_BIG
        elif not isinstance(error, WsGatewayError):
            logger.error("a client's frame failed", exc_info=error)
        assert self.delivery is not None
        self.delivery.close_soon(code)
