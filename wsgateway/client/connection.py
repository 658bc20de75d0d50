"""The client: keeps one connection, comes back when it is lost, resumes, sends again."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from enum import Enum
from itertools import count
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import (
    Answered,
    Confirmed,
    Delivered,
    Event,
    Failed,
    Unclaimed,
    Welcomed,
)
from wsgateway.client.inbox import Position
from wsgateway.client.session import ClientSession
from wsgateway.client.transport import Final, Lost, Transport, address, translated
from wsgateway.protocol import strict_json
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import ServerMessage, Welcome
from wsgateway.supervision import run_once

__all__ = ["Client", "ClientState", "Message", "connect"]

logger = logging.getLogger("wsgateway.client")

REQUEST_TIMEOUT = 30.0
Token = str | Callable[[], str | Awaitable[str]]
T = TypeVar("T")


class ClientState(Enum):
    """What the client is doing."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class Message:
    """One message of the inbox.

    Attributes:
        offset: Its position; rises, with holes.
        time: When it was stored, RFC 3339; None if not known.
        data: str for a text frame, bytes for a binary one.
        reply_to: Id of the client's message that it answers; None if it answers none.
    """

    __slots__ = ("_client", "_life", "data", "offset", "reply_to", "time")

    def __init__(self, client: Client, life: int, received: ServerMessage) -> None:
        self._client = client
        self._life = life
        self.offset = received.offset
        self.time = received.time
        self.data = received.frame.data
        self.reply_to = received.reply_to

    def __repr__(self) -> str:
        return f"<Message offset={self.offset} {type(self.data).__name__}[{len(self.data)}]>"

    def json(self) -> Any:
        """Return the payload parsed as JSON.

        Raises:
            ValueError: It is not JSON, or not JSON that every parser reads alike, see RFC 7493.
        """
        return strict_json.loads(self.data)

    def ack(self) -> None:
        """Acknowledge this message and all before it; only needed with ``auto_ack=False``."""
        if self.reply_to is None:  # a reply has been acknowledged, and overtakes what waits
            self._client._processed(self._life, self.offset)


class _Pending(Generic[T]):
    """Something that has not come yet, and how many callers wait for it."""

    __slots__ = ("callers", "result")

    def __init__(self) -> None:
        self.callers = 0
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def give_up(self) -> None:
        """Nobody waits any more."""
        if not self.result.cancel() and not self.result.cancelled():
            self.result.exception()  # seen, so that nobody warns of it


