"""The websocket consumer: accepts, receives, disconnects; hands everything to the session."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from wsgateway.exceptions import BrokerError, IdentityRefused
from wsgateway.gateway import daphne, uvicorn
from wsgateway.gateway.hub import get_hub
from wsgateway.gateway.origins import require_origin
from wsgateway.gateway.refusals import MAX_PATH, refuse
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.gateway.traces import trace
from wsgateway.gateway.transport import Transport, server_send
from wsgateway.identity import (
    Identity,
    require_service,
    require_valid_token,
    resolve_identity,
    with_cause,
)
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
READY_TIMEOUT = 2.0
"""Seconds that a handshake waits for a broker that is just reconnecting."""


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
        if self.transport.gone:  # uvicorn's websockets implementation wants an answer
            await socket.close(CloseCode.BAD_REQUEST)
            return
        try:
            await self._begin_in_time(socket)
        except IdentityRefused as exc:
            await refuse(socket, exc, self.scope)
        except BrokerError as exc:
            code = CloseCode.BROKER_UNAVAILABLE
            await refuse(socket, IdentityRefused(code, code.reason, str(exc)), self.scope)

    async def _begin_in_time(self, socket: Socket) -> None:
        """Begin, unless the server ends: whatever the handshake waits for would keep it."""
        handshake, now = asyncio.timeout(None), asyncio.get_running_loop().time()
        try:
            async with handshake:
                socket.transport.cancel_handshake = partial(handshake.reschedule, now)
                await self._begin(socket)
        except TimeoutError as exc:
            if not handshake.expired():
                raise
            code = CloseCode.SHUTTING_DOWN
            raise IdentityRefused(code, code.reason) from exc
        finally:
            socket.transport.cancel_handshake = None

    async def _begin(self, socket: Socket) -> None:
        require_origin(self.scope)
        identity = await self._identity(socket)
        socket.transport.where += f" of {identity.user!r}"
        socket.transport.log_fields |= {"service": identity.service, "user": identity.user}
        claim = _claim(self.scope) if socket.endpoint.acknowledges else Resume()
        hub = get_hub()
        hub.require_open()
        await hub.open()
        session = Session(hub, identity, socket, self.scope)
        trace(session)
        if socket.endpoint.acknowledges:
            # The welcome says when delivery begins; no server's handshake time-out passes
            await socket.accept()
        await hub.broker.wait_ready(READY_TIMEOUT)  # all at once: nobody waits for a refusal
        await require_service(hub.broker, identity.service)
        await require_valid_token(hub.broker, identity)
        await hub.presence.listed()
        async with hub.starting:
            if socket.transport.gone:
                # Nobody reads it, but uvicorn's websockets implementation wants an answer
                await socket.close(CloseCode.BAD_REQUEST)
                return
            await session.start(claim)
            self.session = session

    async def _identity(self, socket: Socket) -> Identity:
        """Return whose socket this is, as `resolve_identity`."""
        try:
            return await resolve_identity(self.scope)
        except IdentityRefused as exc:
            # Before the broker is asked, or the time until then tells which services exist
            await socket.close(exc.code, exc.reason)
            raise await with_cause(exc, self.scope, get_hub().broker) from exc.__cause__


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
