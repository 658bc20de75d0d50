"""The client as applications use it; each other module of this folder does a part of its work."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from wsgateway.client.callbacks import call
from wsgateway.client.connector import ClientState, Connector
from wsgateway.client.endpoint import Endpoint, Token
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import (
    Answered,
    Confirmed,
    Delivered,
    Event,
    Failed,
    Seen,
    Unclaimed,
    Watched,
    Welcomed,
)
from wsgateway.client.exchange import REQUEST_TIMEOUT, Exchange
from wsgateway.client.inbox import Position
from wsgateway.client.lost import Final
from wsgateway.client.message import Message
from wsgateway.client.readers import ReadersChanged
from wsgateway.client.reading import Reader
from wsgateway.client.session import ClientSession
from wsgateway.client.topic import Topic, TopicToken
from wsgateway.client.topics import Topics
from wsgateway.client.watching import Watching
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.v1 import Presence, ServerMessage, Subscribed, Welcome
from wsgateway.supervision import start

__all__ = ["Client", "ClientState", "Message", "connect"]

logger = logging.getLogger("wsgateway.client")


class Client:
    """A durable connection; made by `connect`.

    Args:
        url: ``ws://`` or ``wss://``.
        device: Which of the user's devices this is; each has its own cursor.
        token: A function is asked again after a refusal, and before the token expires.
        token_parameter: Query parameter to send it in; None: in the list of subprotocols.
        position: Where to resume; None: at the device's cursor.
        auto_ack: Acknowledge a message when the next one is asked for.
        ack_every: Acknowledge after this many messages at the latest.
        ack_interval: Acknowledge after this many seconds at the latest.
        queue_limit: Messages that may wait for confirmation; more are refused.
        send_window: Messages on the wire without confirmation.
        connect_timeout: Seconds until the welcome.
        ping_timeout: Seconds of silence after a due ping before the connection counts as dead.
        backoff: Delays between attempts.
        on_state: Called with each new state. Callbacks are plain functions and must not block. An
            exception in a callback is logged and otherwise ignored.
        on_welcome: Called with each welcome; check its ``recovered``.
        on_reply: Called with each reply that no call waits for: it answers another client of the
            user, or comes after a timeout.
        on_error: Called with each refusal, by the service or the gateway, that no call waits for.
        on_presence: Called with each state of a watched user, the first included.
        options: For ``websockets.asyncio.client.connect``: ssl, additional_headers, proxy, ...
    """

    # Over 40 lines because it names every option
    def __init__(
        self,
        url: str,
        *,
        device: str | None = None,
        token: Token | None = None,
        token_parameter: str | None = None,
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
        on_presence: Callable[[Presence], object] | None = None,
        **options: Any,
    ) -> None:
        self._on_state = on_state
        self._on_welcome = on_welcome
        self._on_reply = on_reply
        self._on_error = on_error
        self._on_presence = on_presence
        self._session = ClientSession(
            position=position,
            ack_every=ack_every,
            ack_interval=ack_interval,
            queue_limit=queue_limit,
            send_window=send_window,
            ping_timeout=ping_timeout,
            backoff=backoff,
            renewable=callable(token),
            prefix=f"{secrets.token_urlsafe(9)}-",
        )
        self._connector = Connector(
            self._session,
            Endpoint(url, device, token, token_parameter),
            connect_timeout=connect_timeout,
            options=options,
            on_state=self._set_state,
            on_events=self._apply,
        )
        self._exchange = Exchange(self._session.sending, self._connector.wake)
        self._watching = Watching(self._session, self._connector.wake, self._apply)
        self._topics = Topics(
            self._session.subscriptions,
            self._exchange,
            self._watching,
            auto_ack=auto_ack,
            backoff=backoff or Backoff(),
            on_error=self._unclaimed,
            on_events=self._apply,
        )
        self._reader = Reader(auto_ack)
        self._opened: asyncio.Future[None] | None = None  # set at the first welcome
        self._runner: asyncio.Task[None] | None = None
        self._state = ClientState.IDLE
        self._error: GatewayError | None = None  # why it closed, unless the caller closed it

    # -- life cycle ----------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """What the client is doing."""
        return self._state

    @property
    def position(self) -> Position | None:
        """Up to where messages were processed. Save it to pass it to `connect` later."""
        return self._session.position

    @property
    def welcome(self) -> Welcome | None:
        """The gateway's last welcome; None before the first."""
        return self._session.welcome

    @property
    def pending(self) -> int:
        """How many messages are queued or sent, and not confirmed."""
        return len(self._session.sending)

    async def open(self) -> None:
        """Connect, and wait for the first welcome without a time limit. Idempotent.

        Raises:
            GatewayError: The gateway refuses this client for good, or the client is closed.
        """
        if self._state is ClientState.CLOSED:
            raise self._closed()
        if self._runner is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._opened.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._runner = start(self._run(), "wsgateway-client", on_end=self._on_end)
        assert self._opened is not None
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Acknowledge what was processed and disconnect. Waiting calls raise `GatewayError`."""
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
        logger.debug("client state: %s -> %s", self._state.value, state.value)
        self._state = state
        if state is ClientState.OPEN and self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        call(self._on_state, state)

    async def _run(self) -> None:
        try:
            await self._connector.run()
        except Final as exc:
            text = str(exc) if exc.status else f"the gateway closed the connection: {exc}"
            self._error = GatewayError("closed", text, False, close_code=exc.code)

    def _on_end(self, failure: BaseException | None) -> None:
        """Fail every waiting call, whatever ended the client's task."""
        if failure is not None:
            self._error = GatewayError("closed", f"the client failed: {failure!r}", False)
            self._error.__cause__ = failure
        self._finish()

    def _closed(self) -> GatewayError:
        return self._error or GatewayError("closed", "the client is already closed", True)

    def _finish(self) -> None:
        self._set_state(ClientState.CLOSED)
        failure = self._closed()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(failure)
        self._apply(self._session.end(str(failure), failure.close_code))
        self._reader.end(failure, stops=self._error is None)

    # -- from the gateway ----------------------------------------------------------------

    def _apply(self, events: Iterable[Event]) -> None:
        """Tell the application what happened."""
        for event in events:
            match event:
                case Delivered(received, generation, None):
                    self._reader.put(Message(received, generation, self._processed))
                case Confirmed(id):
                    self._exchange.confirmed(id)
                case Failed(id, error):
                    self._exchange.confirmed(id, error)
                case Answered(id, answer):
                    self._exchange.answered(id, self._answer(answer))
                case Unclaimed(answer):
                    self._unclaimed(self._answer(answer))
                case Watched(id, result):
                    self._watching.answered(id, result)
                case Seen(presence):
                    call(self._on_presence, presence)
                case Welcomed(welcome):
                    call(self._on_welcome, welcome)
                case _:
                    is_closing = self._state is ClientState.CLOSED and self._error is None
                    self._topics.tell(event, is_closing=is_closing)

    def _answer(self, answer: ServerMessage | GatewayError) -> Message | GatewayError:
        return Message(answer, 0, self._processed) if isinstance(answer, ServerMessage) else answer

    def _unclaimed(self, answer: Message | GatewayError) -> None:
        if isinstance(answer, Message):
            call(self._on_reply, answer)
            return
        if answer.id is None:
            logger.warning("the gateway refused a frame with %s: %s", answer.code, answer)
        call(self._on_error, answer)

    def _processed(self, generation: int, offset: int) -> None:
        self._session.processed(generation, offset, time.monotonic())
        self._connector.wake()

    # -- for the caller ------------------------------------------------------------------

    async def recv(self) -> Message:
        """Return the next message; the previous one now counts as processed.

        May be cancelled without losing a message. One caller at a time.

        Raises:
            GatewayError: The client is closed and no message is left.
        """
        return await self._reader.recv()

    def __aiter__(self) -> AsyncIterator[Message]:
        """Yield each message; end when the caller closes the client.

        Raises:
            GatewayError: The gateway closed the connection for good.
        """
        return aiter(self._reader)

    async def send(self, data: Any, *, id: str | None = None) -> str:
        """Publish *data* and return its id once it is stored. Survives reconnects.

        If you cancel this, the message may have been stored. Send it again with the same id to be
        sure: it is stored once.

        Args:
            data: str and bytes are sent as they are, anything else as JSON.
            id: 1 to 64 printable ASCII characters without spaces; None: a new one.

        Raises:
            GatewayError: It was refused; ``code`` and ``temporary`` say why.
            ValueError: *id* or *data* cannot be sent.
        """
        return await self._exchange.send(data, id)

    async def request(
        self, data: Any, *, id: str | None = None, timeout: float | None = REQUEST_TIMEOUT
    ) -> Message:
        """Publish *data* and return the service's reply, even across reconnects.

        The reply is acknowledged automatically, and `recv` does not return it. It counts towards
        the gateway's window: keep receiving while you wait, because a full window holds it back.

        If you cancel this, or after *timeout*, a later reply goes to *on_reply*.

        Args:
            data: As for `send`.
            id: As for `send`; calls with the same id share one request.
            timeout: Seconds; None: no limit.

        Raises:
            GatewayError: The service refused it, with its own ``.code``, or the gateway did.
            TimeoutError: No reply in time; the text says whether the gateway or the service is
                late. The service may still handle it.
            ValueError: *id* or *data* cannot be sent.
        """
        return await self._exchange.request(data, id, timeout)

    def topic(
        self,
        name: str,
        *,
        since: Since | None = None,
        position: Position | None = None,
        token: TopicToken | None = None,
        on_subscribed: Callable[[Subscribed], object] | None = None,
        on_readers: Callable[[ReadersChanged], object] | None = None,
    ) -> Topic:
        """Read a topic from now on, across reconnects; return at once.

        Without options, a second call returns the same `Topic`, until that is closed.

        Args:
            name: ``<service>.<name>``, such as ``room.42``.
            since: Where to begin without a position: ``"new"`` (the default), ``"all"``, or how
                many of the newest messages.
            position: Where to resume; what `Topic.position` was.
            token: Proves that the client may read it. A function gets the topic's name, and is
                asked again after a refusal.
            on_subscribed: Called with each answer of the gateway; check its ``recovered``.
            on_readers: Called with who reads the topic, once `Topic.watch` was called.

        Raises:
            GatewayError: The client is closed.
            ValueError: *name* or *since* is not possible, or the client reads the topic already,
                with other options.
        """
        if self._state is ClientState.CLOSED:
            raise self._closed()
        return self._topics.open(
            name,
            since,
            token,
            position=position,
            on_subscribed=on_subscribed,
            on_readers=on_readers,
        )

    async def watch(self, user: str, *, service: str | None = None) -> bool | None:
        """Watch whether *user* is online, across reconnects; return whether they are now.

        Each change goes to *on_presence*. If you cancel this before it returns, the watch ends.

        Args:
            user: Whom.
            service: The user's service; None: this client's own.

        Returns:
            None if it is not known now.

        Raises:
            GatewayError: You may not, or the client is closed.
        """
        return await self._watching.watch(service, user)

    def unwatch(self, user: str, *, service: str | None = None) -> None:
        """Do not watch *user* any more. Idempotent."""
        self._watching.unwatch(service, user)


def connect(url: str, **options: Any) -> Client:
    """Return a client: ``async with connect(url) as client``. `Client` lists the options."""
    return Client(url, **options)
