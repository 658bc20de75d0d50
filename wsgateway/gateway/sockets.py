"""One accepted websocket: what is written to it, in order, and its end.

What a frame means is decided by the socket's `Endpoint`; the session carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from wsgateway.conf import settings
from wsgateway.counters import Traffic, size_of
from wsgateway.gateway.transport import MAX_REASON, Transport
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint
from wsgateway.protocol.limits import Limits
from wsgateway.supervision import start

__all__ = ["Socket", "SocketClosed", "limits"]

logger = logging.getLogger("wsgateway")


class SocketClosed(Exception):
    """The socket is closed; what was to be written stays in the inbox."""


def limits() -> Limits:
    """Return what the settings hold a client to."""
    return Limits(
        message=settings.MAX_MESSAGE_SIZE,
        rate=settings.RATE_LIMIT,
        burst=settings.RATE_BURST,
        window=settings.WINDOW,
        ping_interval=settings.PING_INTERVAL,
        ping_timeout=settings.PING_TIMEOUT,
        watches=settings.MAX_WATCHES,
        subscriptions=settings.MAX_SUBSCRIPTIONS,
    )


class Socket:
    """One websocket. `accept` it, then `write`; `close` it, or note its `end`.

    Args:
        transport: The websocket as its server holds it.
        kind: The protocol that its client speaks.
        subprotocol: What the handshake selects; None: the protocol's own name, if it has one.
    """

    __slots__ = (
        "_accepted",
        "_answering",
        "_answers",
        "_subprotocol",
        "_writing",
        "close_code",
        "closed",
        "endpoint",
        "on_failure",
        "traffic",
        "transport",
    )

    def __init__(
        self, transport: Transport, kind: type[Endpoint], subprotocol: str | None = None
    ) -> None:
        self.transport = transport
        self.endpoint = kind(limits(), asyncio.get_running_loop().time())
        self.endpoint.fit_server(transport.take_frames(self.endpoint.largest_frame))
        self.closed = False
        self.close_code: CloseCode | None = None
        """With which `close` has closed it."""
        self.traffic = Traffic()
        self.on_failure: Callable[[BaseException | None], object] | None = None
        """Called with the error if answers cannot be written, though the client is there."""
        self._subprotocol = subprotocol or kind.subprotocol
        self._accepted = False
        self._answers: list[str] = []  # to be written beside the messages
        self._answering: asyncio.Task[None] | None = None  # lives while there are answers
        self._writing = 0  # answers that this task has taken and not written

    async def accept(self) -> None:
        """End the handshake. Idempotent.

        Raises:
            SocketClosed: It was closed before (its login may have been revoked), or the client
                is gone.
        """
        if self.closed:
            raise SocketClosed
        try:
            await self._accept()
        except OSError as exc:  # the client is gone, and the server has noticed
            raise SocketClosed from exc

    async def _accept(self) -> None:
        if not self._accepted:
            self._accepted = True
            await self.transport.send(
                {"type": "websocket.accept", "subprotocol": self._subprotocol}
            )

    async def write(self, frame: str | bytes) -> bool:
        """Write a frame; wait while the client does not read.

        Returns:
            Whether the kernel has everything before it.

        Raises:
            MalformedMessage: The server cannot send it.
            SocketClosed: Nothing can be written any more.
        """
        if self.closed or self.transport.gone:
            raise SocketClosed
        key = "text" if isinstance(frame, str) else "bytes"
        try:
            drained = await self.transport.send({"type": "websocket.send", key: frame})
        except OSError as exc:  # the client is gone, and the server has noticed
            raise SocketClosed from exc
        traffic = self.traffic
        traffic.frames_out += 1
        traffic.bytes_out += len(frame) if frame.isascii() else size_of(frame)
        return drained

    # -- answers -------------------------------------------------------------------------

    @property
    def unwritten(self) -> int:
        """How many answers wait for the client."""
        return len(self._answers) + self._writing

    def answer(self, text: str) -> None:
        """Write *text* soon, in order with other answers."""
        if self.closed:
            return
        self._answers.append(text)
        if self._answering is None or self._answering.done():
            self._answering = start(
                self._write_answers(), "wsgateway-answers", on_end=self.on_failure
            )

    async def answers_written(self, limit: int) -> bool:
        """Wait until fewer than *limit* answers are unwritten, or the socket is closed.

        Returns:
            False if the client read none for as long as it may take to answer a ping.
        """
        while self.unwritten >= limit and not self.closed and self._answering is not None:
            before = self.unwritten
            await asyncio.wait({self._answering}, timeout=settings.PING_TIMEOUT)
            if self.unwritten >= before:
                return False
        return True

    async def _write_answers(self) -> None:
        try:
            while self._answers:
                answers, self._answers = self._answers, []
                self._writing = len(answers)
                for text in answers:
                    await self.write(text)
                    self.traffic.others_out += 1
                    self._writing -= 1
        except SocketClosed:
            self._answers.clear()
            self._writing = 0

    # -- its end -------------------------------------------------------------------------

    async def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the socket from our side; nothing is taken from it any more. Idempotent.

        A handshake under way is accepted first: only then does the client learn code and reason.
        """
        if self.closed:
            return
        self.closed = True
        self.close_code = code
        self.endpoint.stop()
        text = (reason or code.reason).encode()[:MAX_REASON].decode(errors="ignore")
        try:
            await self._accept()
            await self.transport.close(self.endpoint.code(code), int(code), text)
        except OSError:
            pass  # the client is gone already
        except Exception:
            log_fields = {**self.transport.log_fields, "code": int(code)}
            logger.exception(
                "%s could not be closed with %d", self.transport.where, code, extra=log_fields
            )

    def end(self) -> None:
        """Note that the socket is gone."""
        self.closed = True
        self.endpoint.stop()
        if self._answering is not None:
            self._answering.cancel()

    def codes(self, code: CloseCode) -> str:
        """Return the code that the client gets, and *code* if that is another, for the log."""
        told = self.transport.code(self.endpoint.code(code), int(code))
        return str(told) if told == code else f"{told} ({int(code)})"
