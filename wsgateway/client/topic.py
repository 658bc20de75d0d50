"""A topic as applications use it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from wsgateway.client.callbacks import call, fetch
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Event
from wsgateway.client.exchange import REQUEST_TIMEOUT, Exchange
from wsgateway.client.inbox import Position
from wsgateway.client.message import Message
from wsgateway.client.readers import Readers, ReadersChanged
from wsgateway.client.reading import Reader
from wsgateway.client.subscription import Subscription
from wsgateway.client.subscriptions import Subscriptions
from wsgateway.client.watching import Watching
from wsgateway.exceptions import reason_of
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.v1 import ServerMessage, Subscribed
from wsgateway.supervision import start

__all__ = ["Topic", "TopicToken"]

logger = logging.getLogger("wsgateway.client")

TopicToken = str | Callable[[str], str | Awaitable[str]]


class Topic:
    """A topic that the client reads; made by `Client.topic`.

    Usable as ``async with``, which waits until the gateway has accepted it, and closes it.
    """

    def __init__(
        self,
        subscription: Subscription,
        subscriptions: Subscriptions,
        exchange: Exchange,
        *,
        auto_ack: bool,
        backoff: Backoff,
        watching: Watching,
        token: TopicToken | None,
        on_subscribed: Callable[[Subscribed], object] | None,
        on_readers: Callable[[ReadersChanged], object] | None,
        on_error: Callable[[GatewayError], None],
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        self._subscription = subscription
        self._subscriptions = subscriptions
        self._exchange = exchange
        self._backoff = backoff
        self._watching = watching
        self._token = token
        self._on_subscribed = on_subscribed
        self._on_readers = on_readers
        self._on_error = on_error
        self._on_events = on_events
        self._reader = Reader(auto_ack)
        self._subscribed: Subscribed | None = None
        self._answered = asyncio.Event()  # the gateway has accepted it, or it has ended
        self._error: GatewayError | None = None  # why it ended
        self._closing = False  # the application ends it
        self._fetching: set[asyncio.Task[None]] = set()  # tasks that ask for a token

    # -- life cycle ----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name, such as ``room.42``."""
        return self._subscription.topic

    @property
    def position(self) -> Position | None:
        """Up to where messages were processed; None before the first answer, or if ephemeral."""
        return self._subscription.inbox.position

    @property
    def subscribed(self) -> Subscribed | None:
        """The gateway's last answer, with ``access``; None before the first."""
        return self._subscribed

    @property
    def dropped(self) -> int:
        """How many messages of an ephemeral topic were dropped because nobody read them."""
        return self._reader.dropped

    async def open(self) -> None:
        """Wait until the gateway has accepted the subscription. Idempotent.

        Raises:
            GatewayError: It refuses it, or the topic or the client is closed.
        """
        await self._answered.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Acknowledge what was processed, and read the topic no more. Idempotent.

        Sends and requests that wait raise `GatewayError` with the code ``ended``.
        """
        self._closing = True
        text = "the topic was closed; the message may have been stored"
        error = GatewayError("ended", text, True)
        self._on_events(self._subscriptions.remove(self._subscription, error))
        self._exchange.wake()

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

    # -- for the caller ------------------------------------------------------------------

    async def recv(self) -> Message:
        """Return the next message; as `Client.recv`.

        Raises:
            GatewayError: The topic has ended and no message is left; ``code`` says why.
        """
        return await self._reader.recv()

    def __aiter__(self) -> AsyncIterator[Message]:
        """Yield each message; end when the caller closes the topic or the client.

        Raises:
            GatewayError: The gateway refused or ended the subscription.
        """
        return aiter(self._reader)

    async def send(self, data: Any, *, id: str | None = None) -> str:
        """Write *data* to the topic; as `Client.send`, once the gateway has accepted it.

        Raises:
            GatewayError: The client may not write, or the topic has ended.
            ValueError: *id* or *data* cannot be sent.
        """
        return await self._exchange.send(data, id, self._subscription)

    async def request(
        self, data: Any, *, id: str | None = None, timeout: float | None = REQUEST_TIMEOUT
    ) -> Message:
        """Write *data* to the topic and return its service's reply; as `Client.request`.

        Raises:
            GatewayError: The client may not write, the service refused, or the topic has ended.
            TimeoutError: No reply in time; the text says whether the gateway or the service is
                late. The service may still handle it.
            ValueError: *id* or *data* cannot be sent.
        """
        return await self._exchange.request(data, id, timeout, self._subscription)

    # -- who else reads it ---------------------------------------------------------------

    @property
    def readers(self) -> Readers | None:
        """Who reads the topic, as was heard last; None if `watch` was not answered, or has ended.

        During a reconnect, this may be out of date.
        """
        return self._watching.readers_of(self._subscription)

    async def watch(self) -> Readers:
        """Watch who reads the topic, across reconnects; return who reads it now.

        The first answer and each change go to *on_readers*. If you cancel this before it returns,
        the watch ends.

        Raises:
            GatewayError: You may not, or the topic or the client is closed.
        """
        return await self._watching.watch_readers(self._subscription)

    def unwatch(self) -> None:
        """Do not watch any more who reads the topic. Idempotent."""
        self._watching.unwatch_readers(self._subscription)

    # -- for the client ------------------------------------------------------------------

    def deliver(self, received: ServerMessage, generation: int) -> None:
        """Take a message."""
        self._reader.put(Message(received, generation, self._processed))

    def _processed(self, generation: int, offset: int) -> None:
        now = time.monotonic()
        self._subscriptions.processed(self._subscription, generation, offset, now)
        self._exchange.wake()

    def begin(self, frame: Subscribed) -> None:
        """Take the gateway's answer, or its news."""
        self._subscribed = frame
        self._answered.set()
        call(self._on_subscribed, frame)

    def end(self, error: GatewayError, *, stops: bool) -> None:
        """Take it that nothing comes any more; *stops*: because the application wants so."""
        self._error = error
        self._answered.set()
        self._reader.end(error, stops=stops or self._closing)
        for task in self._fetching:
            task.cancel()

    def change_readers(self, change: ReadersChanged, error: GatewayError | None) -> None:
        """Take the news of who reads the topic; *error*: why the gateway has ended the watch."""
        if error is not None:
            self._on_error(error)
        if not self._closing:
            call(self._on_readers, change)

    # -- tokens --------------------------------------------------------------------------

    def fetch_token(self, watch: str | None = None) -> None:
        """Ask the application for a token, in the background.

        Args:
            watch: The id of the watch that needs it; None: the subscription does.
        """
        if callable(self._token):
            fetching = self._fetch(self._token, watch)
            start(fetching, "wsgateway-client-topic-token", tasks=self._fetching)

    async def _fetch(
        self, source: Callable[[str], str | Awaitable[str]], watch: str | None
    ) -> None:
        attempt = 0
        while self._wants_token(watch):
            try:
                token = await fetch(source, self.name)
            except Exception as exc:
                if isinstance(exc, GatewayError) and not exc.temporary:
                    self._fail(watch, exc)
                    return
                reason = reason_of(exc)
                logger.warning("cannot get a token for %s, retrying: %s", self.name, reason)
                await asyncio.sleep(self._backoff.delay(attempt))
                attempt += 1
            else:
                self._authorize(watch, token)

    def _wants_token(self, watch: str | None) -> bool:
        if watch is None:
            return self._subscription.wants_token
        return self._watching.wants_token(watch)

    def _authorize(self, watch: str | None, token: str) -> None:
        if watch is None:
            self._subscriptions.authorize(self._subscription, token, time.monotonic())
            self._exchange.wake()
        else:
            self._watching.authorize(watch, token)

    def _fail(self, watch: str | None, error: GatewayError) -> None:
        if watch is None:
            self._on_events(self._subscriptions.fail(self._subscription, error))
            self._exchange.wake()
        else:
            self._watching.fail(watch, error)
