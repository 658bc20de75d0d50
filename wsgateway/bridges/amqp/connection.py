"""Connections to RabbitMQ: a lost one is replaced, and errors say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aio_pika
from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from wsgateway.bridges.amqp.tolerance import TolerantTransport
from wsgateway.bridges.config import Bridge, Server
from wsgateway.bridges.tls import tls_context, tls_error, tls_flaw
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, reason_of
from wsgateway.protocol.backoff import Backoff
from wsgateway.supervision import supervise

__all__ = ["Link", "connect", "explain", "until_closed"]

logger = logging.getLogger("wsgateway.bridges")

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
HEARTBEAT = 10
"""Seconds. A server that is silent for three times as long is gone."""

PAUSES = Backoff(0.1, 2.0, 3.0, jitter=0.5)
"""Before another attempt to connect."""
STEADY = 10.0
"""Seconds that a connection lasted if its end was an event of its own."""

UNDECODABLE = (amqp.InvalidFrameError, RecursionError)
"""What a message that pamqp cannot decode does to its connection."""

RIGHTS = {"exchange": "write", "queue": "read"}
"""What a bridge needs to carry records. RabbitMQ 3.10 does not say which right is missing."""
REFUSED = re.compile(r"(?:(configure|write|read) )?access to (exchange|queue) '(.+?)' in vhost")

NO_VHOST = "['Connection.OpenOk'], got <Connection.Close "
"""What aiormq says when RabbitMQ refuses the virtual host. It drops RabbitMQ's own text."""


class _Discreet(logging.Filter):
    """Keeps payloads out of the log, and what a link says itself, once for each outage.

    aiormq, below aio-pika, logs each frame that it sends when its level is DEBUG.
    """

    SHOWS = ("Got frame for closed channel", "Unhandled message", "message_id if None on returned")
    SAID = ("error when creating transport", "Cancelling cause reader exited abnormally")

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG and not str(record.msg).startswith(
            self.SHOWS + self.SAID
        )


for _part in ("connection", "channel"):
    logging.getLogger(f"aiormq.{_part}").addFilter(_Discreet())


class Link:
    """A connection that is replaced whenever it is lost, for as long as this is open.

    aio-pika's robust connections also do so. They restore channels and consumers behind the
    application's back, while publications fail one by one and deliveries of the old channel are
    still on their way. Here, one task makes a connection, uses it, and ends it, so there is one
    moment at which everything that belonged to it is lost.

    Args:
        bridge: Whom to connect to.
        purpose: What RabbitMQ's own pages show beside the connection.
        use: Uses a connection until it is lost; calls `established` once it can be used.
    """

    def __init__(
        self, bridge: Bridge, purpose: str, use: Callable[[AbstractConnection], Awaitable[None]]
    ) -> None:
        self._bridge = bridge
        self._purpose = purpose
        self._use = use
        self._servers = itertools.cycle(bridge.servers)
        self._is_tolerant = False  # a message could not be decoded; the next one may come soon
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # set, and replaced, when the next two change
        self._logged: set[str] = set()  # what was said of this outage
        self.is_up = False
        self.error: BusError | None = None  # why it is not up; None before the first failure

    def open(self) -> None:
        """Start connecting. Idempotent."""
        if self._task is None:
            self._task = supervise(self._run, f"bridge {self._bridge.name}: {self._purpose}")

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self._tell(is_up=False, error=BusUnavailable("the bridge is closing"))

    def established(self) -> None:
        """Record that the connection can be used."""
        if self.error is not None:
            name = self._bridge.name
            text = "bridge %s: reconnected to %s"
            logger.info(text, name, self._bridge.where, extra={"bridge": name})
        self._logged.clear()
        self._tell(is_up=True, error=None)

    async def wait(self, *, for_ever: bool = False) -> None:
        """Wait until it is up, or the attempt to connect that is under way has failed.

        Args:
            for_ever: Whether to go on waiting while RabbitMQ cannot be reached.

        Raises:
            BusUnavailable: RabbitMQ cannot be reached, or this is closed.
            BusMisconfigured: RabbitMQ refuses the bridge.
        """
        while not self.is_up:
            error = self.error
            may_end = for_ever and self._task is not None and isinstance(error, BusUnavailable)
            if error is not None and not may_end:
                raise type(error)(str(error))
            await self._news.wait()

    def _tell(self, *, is_up: bool, error: BusError | None) -> None:
        self.is_up, self.error = is_up, error
        self._news.set()
        self._news = asyncio.Event()

    async def _run(self) -> None:
        attempt = 0
        while True:
            begun, server = time.monotonic(), next(self._servers)
            try:
                async with connect(
                    self._bridge, self._purpose, server, is_tolerant=self._is_tolerant
                ) as connection:
                    try:
                        await self._use(connection)
                    finally:
                        self._tell(is_up=False, error=self.error)  # before it is closed
            except BusError as exc:
                error = exc
            except amqp.CONNECTION_EXCEPTIONS as exc:
                self._is_tolerant |= isinstance(exc, UNDECODABLE)
                error = explain(exc, self._bridge, server)
            else:
                error = BusUnavailable(f"RabbitMQ at {server} closed the connection")
            # Once for each outage, however many attempts it takes, and servers there are
            name, reason = self._bridge.name, reason_of(error)
            level = logging.DEBUG if reason in self._logged else logging.WARNING
            self._logged.add(reason)
            text = "bridge %s: %s (%s)"
            logger.log(level, text, name, reason, self._purpose, extra={"bridge": name})
            self._tell(is_up=False, error=error)
            attempt = 0 if time.monotonic() > begun + STEADY else attempt + 1
            await asyncio.sleep(PAUSES.delay(attempt))


