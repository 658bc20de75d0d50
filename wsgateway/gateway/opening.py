"""From a handshake to a session, or to a refusal; the same for everything that has a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from wsgateway.exceptions import BrokerError, IdentityRefused
from wsgateway.gateway.hub import Hub, get_hub
from wsgateway.gateway.origins import require_host, require_origin
from wsgateway.gateway.refusals import refuse
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.traces import trace
from wsgateway.handshake import Scope
from wsgateway.identity import (
    Identity,
    require_service,
    require_valid_token,
    resolve_identity,
    with_cause,
)
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import Resume

__all__ = ["open_session"]

Ask = Callable[[Identity], Resume]
"""Returns what the handshake says about where to begin; may raise `IdentityRefused`."""
Keep = Callable[[Session], object]
"""Takes a session that has begun, and stops it in the end."""
READY_TIMEOUT = 2.0
"""Seconds that a handshake waits for a broker that is just reconnecting."""


async def open_session(socket: Socket, scope: Scope, ask: Ask, keep: Keep) -> None:
    """Find out whose *socket* it is, then begin; or refuse it.

    Args:
        socket: The one to open.
        scope: Its handshake.
        ask: Called once it is known whose socket it is.
        keep: Called as soon as the session has begun.

    Raises:
        SocketClosed: The client is gone.
    """
    if socket.transport.gone:  # uvicorn's websockets implementation wants an answer
        await socket.close(CloseCode.BAD_REQUEST)
        return
    try:
        await _open_in_time(socket, scope, ask, keep)
    except IdentityRefused as exc:
        await refuse(socket, exc, scope)
    except BrokerError as exc:
        code = CloseCode.BROKER_UNAVAILABLE
        await refuse(socket, IdentityRefused(code, code.reason, str(exc)), scope)


async def _open_in_time(socket: Socket, scope: Scope, ask: Ask, keep: Keep) -> None:
    """Open, unless the server ends: whatever the handshake waits for would keep it."""
    handshake, now = asyncio.timeout(None), asyncio.get_running_loop().time()
    try:
        async with handshake:
            socket.transport.cancel_handshake = partial(handshake.reschedule, now)
            await _open(socket, scope, ask, keep)
    except TimeoutError as exc:
        if not handshake.expired():
            raise
        code = CloseCode.SHUTTING_DOWN
        raise IdentityRefused(code, code.reason) from exc
    finally:
        socket.transport.cancel_handshake = None


async def _open(socket: Socket, scope: Scope, ask: Ask, keep: Keep) -> None:
    if scope["type"] == "http":  # a websocket's handshake has an Origin, if a browser sends it
        require_host(scope)
    require_origin(scope)
    identity = await _identity(socket, scope)
    socket.transport.where += f" of {identity.user!r}"
    socket.transport.log_fields |= {"service": identity.service, "user": identity.user}
    claim = ask(identity)
    hub = get_hub()
    hub.require_open()
    await hub.open()
    session = Session(hub, identity, socket, scope)
    trace(session)
    if socket.endpoint.acknowledges:
        # The welcome says when delivery begins; no server's handshake time-out passes
        await socket.accept()
    await _wait_until_possible(hub, identity)
    try:
        await session.open_topics(claim.topics)  # others do not wait for their `allow`
        await session.start(claim)
    except BaseException:
        session.give_up()
        raise
    keep(session)


async def _wait_until_possible(hub: Hub, identity: Identity) -> None:
    await hub.broker.wait_ready(READY_TIMEOUT)  # all at once: nobody waits for a refusal
    await require_service(hub.broker, identity.service)
    await require_valid_token(hub.broker, identity)
    await hub.presence.listed()


async def _identity(socket: Socket, scope: Scope) -> Identity:
    """Return whose socket this is, as `resolve_identity`."""
    try:
        return await resolve_identity(scope)
    except IdentityRefused as exc:
        # Before the broker is asked, or the time until then tells which services exist
        await socket.close(exc.code, exc.reason)
        raise await with_cause(exc, scope, get_hub().broker) from exc.__cause__
