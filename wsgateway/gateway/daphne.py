"""What daphne does not offer through ASGI.

Its end, close codes below 3000 with a reason, empty frames, waiting for the kernel before writing
more, and waiting for the application before reading more.

``tests/integration/test_daphne.py`` fails when a new version of daphne changes one of the details
that this leans on. With another server nothing here does anything.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from wsgateway.exceptions import MalformedMessage
from wsgateway.gateway.transport import MAX_REASON, LastBytes, Linger, Send, Transport
from wsgateway.supervision import start

__all__ = [
    "DaphneTransport",
    "HiddenTransport",
    "at_shutdown",
    "at_start",
    "find_descriptor",
    "quieten",
    "stop_listening",
    "transport",
]

logger = logging.getLogger("wsgateway")

CLOSED, CONNECTING, CLOSING, OPEN = range(4)
"""autobahn's states. CLOSING: one side has said so."""
DAPHNES_CODES = frozenset((1000, *range(3000, 5000)))
"""Close codes that daphne's own way takes."""
DAPHNES_LIMIT = 1024 * 1024
"""Bytes of a frame that daphne takes, unless it is told otherwise."""
HOOKED = (
    "_closeConnection",
    "_dataReceived",
    "_fail_connection",
    "onClose",
    "onMessage",
    "onMessageFrame",
    "onPing",
    "onPong",
)
"""Methods of autobahn's protocol that get a version of ours."""
_shutdown: set[asyncio.Task[None]] = set()
"""Work that daphne waits for, once it ends."""
READ_FRAMES = 64
"""Frames that may wait for the application before reading pauses, besides those of one read."""
READ_BYTES = 256 * 1024
"""The same in bytes; a single larger frame still comes."""


def _reactor() -> Any:
    """Return Twisted's reactor if it runs this loop; None otherwise, as with other servers."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    loop = getattr(reactor, "_asyncioEventloop", None)
    return reactor if loop is asyncio.get_running_loop() else None


def at_start(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run *work* once daphne's loop runs: it does not speak ASGI's lifespan.

    Where that loop never runs, as with other servers and commands, nothing happens.

    Args:
        work: Called once, in that loop.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    loop = getattr(reactor, "_asyncioEventloop", None)
    if loop is None:
        return

    def begin() -> None:
        start(work(), "wsgateway-start")

    reactor.callWhenRunning(loop.call_soon, begin)


def at_shutdown(work: Callable[[], Coroutine[Any, Any, None]], *, last: bool = False) -> None:
    """Let daphne wait for *work* before it ends: it does not speak ASGI's lifespan.

    Args:
        work: Called once, in the running loop.
        last: Whether it is called only after all other such work has ended.
    """
    reactor = _reactor()
    if reactor is None:
        return
    from twisted.internet.defer import Deferred

    async def work_last() -> None:
        await asyncio.sleep(0)  # Twisted begins all of it in one turn of the loop
        if _shutdown:
            await asyncio.wait(_shutdown)
        await work()

    def begin() -> Deferred[None]:
        task = start(work_last() if last else work(), "wsgateway-shutdown")
        if not last:
            _shutdown.add(task)
        return Deferred.fromFuture(task)

    reactor.addSystemEventTrigger("before", "shutdown", begin)


def stop_listening() -> None:
    """Have daphne accept no connections any more; the open ones stay.

    Daphne itself accepts them until the process has done everything else, so a proxy went on
    sending it requests.
    """
    reactor = _reactor()
    if reactor is None:
        return
    from twisted.internet.interfaces import IListeningPort

    for reader in reactor.getReaders():
        if IListeningPort.providedBy(reader):
            reader.stopListening()


def quieten() -> None:
    """Stop autobahn from formatting debug messages that nobody reads.

    It pretty-prints all options of each new connection before it finds out that debug messages
    are off: a fourth of what a connection costs (``benchmarks sockets``: 630-790 connections a
    second before, 790-1,100 after, in the same run).
    """
    module: Any = sys.modules.get("autobahn.websocket.protocol")
    for name in ("pformat", "hltype"):
        if hasattr(module, name):
            setattr(module, name, _nothing)


def _nothing(value: object) -> str:
    return ""


def _discard(data: bytes) -> None:
    return


def transport(server_send: Any, send: Send) -> Transport | None:
    """Return the socket behind *server_send*; None if this is not daphne.

    Args:
        server_send: The server's own send: with daphne, a partial whose first argument is the
            socket. If something unknown wraps it, only closing gets special care.
        send: What the consumer was given.
    """
    if _reactor() is None:
        return None
    arguments = getattr(server_send, "args", None)
    protocol = arguments[0] if arguments else None
    if hasattr(protocol, "sendCloseFrame"):
        return DaphneTransport(protocol, send)
    return HiddenTransport(send)


class HiddenTransport(Transport):
    """A websocket on daphne behind middleware that hides it: only what ASGI offers."""

    __slots__ = ()

    def take_frames(self, size: int) -> int:
        """See `Transport.take_frames`. Daphne's options cannot be seen; this is their default."""
        return min(size, DAPHNES_LIMIT)

    async def send(self, event: Any) -> bool:
        """See `Transport.send`.

        Raises:
            MalformedMessage: The frame is larger than daphne sends.
        """
        from autobahn.exception import PayloadExceededError

        try:
            return await super().send(event)
        except PayloadExceededError as exc:
            raise MalformedMessage(
                f"daphne sends no frame that large ({exc}); use wsgateway.asgi.application()"
            ) from exc

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """See `Transport.close`."""
        await super().close(self.code(code, fallback), fallback, reason)

    def code(self, code: int, fallback: int) -> int:
        """See `Transport.code`. Daphne raises for codes but 1000 and 3000-4999."""
        return code if code in DAPHNES_CODES else fallback


