"""Keep a client connected until the gateway refuses it for good."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NoReturn

from wsgateway.client.endpoint import Endpoint
from wsgateway.client.events import Event
from wsgateway.client.lost import Final, Lost, translated
from wsgateway.client.session import ClientSession
from wsgateway.client.transport import Transport
from wsgateway.exceptions import reason_of
from wsgateway.supervision import start

__all__ = ["ClientState", "Connector"]

logger = logging.getLogger("wsgateway.client")

LONGEST = 86400.0
"""Seconds; event loops refuse timers that are very long."""


class ClientState(Enum):
    """What the client is doing."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class Connector:
    """Make one connection after another.

    Args:
        session: Decides what to write, and whether and when to reconnect.
        endpoint: Where to connect to.
        connect_timeout: Seconds until the welcome.
        options: For ``websockets.asyncio.client.connect``.
        on_state: Called with each new state.
        on_events: Called with what each frame from the gateway means.
    """

    def __init__(
        self,
        session: ClientSession,
        endpoint: Endpoint,
        *,
        connect_timeout: float,
        options: dict[str, Any],
        on_state: Callable[[ClientState], None],
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        # What the session and connect_timeout decide, `websockets` must not
        self._options = {"max_size": None, "open_timeout": None, "ping_interval": None, **options}
        self._on_state = on_state
        self._on_events = on_events
        self._transport: Transport | None = None  # while it is open
        self._renew_at = math.inf  # when the timer ends
        self._renew_timer: asyncio.TimerHandle | None = None  # runs until a token is due
        self._renewing: asyncio.Task[None] | None = None  # asks for it

    async def run(self) -> NoReturn:
        """Stay connected.

        Raises:
            Final: The gateway refuses this client for good.
        """
        while True:
            self._on_state(ClientState.CONNECTING)
            try:
                await self._connect_once()
            except Final:
                raise
            except Lost as exc:
                lost = exc
            delay = self._session.lost(lost.code, time.monotonic())
            if delay is None:
                raise Final(lost.code, lost.reason, lost.status)
            logger.info("lost the connection (%s), reconnecting in %.1f s", lost, delay)
            self._on_state(ClientState.WAITING)
            await asyncio.sleep(delay)

    async def _connect_once(self) -> NoReturn:
        """Make a connection and serve it to its end.

        Raises:
            Lost: It ended, or could not be made.
        """
        if self._session.stale:
            await self._endpoint.authenticate()
            self._session.stale = False
        url = self._endpoint.address(self._session.connecting())
        transport = Transport(self._session, self._on_text)
        try:
            with translated():
                async with asyncio.timeout(self._connect_timeout):
                    await transport.dial(url, self._endpoint.subprotocols(), self._options)
                self._transport = transport
                self._on_state(ClientState.OPEN)
                await transport.serve()
        finally:
            self._transport = None
            self._set_renewal(math.inf)
            if self._renewing is not None:
                self._renewing.cancel()
            await transport.leave()

    def _on_text(self, text: str | bytes) -> None:
        self._on_events(self._session.receive(text, time.monotonic()))
        self._set_renewal(self._session.renewal.at)

    def _set_renewal(self, at: float) -> None:
        """Replace the token at this time of the clock; ``inf``: not yet."""
        if at == self._renew_at:
            return
        self._renew_at = at
        if self._renew_timer is not None:
            self._renew_timer.cancel()
            self._renew_timer = None
        if at < math.inf:
            delay = min(at - time.monotonic(), LONGEST)
            self._renew_timer = asyncio.get_running_loop().call_later(delay, self._start_renewal)

    def _start_renewal(self) -> None:
        self._renew_timer, self._renew_at = None, math.inf
        if self._session.renewal.at <= time.monotonic():
            self._renewing = start(self._renew(), "wsgateway-client-token")
        else:
            self._set_renewal(self._session.renewal.at)

    async def _renew(self) -> None:
        """Replace the token of this connection."""
        self._session.renewal.stop()
        try:
            token = await self._endpoint.authenticate()
        except Final as exc:
            logger.warning("the connection ends with its token: %s", reason_of(exc))
            return
        except Lost:
            self._session.renewal.failed(time.monotonic())
            self._set_renewal(self._session.renewal.at)
            return
        if token:
            self._session.refresh(token)
            self.wake()

    def wake(self) -> None:
        """Write what the session has due, if there is a connection."""
        if self._transport is not None:
            self._transport.wake()
