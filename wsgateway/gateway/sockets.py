"""The two ways in which a socket speaks: raw frames, or ``wsgateway.v1``.

A socket writes what its session gives it, and hands the session what the client sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from wsgateway.broker.messages import CLIENT_ID_HEADER, REQUEST_HEADER, Receipt, Stored
from wsgateway.broker.recovery import Start
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, MessageTooBig, QueueFull, WsGatewayError
from wsgateway.gateway.transport import MAX_REASON, Send, Transport
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.heartbeat import Beat, Heartbeat
from wsgateway.protocol.subjects import encode_token
from wsgateway.protocol.v1 import Ack, ClientMessage, ErrorCode, ProtocolError

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["RateLimit", "RawSocket", "Socket", "SocketClosed", "V1Socket"]

logger = logging.getLogger("wsgateway")

MAX_ANSWERS = 1000
"""Answers that may wait for a client before nothing more is taken from it."""
COME_BACK_LATER = (CloseCode.SHUTTING_DOWN, CloseCode.CREDENTIALS_CHANGED)


class SocketClosed(Exception):
    """The socket is closed; what was to be written stays in the inbox."""


class RateLimit:
    """A token bucket that may be overdrawn by its size.

    Args:
        rate: Tokens per second; 0 means no limit.
        burst: Tokens at most.
        clock: Returns seconds.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_then", "_tokens")

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._clock = clock
        self._then = clock()

    def take(self) -> bool:
        """Take one token; return False if that overdraws."""
        if not self._rate:
            return True
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - 1
        self._then = now
        return self._tokens >= 0

    def give_back(self) -> None:
        """Undo one `take`."""
        self._tokens += 1

    @property
    def exhausted(self) -> bool:
        """Whether it is overdrawn by as much as it holds when full."""
        return self._tokens < -self._burst


class SizeLimit(NamedTuple):
    """How large a client's message may be.

    Attributes:
        limit: Bytes.
        setting: What says so.
    """

    limit: int
    setting: str

    def exceeded_by(self, size: int) -> MessageTooBig | None:
        """Return why a message of *size* bytes is too big; None if it is not."""
        return MessageTooBig(size, *self) if size > self.limit else None


