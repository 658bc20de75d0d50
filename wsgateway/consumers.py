"""The websocket consumer: accepts, receives, disconnects; hands everything to the delivery."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from wsgateway.codes import CloseCode
from wsgateway.daphne import gone
from wsgateway.delivery import Delivery, get_hub
from wsgateway.exceptions import BrokerError, IdentityRefused
from wsgateway.identity import resolve_identity
from wsgateway.origins import origin_allowed
from wsgateway.protocol import ProtocolError, Resume, choose_subprotocol, parse_resume
from wsgateway.sockets import RawSocket, Socket, V1Socket

__all__ = ["GatewayConsumer"]

logger = logging.getLogger("wsgateway")

READY_TIMEOUT = 2.0
"""Seconds that a handshake waits for a broker that is just reconnecting."""


class GatewayConsumer(AsyncWebsocketConsumer):
    """One websocket: raw, or with the subprotocol ``wsgateway.v1``.

    What the client sends is published on ``ws.send.<service>.<user>``; what is stored on
    ``ws.recv.<service>.<user>`` is sent to it.
    """

    channel_layer_alias = None  # type: ignore[assignment]  # needs no channel of its own

    delivery: Delivery | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket until it is gone; leaves nothing behind however that ends."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # daphne ends
            if self.delivery is not None:
                await self.delivery.socket.close(CloseCode.SHUTTING_DOWN)
            raise
        finally:
            if self.delivery is not None:
                await self.delivery.stop()

    async def dispatch(self, message: Any) -> None:
        """Handle an ASGI event. Channels' own version visits a thread for each frame."""
        kind = message["type"]
        if kind == "websocket.receive":
            if self.delivery is not None:
                await self.delivery.socket.receive(message.get("text"), message.get("bytes"))
        elif kind == "websocket.connect":
            await self.connect()
        elif kind == "websocket.disconnect":
            raise StopConsumer

    async def connect(self) -> None:
        """Find out whose socket this is; accept or refuse it; begin to deliver."""
        v1 = choose_subprotocol(self.scope.get("subprotocols", ())) is not None
        socket: Socket = V1Socket(self.base_send) if v1 else RawSocket(self.base_send)
        try:
            if not origin_allowed(self.scope):
                raise IdentityRefused(CloseCode.FORBIDDEN, "this origin may not connect")
            identity = await resolve_identity(self.scope)
            claim = parse_resume(self.scope.get("query_string", b"")) if v1 else Resume()
        except (IdentityRefused, ProtocolError) as exc:
            code = exc.code if isinstance(exc, IdentityRefused) else CloseCode.BAD_REQUEST
            logger.info("refused a socket: %s", exc, extra={"code": int(code)})
            if v1:
                await _accept_and_close(socket, code, str(exc))
            else:
                await self.base_send({"type": "websocket.close"})  # type: ignore[misc,arg-type]
            return
        hub = get_hub()
        if hub.draining:
            await _accept_and_close(socket, CloseCode.SHUTTING_DOWN)
            return
        await hub.open()
        delivery = Delivery(hub, identity, socket)
        try:
            if v1:  # the welcome says when delivery begins; no server's handshake time-out passes
                await socket.accept()
            await hub.broker.wait_ready(READY_TIMEOUT)  # all at once: nobody waits for a refusal
            async with hub.starting:
                if gone(self.base_send):
                    return
                await delivery.start(claim)
        except IdentityRefused as exc:
            await _accept_and_close(socket, exc.code, exc.reason)
        except BrokerError as exc:
            logger.warning("refused a socket: %s", exc)
            await _accept_and_close(socket, CloseCode.BROKER_UNAVAILABLE)
        else:
            self.delivery = delivery


async def _accept_and_close(socket: Socket, code: CloseCode, reason: str | None = None) -> None:
    """Refuse so that the client sees *code*; before the handshake it would see HTTP 403."""
    await socket.accept()
    await socket.close(code, reason)
