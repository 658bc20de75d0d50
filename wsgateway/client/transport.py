"""One websocket of the client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from wsgateway.client.lost import Final
from wsgateway.client.session import ClientSession
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import SUBPROTOCOL
from wsgateway.supervision import start

__all__ = ["Transport"]

logger = logging.getLogger("wsgateway.client")

LEAVE_TIMEOUT = 1.0
"""Most seconds to spend on closing; the peer may be dead."""


class Transport:
    """One connection. `dial`, then `serve` until it raises, then `leave` in any case.

    Args:
        session: Decides what to write.
        on_text: Called with each frame.
    """

    def __init__(self, session: ClientSession, on_text: Callable[[str | bytes], None]) -> None:
        self._session = session
        self._on_text = on_text
        self._socket: websockets.asyncio.client.ClientConnection | None = None  # set by `dial`
        self._wake = asyncio.Event()  # there is something to write
        self._ack_timer: asyncio.TimerHandle | None = None

    async def dial(
        self, url: str, subprotocols: list[Subprotocol], options: dict[str, Any]
    ) -> None:
        """Connect, and read until the welcome."""
        socket = self._socket = await websockets.asyncio.client.connect(
            url, subprotocols=subprotocols, **options
        )
        if socket.subprotocol != SUBPROTOCOL:
            raise Final(CloseCode.BAD_REQUEST, f"the server does not speak {SUBPROTOCOL}")
        while not self._session.is_open:
            await self._write_due(socket)
            self._on_text(await socket.recv())

    async def serve(self) -> NoReturn:
        """Read and write until the connection ends.

        Raises:
            ConnectionClosed: It ended.
        """
        socket = self._socket
        assert socket is not None

        def on_end(error: BaseException | None) -> None:
            if error is not None:  # a connection that only reads, or only writes, is useless
                socket.transport.abort()

        tasks = [
            start(self._write(socket), "wsgateway-client-write", on_end=on_end),
            start(self._watch(socket), "wsgateway-client-watch", on_end=on_end),
        ]
        try:
            async for text in socket:
                self._on_text(text)
                self.wake()
            raise ConnectionClosed(socket.protocol.close_rcvd, socket.protocol.close_sent)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def leave(self) -> None:
        """Send the last acknowledgements and close, within `LEAVE_TIMEOUT`."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        if self._socket is None:
            return
        try:
            with contextlib.suppress(ConnectionClosed, OSError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    for ack in self._session.last_acks():
                        await self._socket.send(ack)
                    await self._socket.close()
        finally:
            self._socket.transport.abort()

    def wake(self) -> None:
        """Write what is due, now or later; call this after each change of the session."""
        due = self._session.write_at
        if due == math.inf:
            return
        delay = due - time.monotonic()
        if delay <= 0:
            self._wake.set()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(delay, self._ack_due)

    def _ack_due(self) -> None:
        self._ack_timer = None
        self.wake()

    async def _watch(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        while self._session.alive(time.monotonic()):
            self.wake()
            await asyncio.sleep(self._session.beat_at - time.monotonic())
        logger.info("no answer from the gateway, closing the connection")
        socket.transport.abort()

    async def _write(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        """Write what is due. The only writer, so frames leave in the session's order."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._wake.clear()
                await self._write_due(socket)
                await self._wake.wait()

    async def _write_due(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        while (text := self._session.next_frame(time.monotonic())) is not None:
            await socket.send(text)
