"""The websocket consumer: accepts, receives, disconnects; hands everything to the delivery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from wsgateway import daphne, uvicorn
from wsgateway.codes import CloseCode
from wsgateway.delivery import Delivery, get_hub
from wsgateway.exceptions import BrokerError, IdentityRefused
from wsgateway.identity import require_service, resolve_identity
from wsgateway.origins import origin_allowed
from wsgateway.protocol import ProtocolError, Resume, choose_subprotocol, parse_resume
from wsgateway.sockets import RawSocket, Socket, SocketClosed, V1Socket
from wsgateway.transport import Transport, server_send

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
    transport: Transport

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
            await self.transport.taken()
        elif kind == "websocket.connect":
            await self.connect()
            await self.transport.taken()
        elif kind == "websocket.disconnect":
            raise StopConsumer

    async def connect(self) -> None:
        """Find out whose socket this is; accept or refuse it; begin to deliver."""
        self.transport = transport = _transport(self.scope, self.base_send)
        v1 = choose_subprotocol(self.scope.get("subprotocols", ())) is not None
        socket: Socket = V1Socket(transport) if v1 else RawSocket(transport)
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
                await transport.send({"type": "websocket.close"})
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
            await require_service(hub.broker, identity.service)
            async with hub.starting:
                if transport.gone:
                    return
                await delivery.start(claim)
        except IdentityRefused as exc:
            await _accept_and_close(socket, exc.code, exc.reason)
        except BrokerError as exc:
            logger.warning("refused a socket: %s", exc)
            await _accept_and_close(socket, CloseCode.BROKER_UNAVAILABLE)
        else:
            self.delivery = delivery


def _transport(scope: Any, send: Any) -> Transport:
    servers = server_send(scope, send)
    return daphne.transport(servers, send) or uvicorn.transport(servers, send) or Transport(send)


async def _accept_and_close(socket: Socket, code: CloseCode, reason: str | None = None) -> None:
    """Refuse so that the client sees *code*; before the handshake it would see HTTP 403."""
    with contextlib.suppress(SocketClosed):  # refused already
        await socket.accept()
        await socket.close(code, reason)