class Socket(ABC):
    """One accepted websocket.

    Args:
        transport: The websocket as its server holds it, or only what to call to send.
    """

    __slots__ = (
        "_accepted",
        "_frame_size",
        "_limit",
        "_size",
        "closed",
        "deaf",
        "session",
        "transport",
    )

    acknowledges = False
    """Whether the client itself confirms offsets."""
    subprotocol: str | None = None

    def __init__(self, transport: Transport | Send) -> None:
        self.transport = transport if isinstance(transport, Transport) else Transport(transport)
        self._limit = RateLimit(settings.RATE_LIMIT, settings.RATE_BURST)
        size = settings.MAX_MESSAGE_SIZE
        self._frame_size = self.transport.take_frames(self._frame_of(size))
        """Bytes of a frame that a client may send."""
        self._size = SizeLimit(size, "WSGATEWAY_MAX_MESSAGE_SIZE")
        """Bytes of a message that a client may send, and be sure that it is taken."""
        if (size := self._message_in(self._frame_size)) < self._size.limit:
            self._size = SizeLimit(size, "what the web server takes")
        self._accepted = False
        self.closed = False
        self.deaf = False
        """Whether nothing more is taken from the client."""
        self.session: Session | None = None
        """Set by the session."""
        self.transport.on_hidden_frame = self._on_hidden_frame
        self.transport.on_end = self._on_end

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
            await self.transport.send({"type": "websocket.accept", "subprotocol": self.subprotocol})

    @abstractmethod
    async def begin(self, start: Start) -> None:
        """Tell the client where delivery begins, the first time or again."""

    @abstractmethod
    async def write(self, stored: Stored) -> None:
        """Write one message.

        Raises:
            MalformedMessage: It cannot be a frame.
            SocketClosed: Nothing can be written any more.
        """

    @abstractmethod
    async def receive(self, text: str | None, data: bytes | None) -> None:
        """Take a frame from the client; exactly one of both is given."""

    async def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the socket from our side; nothing is taken from it any more. Idempotent.

        A handshake under way is accepted first: only then does the client learn code and reason.
        """
        if self.closed:
            return
        if self.session is not None:
            self.session.settle()  # before the close frame waits for the kernel, too
        self.closed = self.deaf = True
        text = (reason or code.reason).encode()[:MAX_REASON].decode(errors="ignore")
        try:
            await self._accept()
            await self.transport.close(self._code(code), int(code), text)
        except OSError:
            pass  # the client is gone already
        except Exception:
            logger.exception("a socket could not be closed with code %s", int(code))

    @property
    def settled(self) -> int:
        """Offset up to which the kernel has everything; for sockets that do not acknowledge."""
        return 0

    @property
    def unsettled(self) -> bool:
        """Whether something that was written may wait for the kernel; for the same sockets."""
        return False

    @abstractmethod
    def skip(self, offset: int) -> None:
        """Note that the message at *offset* is not written."""

    def end(self) -> None:
        """Note that the socket is gone."""
        self.closed = self.deaf = True

    def codes(self, code: CloseCode) -> str:
        """Return the code that the client gets, and *code* if that is another, for the log."""
        told = self.transport.code(self._code(code), int(code))
        return str(told) if told == code else f"{told} ({int(code)})"

    def _code(self, code: CloseCode) -> int:
        return int(code)

    @staticmethod
    def _frame_of(size: int) -> int:
        """Return the bytes of a frame that holds a message of *size* bytes, at most."""
        return size

    @staticmethod
    def _message_in(size: int) -> int:
        """Return the bytes of a message that fits into a frame of *size* bytes for sure."""
        return size

    def _fit_broker(self) -> None:
        """Promise no more than the broker stores; called when it is connected."""
        largest = self._size.limit if self.session is None else self.session.largest_message
        if largest < self._size.limit:
            self._size = SizeLimit(largest, "what NATS' max_payload leaves beside the headers")

    def _on_hidden_frame(self) -> None:
        """Count a frame that only the server sees, such as a ping, which it answers."""
        self._limit.take()
        if self._limit.exhausted and self.session is not None and not self.deaf:
            self.transport.stop_parsing()  # uvloop reads many times before anything else runs
            self.session.close_soon(CloseCode.RATE_LIMIT)

    def _on_end(self) -> None:
        """Take nothing more, not even what the server has read already."""
        self.deaf = True
        if self.session is not None:
            self.session.publish_queue.give_up()

    async def _write(self, key: str, data: str | bytes) -> bool:
        """Write one frame; return whether the kernel has everything before it."""
        if self.closed or self.transport.gone:
            raise SocketClosed
        try:
            return await self.transport.send({"type": "websocket.send", key: data})
        except OSError as exc:  # the client is gone, and the server has noticed
            raise SocketClosed from exc


class RawSocket(Socket):
    """One frame is one payload, both ways."""

    __slots__ = ("_settled", "_written")

    def __init__(self, transport: Transport | Send) -> None:
        super().__init__(transport)
        self._written = 0  # offset of the last message written
        self._settled = 0  # offset up to which the kernel is known to have everything

    @property
    def settled(self) -> int:
        """See `Socket.settled`."""
        if self._settled < self._written and not self.transport.pending:
            self._settled = self._written
        return self._settled

    @property
    def unsettled(self) -> bool:
        """See `Socket.unsettled`."""
        return self.settled < self._written

    def skip(self, offset: int) -> None:
        """See `Socket.skip`."""
        self._written = offset

    def _code(self, code: CloseCode) -> int:
        return code.raw

    async def begin(self, start: Start) -> None:
        """Say nothing: there is no way to."""
        self._fit_broker()
        self._written = self._settled = start.offset

    async def write(self, stored: Stored) -> None:
        """Write one message; but no answers to requests, which a raw socket cannot have made."""
        if stored.reply_to is None:
            frame = stored.frame
            if await self._write("text" if frame.text else "bytes", frame.data):
                self._settled = self._written
        self._written = stored.offset

    async def receive(self, text: str | None, data: bytes | None) -> None:
        """Publish a frame. The broker's answer is awaited elsewhere, so frames are pipelined."""
        if self.deaf:
            return
        if not self._limit.take():
            await self.close(CloseCode.RATE_LIMIT)
            return
        frame = Frame.of(text if text is not None else data or b"")
        if size := self._size.exceeded_by(len(frame.payload)):
            code = CloseCode.MESSAGE_TOO_BIG
            logger.info("closed %s with %s: %s", self.transport.where, self.codes(code), size)
            await self.close(code)
        elif self.session is not None:
            receipt = await self.session.put(frame, uuid.uuid4().hex)
            receipt.add_done_callback(self._on_receipt)

    def _on_receipt(self, receipt: asyncio.Future[Receipt]) -> None:
        """Close if the frame was not stored: there is no other way to say so."""
        if receipt.cancelled() or (error := receipt.exception()) is None:
            return
        code = CloseCode.BROKER_UNAVAILABLE
        if isinstance(error, QueueFull):
            code = CloseCode.QUEUE_FULL
        elif isinstance(error, MessageTooBig):
            code = CloseCode.MESSAGE_TOO_BIG
        elif not isinstance(error, WsGatewayError):
            logger.error("a frame of %s failed", self.transport.where, exc_info=error)
        logger.warning("closed %s with %s: %s", self.transport.where, self.codes(code), error)
        assert self.session is not None
        self.session.close_soon(code)


