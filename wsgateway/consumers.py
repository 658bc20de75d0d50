"""The websocket consumer: accepts, receives, disconnects; hands everything to the session."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway import daphne, uvicorn
from wsgateway.gateway.opening import open_session
from wsgateway.gateway.refusals import MAX_PATH
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.gateway.transport import Transport, server_send
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.subprotocols import RAW_SUBPROTOCOL
from wsgateway.protocol.v1 import ProtocolError, Resume, choose_subprotocol, parse_resume
from wsgateway.protocol.v1.endpoint import V1Endpoint

__all__ = ["GatewayConsumer", "socket_of"]

ENDPOINTS: dict[str | None, type[Endpoint]] = {
    None: RawEndpoint,
    RAW_SUBPROTOCOL: RawEndpoint,
    V1Endpoint.subprotocol: V1Endpoint,
}
"""Who speaks each subprotocol; None: without one."""


class GatewayConsumer(AsyncWebsocketConsumer):
    """One websocket: raw, or with the subprotocol ``wsgateway.v1``.

    What the client sends is published on ``ws.send.<service>.<user>``; what is stored on
    ``ws.recv.<service>.<user>`` is sent to it.
    """

    channel_layer_alias = None  # type: ignore[assignment]  # needs no channel of its own

    session: Session | None = None
    transport: Transport

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket until it is gone; leaves nothing behind however that ends."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # daphne ends
            if self.session is not None:
                await self.session.close(CloseCode.SHUTTING_DOWN)
            raise
        finally:
            if self.session is not None:
                await self.session.stop()

    async def dispatch(self, message: Any) -> None:
        """Handle an ASGI event. Channels' own version visits a thread for each frame."""
        kind = message["type"]
        if kind == "websocket.receive":
            if self.session is not None:
                text = message.get("text")
                await self.session.receive(message.get("bytes") or b"" if text is None else text)
            await self.transport.taken()
        elif kind == "websocket.connect":
            with contextlib.suppress(SocketClosed):  # the client is gone
                await self.connect()
            await self.transport.taken()
        elif kind == "websocket.disconnect":
            if self.session is not None:
                self.session.left(message.get("code"))
            raise StopConsumer

    async def connect(self) -> None:
        """Find out whose socket this is; accept or refuse it; begin to deliver."""
        socket = socket_of(self.scope, self.base_send)
        self.transport = socket.transport

        def claim(identity: Identity) -> Resume:
            return _claim(self.scope) if socket.endpoint.acknowledges else Resume()

        await open_session(socket, self.scope, claim, self._keep)

    def _keep(self, session: Session) -> None:
        self.session = session


def socket_of(scope: Any, send: Any) -> Socket:
    """Return the socket of a handshake: raw, or with the subprotocol that it offers.

    Args:
        scope: The connection's scope.
        send: What the application was given.
    """
    transport = _transport(scope, send)
    transport.where = f"the socket at {scope['path'][:MAX_PATH]!r}"
    subprotocol = choose_subprotocol(scope.get("subprotocols", ()))
    return Socket(transport, ENDPOINTS[subprotocol], subprotocol)


def _claim(scope: Any) -> Resume:
    try:
        return parse_resume(scope.get("query_string", b""))
    except ProtocolError as exc:
        raise IdentityRefused(CloseCode.BAD_REQUEST, str(exc)) from exc


def _transport(scope: Any, send: Any) -> Transport:
    servers = server_send(scope, send)
    return daphne.transport(servers, send) or uvicorn.transport(servers, send) or Transport(send)
