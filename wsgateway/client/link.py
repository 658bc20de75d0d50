"""One websocket of the client: dials, writes what is due, notices silence, says goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from wsgateway.client.session import ClientInbox, ClientOutbox
from wsgateway.codes import CloseCode
from wsgateway.protocol import (
    SUBPROTOCOL,
    Beat,
    Heartbeat,
    Ping,
    ProtocolError,
    Welcome,
    encode_client_ack,
    encode_ping,
    encode_pong,
    parse_server,
)

__all__ = ["Final", "Link", "Lost", "address", "translated"]

logger = logging.getLogger("wsgateway.client")

LEAVE_TIMEOUT = 1.0
"""Seconds that a goodbye may take; the peer may be gone."""
RETRY_STATUS = frozenset({408, 425, 429})
"""HTTP statuses below 500 that a later attempt may not get."""


class Lost(Exception):
    """The connection ended, or did not come about."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


class Final(Lost):
    """The same, and no other attempt makes sense."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what sockets and `websockets` raise into `Lost` and `Final`."""
    try:
        yield
    except ConnectionClosed as exc:
        if exc.sent is not None and not exc.rcvd_then_sent:  # `websockets` gave up first
            raise Lost(exc.sent.code, f"{exc.sent.reason} (max_size)") from exc
        code, reason = (exc.rcvd.code, exc.rcvd.reason) if exc.rcvd else (1006, "")
        raise Lost(code, reason) from exc
    except InvalidStatus as exc:
        raise _refused(exc.response.status_code) from exc
    except (InvalidURI, ProtocolError) as exc:
        raise Final(CloseCode.BAD_REQUEST, str(exc)) from exc
    except (OSError, TimeoutError, WebSocketException) as exc:
        raise Lost(1006, str(exc) or type(exc).__name__) from exc


def _refused(status: int) -> Lost:
    reason = f"HTTP status {status}"
    if status in (401, 403):
        return Lost(CloseCode.NOT_AUTHENTICATED, reason)
    if status >= 500 or status in RETRY_STATUS:
        return Lost(1006, reason)
    return Final(CloseCode.BAD_REQUEST, reason)


def address(url: str, fields: dict[str, str]) -> str:
    """Return *url* with *fields* in its query."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True)) | fields
    return urlunsplit(parts._replace(query=urlencode(query), fragment=""))


class Link:
    """One connection. `dial`, then `serve` until it raises, then `leave` in any case.

    Args:
        inbox: Gives the acknowledgements to write.
        outbox: Gives the messages to write.
    """

    def __init__(self, inbox: ClientInbox, outbox: ClientOutbox) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._socket: websockets.asyncio.client.ClientConnection | None = None  # once dialled
        self._wake = asyncio.Event()  # there is something to write
        self._controls: deque[str] = deque()  # pings and pongs to write
        self._ack_due = False
        self._ack_timer: asyncio.TimerHandle | None = None

    async def dial(self, url: str, options: dict[str, Any]) -> Welcome:
        """Connect and return the welcome."""
        self._socket = await websockets.asyncio.client.connect(
            url, subprotocols=[Subprotocol(SUBPROTOCOL)], **options
        )
        if self._socket.subprotocol != SUBPROTOCOL:
            raise Final(CloseCode.BAD_REQUEST, f"the server does not speak {SUBPROTOCOL}")
        first = parse_server(await self._socket.recv())
        if not isinstance(first, Welcome):
            raise Final(CloseCode.BAD_REQUEST, "the gateway did not begin with a welcome")
        return first

    async def serve(self, heartbeat: Heartbeat, on_frame: Callable[[object], None]) -> NoReturn:
        """Read and write until the connection ends.

        Raises:
            ConnectionClosed: It has.
        """
        socket = self._socket
        assert socket is not None
        tasks = [
            asyncio.create_task(self._write(socket), name="wsgateway-client-write"),
            asyncio.create_task(self._watch(socket, heartbeat), name="wsgateway-client-watch"),
        ]
        for task in tasks:  # without it the connection would stay, and be deaf
            task.add_done_callback(lambda task: _abort_if_failed(task, socket))
        try:
            async for text in socket:
                heartbeat.heard()
                frame = parse_server(text)
                if isinstance(frame, Ping):
                    self._write_soon(encode_pong())
                else:
                    on_frame(frame)
            raise ConnectionClosed(socket.protocol.close_rcvd, socket.protocol.close_sent)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def leave(self) -> None:
        """Say goodbye, with the last acknowledgement; never waits long for a dead peer."""
        self._stop_ack_timer()
        if self._socket is None:
            return
        with contextlib.suppress(ConnectionClosed, OSError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                self._ack_due = True
                await self._write_ack(self._socket)
                await self._socket.close()
        self._socket.transport.abort()

    def wake(self) -> None:
        """Let the writer look at the outbox again."""
        self._wake.set()

    def ack_soon(self, delay: float) -> None:
        """Acknowledge within *delay* seconds; 0 means now."""
        if delay <= 0:
            self._ack_now()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(delay, self._ack_now)

    def _ack_now(self) -> None:
        self._stop_ack_timer()
        self._ack_due = True
        self._wake.set()

    def _stop_ack_timer(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    async def _watch(
        self, socket: websockets.asyncio.client.ClientConnection, heartbeat: Heartbeat
    ) -> None:
        while True:
            await asyncio.sleep(heartbeat.deadline - time.monotonic())
            beat = heartbeat.check(time.monotonic())
            if beat is Beat.PING:
                self._write_soon(encode_ping())
            elif beat is Beat.DEAD:
                logger.info("no sign of life from the gateway")
                socket.transport.abort()
                return

    async def _write(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        """Write what is due; the only writer, so order is the outbox's order."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._wake.clear()
                while self._controls:
                    await socket.send(self._controls.popleft())
                await self._write_ack(socket)
                for text in self._outbox.due():
                    await socket.send(text)
                    await self._write_ack(socket)
                await self._wake.wait()

    async def _write_ack(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        position = self._inbox.take_ack() if self._ack_due else None
        self._ack_due = False
        if position is not None:
            await socket.send(encode_client_ack(position.offset, position.epoch))

    def _write_soon(self, text: str) -> None:
        self._controls.append(text)
        self._wake.set()


def _abort_if_failed(
    task: asyncio.Task[None], socket: websockets.asyncio.client.ClientConnection
) -> None:
    """Cut the connection if a task that it needs has failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed; connecting again", task.get_name(), exc_info=error)
        socket.transport.abort()