class V1Socket(Socket):
    """The subprotocol ``wsgateway.v1``; see ``docs/protocol.md``."""

    __slots__ = ("_answering", "_answers", "_busy", "_heartbeat", "_timer", "_writing")

    acknowledges = True
    subprotocol = protocol.SUBPROTOCOL

    def __init__(self, transport: Transport | Send) -> None:
        super().__init__(transport)
        self._answers: list[str] = []  # to be written beside the messages
        self._answering: asyncio.Task[None] | None = None  # lives while there are answers
        self._writing = 0  # answers that this task has taken and not written
        self._busy = False  # a frame is being taken; nothing is heard until that is done
        self._heartbeat: Heartbeat | None = None
        self._timer: asyncio.TimerHandle | None = None

    _frame_of = staticmethod(protocol.largest_frame)
    _message_in = staticmethod(protocol.largest_message)

    # -- to the client -------------------------------------------------------------------

    async def begin(self, start: Start) -> None:
        """Send the welcome and start the heartbeat."""
        session = self.session
        assert session is not None
        identity = session.identity
        self._fit_broker()
        await self._write(
            "text",
            protocol.encode_welcome(
                connection=session.connection,
                service=identity.service,
                user=identity.user,
                device=identity.device,
                epoch=session.client_epoch,
                offset=start.offset,
                recovered=start.reason is None,
                reason=start.reason,
                ping=settings.PING_INTERVAL,
                window=settings.WINDOW,
                max_message_size=self._size.limit,
            ),
        )
        if self._heartbeat is None:
            loop = asyncio.get_running_loop()
            self._heartbeat = Heartbeat(settings.PING_INTERVAL, settings.PING_TIMEOUT, loop.time())
            self._timer = loop.call_at(self._heartbeat.deadline, self._beat)

    async def write(self, stored: Stored) -> None:
        """Write one message."""
        payload, text = stored.frame
        await self._write(
            "text",
            protocol.encode_message(
                stored.offset, stored.time, payload, text, stored.reply_to, stored.error
            ),
        )

    async def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the socket; say first when to come back, if that must not be at once."""
        if code in COME_BACK_LATER and self._heartbeat is not None and self.session:
            frame = protocol.encode_closing(self.session.reconnect_after(code))
            with contextlib.suppress(SocketClosed, TimeoutError):
                async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not read
                    await self._write("text", frame)
        await super().close(code, reason)

    def skip(self, offset: int) -> None:
        """Do nothing: the client acknowledges what comes after it."""

    def _beat(self) -> None:
        """Ping the client, or give it up."""
        if self.closed or self._heartbeat is None:
            return
        loop = asyncio.get_running_loop()
        if self._busy:
            self._heartbeat.heard()
        beat = self._heartbeat.check(loop.time())
        if beat is Beat.DEAD:
            assert self.session is not None
            self.session.close_soon(CloseCode.NO_PONG)
            return
        if beat is Beat.PING:
            self._answer(protocol.encode_ping())
        self._timer = loop.call_at(self._heartbeat.deadline, self._beat)

    def end(self) -> None:
        """Note that the socket is gone."""
        super().end()
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def _answer(self, text: str) -> None:
        """Write *text* soon, in order with other answers."""
        if self.closed:
            return
        self._answers.append(text)
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._write_answers(), name="wsgateway-answers")

    async def _write_answers(self) -> None:
        try:
            while self._answers:
                answers, self._answers = self._answers, []
                self._writing = len(answers)
                for text in answers:
                    await self._write("text", text)
                    self._writing -= 1
        except SocketClosed:
            self._answers.clear()
            self._writing = 0

    # -- from the client -----------------------------------------------------------------

    async def receive(self, text: str | None, data: bytes | None) -> None:
        """Do what the client's frame says, or answer why not."""
        if self.deaf or self._heartbeat is None or self.session is None:
            return
        self._heartbeat.heard()
        within_limit = self._limit.take()
        if self._limit.exhausted:
            await self.close(CloseCode.RATE_LIMIT)
            return
        self._busy = True
        try:
            if self._unwritten >= MAX_ANSWERS:
                await self._answers_written()
            frame = text if text is not None else data or b""
            if not self.deaf:
                await self._take(self.session, frame, within_limit)
        finally:
            self._busy = False

    @property
    def _unwritten(self) -> int:
        return len(self._answers) + self._writing

    async def _answers_written(self) -> None:
        """Take nothing from a client that does not read its answers; in the end, close."""
        while self._unwritten >= MAX_ANSWERS and not self.deaf and self._answering is not None:
            before = self._unwritten
            await asyncio.wait({self._answering}, timeout=settings.PING_TIMEOUT)
            if self._unwritten >= before:
                await self.close(CloseCode.TOO_SLOW)

    async def _take(self, session: Session, frame: str | bytes, within_limit: bool) -> None:
        if len(frame) > self._frame_size:
            await self.close(CloseCode.MESSAGE_TOO_BIG)
            return
        try:
            message = protocol.parse_client(frame)
        except ProtocolError as exc:
            if exc.fatal:
                await self.close(CloseCode.BAD_REQUEST, exc.message)
            elif within_limit:
                self._answer(protocol.encode_error(exc.id, exc.code, exc.message))
            return
        if isinstance(message, Ack):
            if session.acknowledge(
                message.offset, message.epoch
            ):  # what the client must send does not count
                self._limit.give_back()
        elif isinstance(message, ClientMessage):
            await self._publish(session, message, within_limit)
        elif isinstance(message, protocol.Ping) and within_limit:
            self._answer(protocol.encode_pong())

    async def _publish(self, session: Session, message: ClientMessage, within_limit: bool) -> None:
        if size := self._size.exceeded_by(len(message.frame.payload)):
            self._answer(protocol.encode_error(message.id, ErrorCode.TOO_BIG, str(size)))
            return
        if not within_limit:
            text = f"more than {settings.RATE_LIMIT:g} frames per second; slow down"
            self._answer(protocol.encode_error(message.id, ErrorCode.RATE_LIMIT, text))
            return
        headers = {CLIENT_ID_HEADER: message.id}
        if message.request:
            headers[REQUEST_HEADER] = message.id
        # The stream compares ids of all users, so theirs are told apart here.
        inbox = session.inbox
        scope = f"{encode_token(inbox.service)}.{encode_token(inbox.user)}"
        receipt = await session.put(message.frame, f"{scope}:{message.id}", headers)
        receipt.add_done_callback(lambda done: self._on_receipt(message.id, done))

    def _on_receipt(self, id: str, receipt: asyncio.Future[Receipt]) -> None:
        if receipt.cancelled():
            return
        error = receipt.exception()
        if error is None:
            self._answer(protocol.encode_ack(id))
            return
        code = ErrorCode.INTERNAL
        if isinstance(error, QueueFull):
            code = ErrorCode.QUEUE_FULL
        elif isinstance(error, MessageTooBig):
            code = ErrorCode.TOO_BIG
        elif isinstance(error, BrokerError):
            code = ErrorCode.UNAVAILABLE
        else:
            logger.error("a message of %s failed", self.transport.where, exc_info=error)
        logger.info("refused a message of %s: %s", self.transport.where, error)
        self._answer(protocol.encode_error(id, code, code.meaning))