class DaphneTransport(Transport):
    """A websocket on daphne.

    Daphne's send returns before anything is written, and daphne queues what a client sends
    forever. So this stops writing while more than 64 KiB wait for the kernel, and stops
    reading while the application has not taken what came.

    Args:
        protocol: Daphne's websocket: autobahn's protocol on Twisted's transport.
        send: What the consumer was given.
    """

    __slots__ = (
        "_closing",
        "_descriptor",
        "_empty",
        "_frame_limit",
        "_gathers",
        "_paused",
        "_pong",
        "_protocol",
        "_queued",
        "_reading",
    )

    def __init__(self, protocol: Any, send: Send) -> None:
        super().__init__(send)
        self._protocol = protocol
        self._descriptor = find_descriptor(protocol.transport)
        self._gathers = getattr(protocol.transport, "_aggregator", None)  # with TLS only
        self._closing = False  # nothing that comes is of interest any more
        self._empty: asyncio.Event | None = None  # while somebody waits for the kernel
        self._frame_limit = protocol.maxMessagePayloadSize  # bytes that the client may send
        self._paused = False  # much waits for the kernel
        self._pong: bytes | None = None  # owed to the last ping that came in between
        self._queued = 0  # bytes that the application has not taken
        self._reading = True
        protocol.onMessage = partial(self._on_message, protocol.onMessage)
        protocol.onMessageFrame = partial(self._on_message_frame, protocol.onMessageFrame)
        protocol.onPing = self._on_ping
        protocol.onPong = self._on_pong
        protocol.onClose = partial(self._on_close, protocol.onClose)
        protocol._closeConnection = partial(self._on_end, protocol._closeConnection)
        protocol._fail_connection = self._on_failure
        protocol.echoCloseCodeReason = True  # a browser's close event has the code that it gets
        # The HTTP channel that the socket came from is registered still, and does nothing.
        protocol.unregisterProducer()
        protocol.registerProducer(self, True)

    def take_frames(self, size: int) -> int:
        """See `Transport.take_frames`: daphne's own limit is for all websockets of a project."""
        protocol = self._protocol
        for limit in ("maxMessagePayloadSize", "maxFramePayloadSize"):
            if 0 < getattr(protocol, limit) < size:  # 0: none
                setattr(protocol, limit, size)
        self._frame_limit = protocol.maxMessagePayloadSize
        return size

    # -- writing -------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether the connection is closed or closing; ASGI tells by an event that waits."""
        return self._protocol.state in (CLOSED, CLOSING)

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken yet; a lost connection keeps what waited."""
        return unwritten(self._descriptor, self._gathers)

    async def send(self, event: Any) -> bool:
        """See `Transport.send`. Daphne itself drops an empty frame."""
        if event["type"] != "websocket.send":
            await self._send(event)
            return True
        if self._paused:
            await self.drained()
        if self.gone:  # autobahn would raise an error of its own
            raise ConnectionResetError
        handed = not self.pending
        if event.get("text") or event.get("bytes"):
            self._protocol.maxMessagePayloadSize = 0  # autobahn limits what it sends, too
            try:
                await self._send(event)
            finally:
                self._protocol.maxMessagePayloadSize = self._frame_limit
        else:
            self._protocol.sendMessage(b"", "bytes" in event)
        return handed

    async def drained(self) -> None:
        """See `Transport.drained`."""
        held = self._descriptor
        while self.pending and held.producer is not None:
            if not held.producerPaused:  # so that it tells when it is empty
                held.producerPaused = True
                held.producer.pauseProducing()
            self._empty = self._empty or asyncio.Event()
            self._empty.clear()
            await self._empty.wait()

    def pauseProducing(self) -> None:
        """Note that more than 64 KiB wait for the kernel. Called by Twisted."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Note that the kernel has everything. Called by Twisted."""
        self._paused = False
        if self._empty is not None:
            self._empty.set()
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self._protocol.sendPong(pong)

    def stopProducing(self) -> None:
        """Do nothing: `_on_close` follows. Called by Twisted when the connection is lost."""

    async def close(self, code: int, fallback: int, reason: str) -> None:
        """See `Transport.close`.

        Daphne's own way raises an exception for every code but 1000 and 3000-4999, and drops the
        reason.
        """
        self.stop_parsing()
        if self._protocol.state == OPEN:
            self._send_close(code, reason.encode())
        elif self._protocol.state == CONNECTING:  # which refuses the handshake
            await self._send({"type": "websocket.close"})
        self._read()

    def _send_close(self, code: int, reason: bytes) -> None:
        """Send a close frame; cut a client that does not answer.

        Autobahn's own timer rounds the second that it gives the client down to anything from 0.
        """
        protocol = self._protocol
        protocol.sendCloseFrame(code=code, reasonUtf8=reason, isReply=False)
        protocol.closeHandshakeTimeoutCall.cancel()
        protocol.closeHandshakeTimeoutCall = Linger(
            lambda: self.pending, protocol.onCloseHandshakeTimeout
        )

    # -- reading -------------------------------------------------------------------------

    def stop_parsing(self) -> None:
        """See `Transport.stop_parsing`."""
        if not self._closing:
            self._closing = True
            self._protocol._dataReceived = LastBytes(self._protocol._dataReceived)

    async def taken(self) -> None:
        """Read on when all that came is taken; see `Transport.taken`."""
        if self._protocol.application_queue.empty():
            self._queued = 0
            self._read()

    def _read(self) -> None:
        if not self._reading:
            self._reading = True
            self._protocol.transport.resumeProducing()

    def _on_message(self, handle: Callable[..., None], payload: bytes, isBinary: bool) -> None:
        if self._closing:
            return
        handle(payload, isBinary)
        self._queued += len(payload)
        full = self._protocol.application_queue.qsize() >= READ_FRAMES
        if self._reading and (full or self._queued >= READ_BYTES):
            self._reading = False
            self._protocol.transport.pauseProducing()

    def _on_ping(self, payload: bytes) -> None:
        """Answer; but only the last ping while the client does not read (RFC 6455, 5.5.3)."""
        self.on_hidden_frame()
        if self._paused:
            self._pong = payload
        else:
            self._protocol.sendPong(payload)

    def _on_pong(self, payload: bytes) -> None:
        self.on_hidden_frame()

    def _on_message_frame(self, handle: Callable[..., None], payload: Any) -> None:
        handle(payload)
        if not self._protocol.current_frame.fin:  # with the last one comes the message
            self.on_hidden_frame()

    def _on_failure(self, code: int, reason: str) -> None:
        """Close with *code*, without parsing what follows. Source: RFC 6455, 7.1.7 and 7.1.1.

        Autobahn would reset the connection, and the client would not learn the code. What the
        client still sends is read until it closes its side: closing a connection with unread bytes
        resets it, too.
        """
        protocol = self._protocol
        if protocol.state != OPEN:
            return
        log_fields = {**self.log_fields, "code": code}
        logger.info("closed %s with %d: %s", self.where, code, reason, extra=log_fields)
        self._closing = protocol.failedByMe = True
        protocol._dataReceived = _discard
        protocol.data = b""
        self._send_close(code, reason.encode()[:MAX_REASON])
        protocol.unregisterProducer()  # which half-closing would wait for
        if self._empty is not None:
            self._empty.set()
        if self._gathers is None:  # TLS has no half-closed connections
            self._descriptor.loseWriteConnection()
        self._read()

    def _on_end(self, handle: Callable[..., None], abort: bool = False) -> None:
        """Close the connection; autobahn resets it even if the client answered our close frame."""
        handle(abort and not self._protocol.wasClean)

    def _on_close(self, handle: Callable[..., None], *args: Any) -> None:
        handle(*args)
        if self._empty is not None:
            self._empty.set()
        for name in HOOKED:  # they hold the protocol
            vars(self._protocol).pop(name, None)


def find_descriptor(transport: Any) -> Any:
    """Return what holds the bytes for the kernel; with TLS another transport is in front."""
    from twisted.internet.abstract import FileDescriptor

    while not isinstance(transport, FileDescriptor):
        transport = transport.transport
    return transport


def unwritten(descriptor: Any, gathers: Any) -> int:
    """Return the bytes that the kernel has not taken yet.

    Args:
        descriptor: Twisted's, which writes to the kernel.
        gathers: What TLS gathers before it encrypts; None without TLS.
    """
    waiting = len(descriptor.dataBuffer) - descriptor.offset + descriptor._tempDataLen
    if gathers is not None:
        waiting += sum(map(len, gathers._buffer))
    return int(waiting)
