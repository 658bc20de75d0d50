"""One connection per event loop: who connects, restores, watches, and closes.

nats-py's own reconnect gives up, has no jitter, and buffers silently. Here one task owns the
connection: it connects, restores every subscription, and only then announces ``OPEN``. All others
publish, or get `BrokerUnavailable` at once.

The module is long because the state of a connection has one owner; requests, propagation and the
handshake are elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
from collections.abc import Callable

from wsgateway import counters
from wsgateway.broker.addresses import ServerList
from wsgateway.broker.bus import Callbacks, Closable, Handler
from wsgateway.broker.ending import is_ending
from wsgateway.broker.nats.connector import Connector
from wsgateway.broker.nats.handshake import DirectClient
from wsgateway.broker.nats.options import ConnectionOptions
from wsgateway.broker.nats.refusals import Refusal, RefusalLog, Vetoes
from wsgateway.broker.nats.requests import RequestingBus
from wsgateway.broker.nats.server_info import ServerInfo
from wsgateway.exceptions import BrokerClosed, BrokerForbidden, BrokerUnavailable
from wsgateway.supervision import is_cancelled, supervise

__all__ = [
    "ConnectionOptions",
    "ConnectionState",
    "NatsConnection",
    "Subscription",
]

logger = logging.getLogger("wsgateway.broker")

OUTBOUND_LIMIT = 64 * 1024 * 1024
"""Bytes waiting for the server above which publishing is refused."""
FINISH_WITHIN = 1.0
"""Seconds that what is still to be sent has when the loop ends."""
ALREADY_CLOSED = "the connection is already closed; open a new one"


class ConnectionState(enum.Enum):
    """The life of a connection."""

    NEW = "new"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class Subscription:
    """Interest in one subject; outlives connections until `close`."""

    __slots__ = ("_connection", "optional", "queue", "sid", "subject")

    def __init__(
        self, connection: NatsConnection, sid: int, subject: str, queue: str, optional: bool
    ) -> None:
        self._connection = connection
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self.optional = optional

    def command(self) -> bytes:
        """Return the SUB command."""
        return f"SUB {self.subject} {self.queue} {self.sid}\r\n".encode()

    def close(self) -> None:
        """End the interest; no message is handed over after this call. Idempotent."""
        self._connection._unsubscribe(self)

    async def drain(self, timeout: float) -> None:
        """End the interest, and return once nothing more can come.

        What is on its way is still handed over.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connection._drain(self)
        except TimeoutError:
            logger.debug("%s was not drained within %s s", self.subject, timeout)
        finally:
            self.close()


