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
from wsgateway.client.reading import Reader
from wsgateway.client.subscription import Subscription
from wsgateway.client.subscriptions import Subscriptions
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
        token: TopicToken | None,
        on_subscribed: Callable[[Subscribed], object] | None,
        on_events: Callable[[Iterable[Event]], None],
    ) -> None:
        self._subscription = subscription
        self._subscriptions = subscriptions
        self._exchange = exchange
        self._backoff = backoff
        self._token = token
        self._on_subscribed = on_subscribed
        self._on_events = on_events
        self._reader = Reader(auto_ack)
        self._subscribed: Subscribed | None = None
        self._answered = asyncio.Event()  # the gateway has accepted it, or it has ended
        self._error: GatewayError | None = None  # why it ended
        self._closing = False  # the application ends it
        self._fetching: asyncio.Task[None] | None = None  # the task that asks for the token

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
            TimeoutError: No reply in time; the service may still handle it.
            ValueError: *id* or *data* cannot be sent.
        """
        return await self._exchange.request(data, id, timeout, self._subscription)

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
        if self._fetching is not None:
            self._fetching.cancel()

    def fetch_token(self) -> None:
        """Ask the application for a token, in the background."""
        if callable(self._token):
            self._fetching = start(self._fetch(self._token), "wsgateway-client-topic-token")

    async def _fetch(self, source: Callable[[str], str | Awaitable[str]]) -> None:
        attempt = 0
        while self._subscription.wants_token:
            try:
                token = await fetch(source, self.name)
            except Exception as exc:
                if isinstance(exc, GatewayError) and not exc.temporary:
                    self._on_events(self._subscriptions.fail(self._subscription, exc))
                    return
                reason = reason_of(exc)
                logger.warning("cannot get a token for %s, retrying: %s", self.name, reason)
                await asyncio.sleep(self._backoff.delay(attempt))
                attempt += 1
            else:
                self._subscriptions.authorize(self._subscription, token, time.monotonic())
                self._exchange.wake()