@contextlib.asynccontextmanager
async def connect(
    bridge: Bridge, purpose: str, server: Server | None = None, *, is_tolerant: bool = False
) -> AsyncIterator[AbstractConnection]:
    """Connect, and disconnect afterwards.

    Args:
        bridge: Whom to connect to.
        purpose: What RabbitMQ's own pages show beside the connection.
        server: Which of its servers; None: the first that answers.
        is_tolerant: Whether to repair what aio-pika cannot decode, which costs time.

    Raises:
        BusUnavailable: It cannot be reached.
        BusMisconfigured: It refuses the bridge.
    """
    servers = bridge.servers if server is None else (server,)
    failed: BusError | None = None
    for each in servers:
        connection = aio_pika.Connection(
            _url(bridge, each),
            ssl_context=tls_context(bridge) if bridge.is_encrypted else None,
            client_properties={"connection_name": f"wsgateway {bridge.name}: {purpose}"},
        )
        if is_tolerant:
            connection.kwargs["transport_factory"] = TolerantTransport()
        try:
            await connection.connect(timeout=CONNECT_TIMEOUT)
        except BaseException as exc:
            await connection.close()
            if not isinstance(exc, (*amqp.CONNECTION_EXCEPTIONS, TimeoutError)):
                raise
            if not isinstance(failed, BusMisconfigured):
                failed = explain(exc, bridge, each, is_new=True)
            if each is servers[-1]:
                # Not "from": its traceback, and what it holds, has the URL with the password
                raise failed from None
        else:
            break
    try:
        yield connection
    finally:
        with contextlib.suppress(*amqp.CONNECTION_EXCEPTIONS, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await connection.close()


async def until_closed(channel: AbstractChannel) -> None:
    """Wait until a channel is closed, with its connection or alone; raise the reason if any."""
    closing = channel.closing
    await asyncio.wait({closing})
    reason = None if closing.cancelled() else closing.exception()
    if isinstance(reason, amqp.CONNECTION_EXCEPTIONS):
        raise reason


def _url(bridge: Bridge, server: Server) -> URL:
    return URL.build(
        scheme="amqps" if bridge.is_encrypted else "amqp",
        user=bridge.username or None,
        password=bridge.password or None,
        host=server.host,
        port=server.port,
        path=f"/{bridge.vhost}",
        query={"heartbeat": str(HEARTBEAT)},
    )


def explain(
    error: BaseException,
    bridge: Bridge,
    server: Server | None = None,
    *,
    is_new: bool = False,
    rights: Mapping[str, str] = RIGHTS,
) -> BusError:
    """Return what an error of aio-pika means, and what to do.

    Args:
        error: The error.
        bridge: The bridge's configuration.
        server: Which server it came from; None if it may be any of the bridge's.
        is_new: Whether the connection could not be made.
        rights: Which right was needed, on exchanges and queues, or on one of them, by its name.
    """
    where = f"RabbitMQ at {server or ', '.join(map(str, bridge.servers))}"
    reason = _said(error)
    user = bridge.username or "guest"
    tls = tls_error(error)
    if tls is not None:
        return tls_flaw(tls, where, bridge)
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.AuthenticationError)):
        local = "; 'guest' may log in only from RabbitMQ's own machine" if user == "guest" else ""
        return BusMisconfigured(
            f"{where} rejected the login of user {user!r}; correct 'username' and 'password' of "
            f"bridge {bridge.name!r}{local}"
        )
    if isinstance(error, amqp.InvalidFrameError) and NO_VHOST in str(error):
        return BusMisconfigured(
            f"{where} does not let user {user!r} use virtual host {bridge.vhost!r}; create it, "
            f"grant the user rights there, or correct 'url' of bridge {bridge.name!r}"
        )
    if isinstance(error, amqp.ChannelNotFoundEntity):
        return BusMisconfigured(f'{where}: {reason}; run "manage.py setup_bridges {bridge.name}"')
    if isinstance(error, ChannelAccessRefused):
        return BusMisconfigured(f"{where}: {reason}; grant user {user!r} {_right(reason, rights)}")
    if isinstance(error, amqp.ChannelPreconditionFailed):  # such as too late an acknowledgement
        return BusUnavailable(f"{where} closed the channel: {reason}")
    if isinstance(error, UNDECODABLE):
        return BusUnavailable(
            f"cannot decode a message from {where} ({reason}); the bridge reconnects and leaves "
            "out the part that it cannot decode"
        )
    if not is_new:
        return BusUnavailable(f"lost the connection to {where}: {reason}")
    return BusUnavailable(
        f"cannot reach {where}: {reason}; check that RabbitMQ is running, and the servers in "
        f"'url' of bridge {bridge.name!r}"
    )


def _right(reason: str, rights: Mapping[str, str]) -> str:
    """Return which right RabbitMQ misses, on what."""
    found = REFUSED.search(reason)
    if found is None:
        return "the rights that docs/how-to/bridges.md lists"
    right, kind, name = found.groups()
    return f"the right {right or rights.get(name) or rights[kind]} on {kind} {name!r}"


def _said(error: BaseException) -> str:
    """Return what the server said, without its code; for the rest, what Python says."""
    if isinstance(error, TimeoutError) and not error.args:
        return f"no answer within {CONNECT_TIMEOUT:g} s"
    texts = [str(each) for each in error.args if isinstance(each, str)]
    return reason_of(Exception(texts[-1])) if texts else reason_of(error)