class NatsConnection(RequestingBus):
    """One connection to NATS that is kept up until `close`.

    Not thread safe: belongs to the loop in which `open` was called.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        super().__init__(options.timeout)
        self.options = options
        self.state = ConnectionState.NEW
        self.times_connected = 0
        self.server = ServerInfo()
        """The server that it is connected to, or was last."""
        self.max_payload = self.server.max_payload
        self._client: DirectClient | None = None  # the connection while OPEN
        self._handlers: dict[int, Handler] = {}  # sid -> handler; shared with each client
        self._subscriptions: dict[int, Subscription] = {}  # what to restore
        self._sids = itertools.count(1)
        self._owner: asyncio.Task[None] | None = None  # runs _keep_up
        self._opened = asyncio.Event()  # set while OPEN
        self._on_open = Callbacks("a new connection")
        self._on_lost = Callbacks("a lost connection")
        self._connector = Connector(options, self._handlers, self._on_refusal)
        self._refusals = RefusalLog()
        self._vetoes = Vetoes()

    # -- life cycle ----------------------------------------------------------------------

    async def open(self) -> None:
        """Start connecting and return at once. Idempotent."""
        if self.state is ConnectionState.CLOSED:
            raise BrokerClosed(ALREADY_CLOSED)
        if self._owner is None:
            self._set_state(ConnectionState.CONNECTING)
            self.subscribe(f"{self._reply_subject}.*", self._on_reply)
            self._owner = supervise(self._keep_up, "wsgateway-connection")

    async def close(self, timeout: float = 2.0) -> None:
        """Flush, disconnect, fail every waiter. Idempotent.

        Takes *timeout* seconds at most.
        """
        if self.state is ConnectionState.CLOSED:
            return
        client = self._client
        self._set_state(ConnectionState.CLOSED)
        self._opened.set()  # those who wait look, and find it closed
        if client is not None:
            await _drain_client(client, timeout / 2)
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=timeout)
        self._drop(client)
        self._fail_requests(BrokerClosed(ALREADY_CLOSED))
        self._handlers.clear()
        self._subscriptions.clear()

    def _set_state(self, state: ConnectionState) -> None:
        logger.debug("connection %s -> %s", self.state.value, state.value)
        self.state = state

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the connection is OPEN.

        Raises:
            BrokerUnavailable: Not within *timeout* (None: the options' timeout) seconds.
            BrokerClosed: It was already closed, or was closed while waiting.
        """
        if self.state is ConnectionState.OPEN:
            return
        self._refuse_closed()
        try:
            async with asyncio.timeout(self.options.timeout if timeout is None else timeout):
                await self._opened.wait()
        except TimeoutError as exc:
            raise self._why_not_open() from exc
        self._refuse_closed()

    def on_open(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* on each change to OPEN."""
        return self._on_open.add(callback)

    def on_lost(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* on each loss of the connection."""
        return self._on_lost.add(callback)

    def _refuse_closed(self) -> None:
        if self.state is ConnectionState.CLOSED:
            raise BrokerClosed(ALREADY_CLOSED)

    def _why_not_open(self) -> BrokerUnavailable | BrokerClosed:
        if self.state is ConnectionState.CLOSED:
            return BrokerClosed(ALREADY_CLOSED)
        if self.state is ConnectionState.NEW:
            return BrokerUnavailable("the connection to NATS is not open yet; call open()")
        return BrokerUnavailable(self._connector.problem())

    @property
    def address(self) -> str:
        """The servers without credentials, for messages."""
        return self._connector.address

    @property
    def peer(self) -> tuple[str, int] | None:
        """Host and port of the server of the last connection; None before the first."""
        current = self._connector.current
        return None if current is None else (current.host, current.port)

    @property
    def servers(self) -> ServerList:
        """The servers that it may connect to."""
        return self._connector.servers

    @property
    def is_open(self) -> bool:
        """Whether publishing is possible now."""
        return self.state is ConnectionState.OPEN

    # -- the owner -----------------------------------------------------------------------

    async def _keep_up(self) -> None:
        attempt = 0
        while self.state is not ConnectionState.CLOSED:
            client = await self._connector.connect(self._restore)
            if client is None:
                await asyncio.sleep(self.options.backoff.delay(attempt))
                attempt += 1
                continue
            attempt = 0
            try:
                await self._serve(client)
            except asyncio.CancelledError:
                if is_cancelled():  # the loop ends, with everything in it
                    await _drain_client(client, FINISH_WITHIN)
                    self._set_state(ConnectionState.CLOSED)
                raise
            finally:
                self._drop(client)
            await asyncio.sleep(self.options.backoff.delay(0))

    def _restore(self, client: DirectClient) -> None:
        """Bring the server's subscriptions of *client* in line with the table."""
        wanted = self._subscriptions.keys()
        for sid in wanted - client.subscribed:
            client.write(self._subscriptions[sid].command())
        for sid in client.subscribed - wanted:
            client.write(f"UNSUB {sid}\r\n".encode())
        client.subscribed = set(wanted)

    async def _serve(self, client: DirectClient) -> None:
        """Announce OPEN, watch the connection, return once it is lost."""
        lost = asyncio.Event()
        client.on_end(lost.set)
        client.on_info = lambda: self._learn(client)
        self._client = client
        self._learn(client)
        counters.broker.connects += 1
        counters.broker.reconnects += self.times_connected > 0
        self.times_connected += 1
        self._set_state(ConnectionState.OPEN)
        self._restore(client)  # again: the table may have changed while it was confirmed
        self._opened.set()
        self._on_open.call()
        while not lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.ping_interval):
                    await lost.wait()
                    break
            if not await client.ping(self.options.timeout) and not client.has_ended():
                client.end_reason = f"no answer to a ping for {self.options.timeout} s"
                break

    def _learn(self, client: DirectClient) -> None:
        """Take over what the server says about itself; a reload may change it."""
        self.server = ServerInfo.parse(client.server_info)
        self.max_payload = self.server.max_payload
        current = self._connector.current
        if current is not None:
            self._connector.servers.hear(client.announced_servers, current)

    def _on_refusal(self, client: DirectClient, text: str) -> None:
        """Tell those whom the server's permissions concern."""
        refusal = Refusal.parse(text)
        if refusal.subscribed.startswith(self._reply_subject):  # no answer would ever come
            client.give_up(text)
            return
        self._vetoes.note(refusal)
        if not self._forbid_requests(refusal.published, BrokerForbidden(text)):
            self._refusals.add(refusal)

    def _drop(self, client: DirectClient | None) -> None:
        if client is None or client is not self._client:
            return
        self._client = None
        self._vetoes.clear()
        client.abandon()
        self._connector.lost(client.end_reason)
        if self.state is ConnectionState.OPEN:
            self._opened.clear()
            counters.broker.losses += 1
            self._set_state(ConnectionState.CONNECTING)
            level = logging.DEBUG if is_ending() else logging.WARNING
            logger.log(level, "lost the connection to NATS (%s), reconnecting", client.end_reason)
        self._fail_requests(self._why_not_open())
        self._on_lost.call()

    # -- publish, subscribe --------------------------------------------------------------

    def publish(
        self, subject: str, payload: bytes, headers: bytes = b"", *, reply: str = ""
    ) -> None:
        """Queue a message for the server; at most once.

        Args:
            subject: A valid subject; not checked here.
            payload: Bytes, at most `max_payload`.
            headers: As `headers.encode` makes them.
            reply: Where answers go.

        Raises:
            BrokerUnavailable: Not connected, or the server has stopped reading.
        """
        client = self._client
        if client is None:
            raise self._why_not_open()
        if client.buffered > OUTBOUND_LIMIT:
            raise BrokerUnavailable(
                f"{client.buffered} bytes already wait for NATS at {self.address}; "
                "the server does not read"
            )
        if headers:
            size = len(headers)
            command = f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n".encode()
            client.write(b"".join((command, headers, payload, b"\r\n")))
        else:
            command = f"PUB {subject} {reply} {len(payload)}\r\n".encode()
            client.write(b"".join((command, payload, b"\r\n")))

    def send_now(self) -> None:
        """Write what was published, without waiting for this turn of the loop to end."""
        if self._client is not None:
            self._client.send_now()

    @property
    def is_crowded(self) -> bool:
        """Whether `pressure` would wait."""
        return self._client is not None and self._client.is_crowded

    async def pressure(self) -> None:
        """Wait while more than a megabyte waits for the server, or until the connection is lost."""
        client = self._client
        while client is self._client and client and client.is_crowded:
            await client.writable()

    def force_reconnect(self) -> None:
        """Drop the connection at once, as a failing network does, and make another."""
        if self._client is not None:
            self._client.give_up("it was told to reconnect")

    async def confirm(self) -> None:
        """Wait until the server has taken everything sent so far: messages, subscriptions.

        Those who call it in the same turn of the loop share a round trip, or two.

        Raises:
            BrokerUnavailable: Not within the options' timeout, or not connected.
            BrokerForbidden: NATS' permissions forbid a subscription made since the last call.
        """
        client = self._client
        if client is None or not await client.ping(self.options.timeout):
            raise self._why_not_open()
        self._vetoes.take()

    def forget_inherited(self) -> None:
        """Close a forked child's copy of the socket; the parent's connection goes on.

        Otherwise the server would take the connection for open after the parent's end.
        """
        if self._client is not None:
            self._client.close_inherited()

    def subscribe(
        self, subject: str, handler: Handler, queue: str = "", *, optional: bool = False
    ) -> Subscription:
        """Call *handler* for each message, in the order of arrival over all subscriptions.

        *handler* runs in the read path: it must not wait. May be called while not connected.
        """
        self._refuse_closed()
        sid = next(self._sids)
        subscription = Subscription(self, sid, subject, queue, optional)
        if optional:
            self._vetoes.allow(subject)
        self._handlers[sid] = handler
        self._subscriptions[sid] = subscription
        if self._client is not None:
            self._client.write(subscription.command())
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._handlers.pop(subscription.sid, None) is None:
            return
        del self._subscriptions[subscription.sid]
        if subscription.optional:
            self._vetoes.forget(subscription.subject)
        if self._client is not None:
            self._client.write(f"UNSUB {subscription.sid}\r\n".encode())

    async def _drain(self, subscription: Subscription) -> None:
        client = self._client
        if client is not None:
            client.write(f"UNSUB {subscription.sid}\r\n".encode())
            await client.ping(self.options.timeout)  # what `confirm` would raise is others' to hear


async def _drain_client(client: DirectClient, timeout: float) -> None:
    """Wait until what was sent to ourselves has come, and what that made us send has left."""
    for _ in range(2):
        if not await client.ping(timeout):
            return
