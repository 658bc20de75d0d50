"""What uvicorn does not offer through ASGI: when the kernel has what was sent, and an end in time.

``tests/integration/test_servers.py`` fails when a new version of uvicorn changes a detail that
this leans on. It works with all of uvicorn's websocket implementations and with uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Any

from wsgateway.conf import settings
from wsgateway.gateway.transport import WRITE_LIMIT, LastBytes, Linger, Send, Transport
from wsgateway.protocol.v1 import largest_frame, largest_message

__all__ = ["UvicornTransport", "run_after", "transport", "warn_of_limit"]

logger = logging.getLogger("wsgateway")

HOOKED = {
    "connection_lost": "_on_lost",
    "eof_received": "_on_eof",
    "fail_connection": "_on_failure",
    "handle_cont": "_on_part",
    "handle_message": "_on_event",
    "handle_ping": "_on_ping",
    "handle_pong": "_on_hidden",
    "resume_writing": "_on_empty",
}
"""Methods of the protocol, and ours that run after them. Each implementation has only some."""
CONTROL = frozenset((9, 10))
"""The opcodes of pings and pongs."""
INVALID_TEXT = "Invalid UTF-8 sequence received from client."
"""What the websockets-sansio implementation logs as an ERROR with a traceback."""
REPLACED = ("data_received", "drain", "handle_close", "read_frame", "shutdown")
"""Methods of the protocol that get a version of ours, if there are any."""


def transport(server_send: Any, send: Send) -> UvicornTransport | None:
    """Return the socket behind *server_send*; None if that is not uvicorn's.

    Args:
        server_send: The server's own send: with uvicorn, a method of the asyncio protocol.
        send: What the consumer was given.
    """
    protocol = getattr(server_send, "__self__", None)
    held = getattr(protocol, "transport", None)
    if isinstance(protocol, asyncio.Protocol) and hasattr(held, "set_write_buffer_limits"):
        return UvicornTransport(protocol, send)
    return None


def warn_of_limit(receive: Any) -> None:
    """Warn if the server's limit for a frame is below what our setting needs.

    Args:
        receive: What the lifespan was given; with uvicorn, a method of what has its options.
    """
    config = getattr(getattr(receive, "__self__", None), "config", None)
    limit = getattr(config, "ws_max_size", None)
    needed = largest_frame(settings.MAX_MESSAGE_SIZE)
    if isinstance(limit, int) and limit < needed:
        logger.warning(
            "uvicorn takes websocket frames of %s bytes, so wsgateway.v1 clients may send messages "
            "of %s bytes only, not of WSGATEWAY_MAX_MESSAGE_SIZE (%s). Start uvicorn with "
            "--ws-max-size %s, or lower the setting",
            limit,
            largest_message(limit),
            settings.MAX_MESSAGE_SIZE,
            needed,
        )


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Let no client fill the log: say in one line at INFO that its text was not UTF-8."""
    if record.msg != INVALID_TEXT:
        return True
    logger.info("closed a socket because its text was not UTF-8", extra={"code": 1007})
    return False


def run_after(protocol: Any, name: str, after: Any) -> None:
    """Let *after* run whenever the method *name* of *protocol*, if there is one, has run."""
    method = getattr(protocol, name, None)
    if method is None:
        return

    def hooked(*args: Any) -> None:
        method(*args)
        after(*args)

    setattr(protocol, name, hooked)