class Client:
    """A durable connection; made by `connect`.

    Args:
        url: ``ws://`` or ``wss://``.
        device: Which of the user's devices this is; each has its own cursor.
        token: Sent in the query; a function is asked again after a refusal.
        token_parameter: Name of the token's query parameter.
        position: Where to go on; None: where the device's cursor says.
        auto_ack: Acknowledge a message when the next one is asked for.
        ack_every: Acknowledge after so many messages at the latest.
        ack_interval: And after so many seconds.
        queue_limit: Messages that may wait for confirmation; more are refused.
        send_window: Messages on the wire without confirmation.
        connect_timeout: Seconds until the welcome.
        ping_timeout: Seconds of silence after a due ping that mean that the gateway is gone.
        backoff: Delays between attempts.
        on_state: Called with each new state. An exception in this or another callback is logged,
            and changes nothing. Callbacks are plain functions: they must not wait.
        on_welcome: Called with each welcome; look at its ``recovered``.
        on_reply: Called with each reply that nobody here waits for: to another client of the
            user, or after a time-out.
        on_error: Called with each refusal by the service, or the gateway, that nobody waits for.
        options: For ``websockets.asyncio.client.connect``: ssl, additional_headers, proxy, ...
    """

    def __init__(
        self,
        url: str,
        *,
        device: str | None = None,
        token: Token | None = None,
        token_parameter: str = "token",  # noqa: S107 - a name, not a secret
        position: Position | None = None,
        auto_ack: bool = True,
        ack_every: int = 16,
        ack_interval: float = 0.2,
        queue_limit: int = 1000,
        send_window: int = 64,
        connect_timeout: float = 10.0,
        ping_timeout: float = 10.0,
        backoff: Backoff | None = None,
        on_state: Callable[[ClientState], object] | None = None,
        on_welcome: Callable[[Welcome], object] | None = None,
        on_reply: Callable[[Message], object] | None = None,
        on_error: Callable[[GatewayError], object] | None = None,
        **options: Any,
    ) -> None:
        self._url = url
        self._device = device
        self._token_source = token
        self._token_parameter = token_parameter
        self._auto_ack = auto_ack
        self._connect_timeout = connect_timeout
        self._on_state = on_state
        self._on_welcome = on_welcome
        self._on_reply = on_reply
        self._on_error = on_error
        self._options = {"max_size": None, "ping_interval": None, **options}
        self._session = ClientSession(
            position=position,
            ack_every=ack_every,
            ack_interval=ack_interval,
            queue_limit=queue_limit,
            send_window=send_window,
            ping_timeout=ping_timeout,
            backoff=backoff,
            renewable=callable(token),
        )
        self._pending: dict[str, _Pending[None]] = {}  # by id, of what is in the outbox
        self._requests: dict[str, _Pending[Message]] = {}  # by id, whose reply has not come
        self._queue: deque[Message] = deque()  # arrived, not handed out; the window bounds it
        self._current: Message | None = None  # handed out, not processed yet
        self._arrived = asyncio.Event()  # the queue has something, or the client is closed
        self._transport: Transport | None = None  # while there is a connection
        self._opened: asyncio.Future[None] | None = None  # set at the first welcome
        self._runner: asyncio.Task[None] | None = None
        self._state = ClientState.IDLE
        self._token: str | None = None
        self._error: GatewayError | None = None  # why it is closed, unless by the caller
        self._ids = count(1)
        self._prefix = secrets.token_urlsafe(9)

    # -- life cycle ----------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """What the client is doing."""
        return self._state

    @property
    def position(self) -> Position | None:
        """Up to where messages were processed; save it, and pass it to `connect` later."""
        return self._session.position

    @property
    def welcome(self) -> Welcome | None:
        """The gateway's last welcome; None before."""
        return self._session.welcome

    @property
    def pending(self) -> int:
        """How many messages were sent and are not confirmed."""
        return self._session.pending

    async def open(self) -> None:
        """Connect, and wait for the welcome however long that takes. Idempotent.

        Raises:
            GatewayError: The gateway refuses this client for good, or it is closed.
        """
        if self._state is ClientState.CLOSED:
            raise self._closed()
        if self._runner is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._opened.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._runner = run_once(self._run(), "wsgateway-client", self._on_end)
        assert self._opened is not None
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Acknowledge what was processed and disconnect. What is not confirmed is refused."""
        if self._runner is None:
            self._finish()
            return
        self._runner.cancel()
        await asyncio.wait({self._runner})

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _set_state(self, state: ClientState) -> None:
        if state is self._state:
            return
        logger.debug("client %s: %s", self._state.value, state.value)
        self._state = state
        _call(self._on_state, state)

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except Final as exc:
            text = str(exc) if exc.status else f"the gateway closed the connection: {exc}"
            self._error = GatewayError("closed", text, False, close_code=exc.code)

    def _on_end(self, failure: BaseException | None) -> None:
        """Fail everybody who waits, whatever ended the client's task."""
        if failure is not None:
            self._error = GatewayError("closed", f"the client failed: {failure!r}", False)
            self._error.__cause__ = failure
        self._finish()

    async def _keep_connected(self) -> None:
        while True:
            self._set_state(ClientState.CONNECTING)
            try:
                await self._connection()
            except Final:
                raise
            except Lost as exc:
                lost = exc
            delay = self._session.lost(lost.code, time.monotonic())
            if delay is None:
                raise Final(lost.code, lost.reason, lost.status)
            logger.info("connection lost (%s), reconnecting in %.1f s", lost, delay)
            self._set_state(ClientState.WAITING)
            await asyncio.sleep(delay)

    def _closed(self) -> GatewayError:
        return self._error or GatewayError("closed", "the client is already closed", True)

    def _finish(self) -> None:
        self._set_state(ClientState.CLOSED)
        failure = self._closed()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(failure)
        self._apply(self._session.end(str(failure), failure.close_code))
        self._arrived.set()

    # -- one connection ------------------------------------------------------------------

    async def _connection(self) -> NoReturn:
        """Make a connection and serve it to its end.

        Raises:
            Lost: It has ended, or did not come about.
        """
        if self._session.stale:
            await self._ask_token()
        transport = Transport(self._session, self._on_text)
        url = self._address()
        try:
            with translated():
                async with asyncio.timeout(self._connect_timeout):
                    await transport.dial(url, self._options)
                self._transport = transport
                self._set_state(ClientState.OPEN)
                if self._opened is not None and not self._opened.done():
                    self._opened.set_result(None)
                await transport.serve()
        finally:
            self._transport = None
            await transport.leave()

    def _address(self) -> str:
        fields = {}
        if self._token:
            fields[self._token_parameter] = self._token
        if self._device:
            fields["device"] = self._device
        position = self._session.connecting()
        if position is not None:
            fields |= {"epoch": position.epoch, "offset": str(position.offset)}
        return address(self._url, fields)

    async def _ask_token(self) -> None:
        source = self._token_source
        try:
            token = source() if callable(source) else source
            self._token = await token if inspect.isawaitable(token) else token
        except Exception as exc:
            if isinstance(exc, GatewayError) and not exc.temporary:
                raise Final(CloseCode.NOT_AUTHENTICATED, str(exc)) from exc
            logger.warning("cannot get a token now: %r", exc)
            raise Lost(1006, "no token") from exc
        self._session.stale = False

    # -- from the gateway ----------------------------------------------------------------

    def _on_text(self, text: str | bytes) -> None:
        self._apply(self._session.receive(text, time.monotonic()))

    def _apply(self, events: Iterable[Event]) -> None:
        """Tell the application what happened."""
        for event in events:
            match event:
                case Delivered(received, life):
                    self._queue.append(Message(self, life, received))
                    self._arrived.set()
                case Confirmed(id):
                    _resolve(self._pending.get(id), None)
                case Failed(id, error):
                    _resolve(self._pending.get(id), error)
                case Answered(id, answer):
                    _resolve(self._requests.get(id), self._answer(answer))
                case Unclaimed(answer):
                    self._unclaimed(self._answer(answer))
                case Welcomed(welcome):
                    _call(self._on_welcome, welcome)

    def _answer(self, answer: ServerMessage | GatewayError) -> Message | GatewayError:
        return Message(self, 0, answer) if isinstance(answer, ServerMessage) else answer

    def _unclaimed(self, answer: Message | GatewayError) -> None:
        if isinstance(answer, Message):
            _call(self._on_reply, answer)
            return
        if answer.id is None:
            logger.warning("the gateway refused a frame: %s (%s)", answer, answer.code)
        _call(self._on_error, answer)

    def _processed(self, life: int, offset: int) -> None:
        self._session.processed(life, offset, time.monotonic())
        self._wake()

    # -- for the caller ------------------------------------------------------------------

    async def recv(self) -> Message:
        """Return the next message; the one returned before counts as processed now.

        May be cancelled without losing a message. One caller at a time.

        Raises:
            GatewayError: The client is closed, and there is no message left.
        """
        if self._current is not None and self._auto_ack:
            self._current.ack()
        self._current = None
        while not self._queue:
            if self._state is ClientState.CLOSED:
                raise self._closed()
            self._arrived.clear()
            await self._arrived.wait()
        self._current = self._queue.popleft()
        return self._current

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Give each message; end when the caller closes the client.

        Raises:
            GatewayError: The gateway closed the connection for good.
        """
        while True:
            try:
                message = await self.recv()
            except GatewayError:
                if self._error is not None:
                    raise
                return
            yield message

    async def send(self, data: Any, *, id: str | None = None) -> str:
        """Publish *data* and return its id once it is stored. Survives reconnecting.

        When cancelled, the message is given up; perhaps it is stored. Send it again with the same
        id to be sure: it is stored once.

        Args:
            data: str or bytes go as they are, anything else as JSON.
            id: 1 to 64 printable ASCII characters; None makes one.

        Raises:
            GatewayError: It was refused, ``.code`` and ``.temporary`` say why; or too many wait.
            ValueError: *id* or *data* cannot be sent.
        """
        id = id if id is not None else self._new_id()
        await self._send(id, _frame(data))
        return id

    async def request(
        self, data: Any, *, id: str | None = None, timeout: float | None = REQUEST_TIMEOUT
    ) -> Message:
        """Publish *data* and return the service's reply, over however many connections.

        The reply is acknowledged by itself, and no `recv` gets it. It comes in its turn within the
        gateway's window: receive messages while you wait, or a full window keeps it back.

        When cancelled, or after *timeout*, the reply goes to *on_reply*, should it come.

        Args:
            data: As for `send`.
            id: As for `send`; the same id asks once.
            timeout: Seconds; None: as long as it takes.

        Raises:
            GatewayError: The service refused it, with its own ``.code``, or the gateway did.
            TimeoutError: No reply in time; perhaps the service handles it yet.
            ValueError: *id* or *data* cannot be sent.
        """
        frame = _frame(data)
        id = id if id is not None else self._new_id()
        self._session.expect_reply(id)
        request = self._requests.setdefault(id, _Pending())
        request.callers += 1
        try:
            async with asyncio.timeout(timeout):
                await self._send(id, frame, request=True)
                return await asyncio.shield(request.result)
        finally:
            request.callers -= 1
            if not request.callers:
                request.give_up()
                del self._requests[id]
                self._session.expect_no_reply(id)

    async def _send(self, id: str, frame: Frame, *, request: bool = False) -> None:
        pending = self._pending.get(id)
        if pending is None:
            self._session.send(id, frame, request=request)
            pending = self._pending[id] = _Pending()
            self._wake()
        pending.callers += 1
        try:
            await asyncio.shield(pending.result)
        finally:
            pending.callers -= 1
            if not pending.callers:
                pending.give_up()
                del self._pending[id]
                self._session.give_up(id)
                self._wake()  # the window may have room

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._ids)}"

    def _wake(self) -> None:
        if self._transport is not None:
            self._transport.wake()


def connect(url: str, **options: Any) -> Client:
    """Return a client: ``async with connect(url) as client``. `Client` lists the options."""
    return Client(url, **options)


def _call(callback: Callable[[T], object] | None, value: T) -> None:
    """Call the user's function; what it raises is logged, and harms nobody else."""
    if callback is None:
        return
    try:
        callback(value)
    except Exception:
        logger.exception("a callback of the client failed")


def _resolve(pending: _Pending[T] | None, result: T | GatewayError) -> None:
    """Give those who wait their result."""
    if pending is None or pending.result.done():
        return
    if isinstance(result, GatewayError):
        pending.result.set_exception(result)
    else:
        pending.result.set_result(result)


def _frame(data: Any) -> Frame:
    if isinstance(data, bytes | bytearray | memoryview):
        return Frame(bytes(data), False)
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Frame.of(data)