class HalfClosing(asyncio.Protocol):
    """The transport that uvicorn closes: what was written arrives. Source: RFC 6455, 7.1.1.

    Uvicorn closes the connection right after a close frame. If it has not read all that the client
    has sent, that resets the connection, and the client may not learn the code. So this ends our
    side only, and reads until the client ends its side. For uvicorn, the connection is lost.

    Args:
        transport: The connection; without TLS, which has no half-closed connections.
        protocol: Uvicorn's protocol.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Any) -> None:
        self._transport = transport
        self._linger: Linger | None = None
        self.protocol = protocol  # None once the connection is closed or lost
        # What uvicorn calls for each message, so that it costs no `__getattr__`
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Say whether it is closed, or has begun to be."""
        return self.protocol is None or self._transport.is_closing()

    def close(self) -> None:
        """Send what is written, then end our side; cut a client that does not end its own."""
        if self.is_closing():
            return
        loop = asyncio.get_running_loop()
        loop.call_soon(self.protocol.connection_lost, None)
        self.protocol = None
        self._transport.set_protocol(self)
        with contextlib.suppress(OSError, RuntimeError):  # it is lost, or our side has ended
            self._transport.write_eof()
        self._transport.resume_reading()
        self._linger = Linger(self._transport.get_write_buffer_size, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client has ended its side, too. Called by asyncio."""
        if self._linger is not None:
            self._linger.cancel()


class UvicornTransport(Transport):
    """A websocket on uvicorn.

    Uvicorn's send waits while the transport is paused. The limits that are set here pause it as
    long as the kernel has not taken everything, so when a send returns, the kernel has everything
    that was sent before.

    Args:
        protocol: Uvicorn's asyncio protocol.
        send: What the consumer was given.
    """

    __slots__ = ("_cut", "_empty", "_lost", "_pinged", "_protocol", "_transport")

    def __init__(self, protocol: Any, send: Send) -> None:
        super().__init__(send)
        self._cut: asyncio.TimerHandle | None = None  # the client's time to answer a close frame
        self._protocol = protocol
        self._transport: asyncio.Transport = protocol.transport
        self._lost = self._transport.is_closing()
        self._empty: asyncio.Event | None = None  # while somebody waits for the kernel
        self._pinged = False  # reading is paused, because pongs pile up
        logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)  # idempotent
        if self._lost:  # within the handshake; uvloop's transport bears no call any more
            return
        for name, after in HOOKED.items():
            run_after(protocol, name, getattr(self, after))
        protocol.shutdown = partial(self._on_shutdown, protocol.shutdown)
        if hasattr(protocol, "handle_close"):
            protocol.handle_close = partial(self._on_close_event, protocol.handle_close)
        if hasattr(protocol, "read_frame"):
            protocol.read_frame = partial(self._read_frame, protocol.read_frame)
        if hasattr(protocol, "drain"):
            protocol.drain = partial(self._drain, protocol.drain)
        # Pauses from the first byte on; but with TLS, a transport with nothing to write is paused
        # if the limit is 0, and never resumed.
        encrypted = self._transport.get_extra_info("sslcontext") is not None
        if not encrypted:
            protocol.transport = HalfClosing(self._transport, protocol)
        self._transport.set_write_buffer_limits(high=1 if encrypted else 0, low=0)

    @property
    def gone(self) -> bool:
        """Whether nothing can be written any more.

        Uvicorn closes by itself, too: when it stops, after a protocol error, and when a client
        does not answer its pings. What is sent after that raises RuntimeError.
        """
        if self._lost or self._transport.is_closing():
            return True
        closed = getattr(self._protocol, "closed_event", None)  # the websockets implementation
        return bool(self._protocol.close_sent if closed is None else closed.is_set())

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken yet. A lost connection forgets what waited."""
        return self._transport.get_write_buffer_size() or self._transport.is_closing()

    def take_frames(self, size: int) -> int:
        """See `Transport.take_frames`; `warn_of_limit` tells the operator."""
        limit: int = self._protocol.config.ws_max_size
        return min(size, limit)

    async def send(self, event: Any) -> bool:
        """See `Transport.send`."""
        if self._transport.get_write_buffer_size():
            await self.drained()
        try:
            await self._send(event)
        except RuntimeError as exc:
            if not self.gone:
                raise
            raise ConnectionResetError from exc
        return True

    async def _drain(self, drain: Any) -> None:
        """Wait for the kernel; *drain* of the websockets implementation lets only one task wait.

        Its pings, and its answer to a close frame, wait beside what we send.
        """
        await self.drained()
        await drain()

    async def drained(self) -> None:
        """See `Transport.drained`."""
        while not self._lost and self._transport.get_write_buffer_size():
            self._empty = self._empty or asyncio.Event()
            self._empty.clear()
            await self._empty.wait()

    async def taken(self) -> None:
        """Take no more from a client that pings and does not read; see `Transport.taken`."""
        if self._pinged:
            await self.drained()

    def _on_empty(self) -> None:
        if self._pinged:
            self._pinged = False
            if not getattr(self._protocol, "read_paused", False):
                self._transport.resume_reading()
        if self._empty is not None:
            self._empty.set()

    def _on_eof(self) -> None:
        """Cut a client that has left, and does not take what uvicorn waits to write."""
        self._cut_later()

    def _on_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._cut is not None:
            self._cut.cancel()
        for name in (*HOOKED, *REPLACED):  # they hold the protocol
            vars(self._protocol).pop(name, None)
        if isinstance(self._protocol.transport, HalfClosing):
            self._protocol.transport.protocol = None
        if self._empty is not None:
            self._empty.set()

    # -- frames that only uvicorn sees ---------------------------------------------------

    def _on_ping(self, *_event: Any) -> None:
        self.on_hidden_frame()
        if self._transport.get_write_buffer_size() > WRITE_LIMIT:
            self._pinged = True
            self._transport.pause_reading()

    def _on_hidden(self, _event: Any) -> None:
        self.on_hidden_frame()

    def _on_part(self, frame: Any) -> None:
        """Count a part of a message. With the last one comes the message."""
        if not frame.fin:
            self.on_hidden_frame()

    def _on_event(self, event: Any) -> None:
        """Count the same with wsproto, which also tells of parts of a frame."""
        if event.frame_finished and not event.message_finished:
            self.on_hidden_frame()

    async def _read_frame(self, read: Any, *args: Any) -> Any:
        """Count the same, and pings, with the websockets implementation."""
        frame = await read(*args)
        if frame.opcode in CONTROL or not frame.fin:
            self.on_hidden_frame()
        return frame

    # -- closing -------------------------------------------------------------------------

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """See `Transport.close`.

        A client that does not read gets no close frame: it is cut. One that does not answer the
        close frame is cut, too.
        """
        self.stop_parsing()
        self._cut_later()
        await self.drained()
        self._cut_later()
        if not self.gone:
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    def _on_shutdown(self, shutdown: Any) -> None:
        """End in time: uvicorn, which stops, waits for ever for a client that does not read.

        It waits for the application too, and that may wait for the broker. A handshake under way
        gets a close code from us; *shutdown* would answer it with status 500.
        """
        if self.cancel_handshake is None:
            shutdown()
        else:
            self.cancel_handshake()
        loop = asyncio.get_running_loop()
        loop.call_later(settings.CLOSE_TIMEOUT / 4, self._end)

    def _end(self) -> None:
        self._transport.abort()
        self.on_end()

    def _on_failure(self, *_args: Any) -> None:
        """Read what still comes; the websockets implementation stops reading for ten seconds."""
        self._protocol.transport.close()

    def _on_close_event(self, handle: Any, event: Any) -> None:
        """Say with which code we close; with wsproto, uvicorn only hangs up on protocol errors."""
        connection = self._protocol.conn
        if connection.state.name == "OPEN":  # so the event is not the client's close frame
            self._protocol.transport.write(connection.send(event))
        handle(event)

    def stop_parsing(self) -> None:
        """See `Transport.stop_parsing`."""
        protocol = self._protocol
        if not protocol.transport.is_closing() and not isinstance(
            protocol.data_received, LastBytes
        ):
            protocol.data_received = LastBytes(protocol.data_received)
            self._transport.set_protocol(protocol)  # uvloop looks its methods up only here

    def _cut_later(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
        if not self._lost:
            loop = asyncio.get_running_loop()
            self._cut = loop.call_later(settings.CLOSE_TIMEOUT, self._transport.abort)
