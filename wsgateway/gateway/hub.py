"""The registry of the sockets of an event loop, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from wsgateway import counters, declared
from wsgateway.broker import runtime
from wsgateway.broker.bus import Closable
from wsgateway.broker.roster import new_member_id
from wsgateway.conf import settings
from wsgateway.counters import RAW
from wsgateway.declared import declared_services
from wsgateway.exceptions import (
    BrokerError,
    IdentityRefused,
    MalformedMessage,
    reason_of,
)
from wsgateway.gateway.casts import Casts
from wsgateway.gateway.cursors import Cursors
from wsgateway.gateway.daphne import at_shutdown, quieten
from wsgateway.gateway.events import SocketEvents
from wsgateway.gateway.presence import Presence
from wsgateway.gateway.revocation import Revocations
from wsgateway.gateway.starts import Starts
from wsgateway.gateway.watching import Watching
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import NotForSockets
from wsgateway.protocol.sse import SSE
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import MAX_AFTER, SUBPROTOCOL
from wsgateway.supervision import start, supervise
from wsgateway.topics.rights import Rights

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.broker.messages import Stored
    from wsgateway.gateway.session import Session
    from wsgateway.identity import Identity

__all__ = ["Hub", "get_hub", "is_draining"]

logger = logging.getLogger("wsgateway")

STARTS_AT_ONCE = 32
"""Sockets that find their beginning at the same time. When a gateway dies, thousands come at once;
all together they would take so long that each one's time-outs pass, and all would come again."""
EVENTS_INTERVAL = 60.0
"""Seconds in which the log says once that sockets do not get events."""


class _User:
    """A user with sockets here.

    Args:
        interest: Brings what others ask about the user.
    """

    __slots__ = ("interest", "sessions")

    def __init__(self, interest: Closable) -> None:
        self.interest = interest
        self.sessions: set[Session] = set()


class Hub:
    """What all sockets of one event loop share.

    Args:
        connection: The loop's; the hub opens and closes it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.broker = broker = connection.broker
        self.gateway_id = new_member_id()
        """Names this gateway, which is one event loop of one process."""
        self.subscriptions = connection.subscriptions
        self.starting = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held by a socket while it starts; the others wait their turn."""
        self._starting_topics: dict[str, asyncio.Semaphore] = {}
        self.starts = Starts(STARTS_AT_ONCE)
        """Finds out where they begin."""
        self.cursors = Cursors(broker)
        self.events = SocketEvents(broker, self.gateway_id)
        self.watching = Watching(broker)
        self.rights = Rights(broker)
        """What sockets may do with topics."""
        self.casts = Casts(broker)
        self._revocations = Revocations(broker)
        self.presence = Presence(self)
        self._users: dict[Inbox, _User] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: set[asyncio.Task[None]] = set()  # short ones, kept from collection
        self._tells_of_events = -math.inf  # when the log may say again that one was skipped
        self._opened = False
        self.draining = False
        """Whether it is being closed or drained: no socket is accepted any more."""
        self._spread: float | None = None  # seconds over which clients come back, once draining
        self._letting_go: asyncio.Task[None] | None = None  # set by `drain`

    async def open(self) -> None:
        """Open the broker and start the background tasks; returns at once. Idempotent."""
        if self._opened:
            return
        self._opened = True
        for service in declared_services().services:  # zeros, until there are sockets
            for protocol in (RAW, SUBPROTOCOL, SSE):
                counters.gateway.sockets_of(service, protocol)
        log_fields = {"gateway": self.gateway_id}
        logger.info("starting the gateway with %s", self.broker.where, extra=log_fields)
        self._revocations.listen()
        self.watching.listen()
        self._tasks = [
            supervise(self.cursors.run, "wsgateway-cursors"),
            supervise(self._revocations.run, "wsgateway-revocations"),
            supervise(self.presence.rates.run, "wsgateway-rates"),
            self.presence.open(),
        ]
        at_shutdown(self.close)
        quieten()
        await self._connection.open()

    async def close(self) -> None:
        """Close the sockets, write the cursors, end the tasks, close the broker. Idempotent.

        Each step has a quarter of ``WSGATEWAY_CLOSE_TIMEOUT``; the last one is the server's.
        """
        if not self._opened:
            return
        self.draining = True
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._spread = None  # the rest come back all at once
        # A socket whose client does not read must not take the time that the cursors need
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                await asyncio.gather(*(self._shut(each) for each in self._sessions()))
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                if self._wanted:
                    await asyncio.wait(self._wanted)
                await self.cursors.close()
        self.presence.leave()
        self.watching.close()
        self.rights.close()
        for task in (*self._tasks, *self._wanted):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not answer
                await self._connection.close()

    def drain(self) -> None:
        """Take no new sockets, and close those that are open, spread over a time. Idempotent."""
        if not self.draining:
            logger.info("draining %d sockets", self.sockets, extra={"gateway": self.gateway_id})
            self.draining = True
            self._spread = 0.0  # for the clients: the closing is spread
            self._letting_go = self.keep(self._let_go())

    async def _let_go(self) -> None:
        """Close all sockets in random order, ``WSGATEWAY_DRAIN_RATE`` a second."""
        loop, sessions = asyncio.get_running_loop(), self._sessions()
        random.shuffle(sessions)
        begin = loop.time()
        for number, session in enumerate(sessions):
            await asyncio.sleep(begin + number / settings.DRAIN_RATE - loop.time())
            session.close_soon(CloseCode.SHUTTING_DOWN)

    def reconnect_after(self) -> float:
        """Return the seconds after which a client is to come back: random, by the rate allowed."""
        if self._spread is None:
            self._spread = self.sockets / settings.DRAIN_RATE
        return min(random.uniform(0.0, self._spread), MAX_AFTER)  # noqa: S311 - jitter, no secret

    async def _shut(self, session: Session) -> None:
        await session.close(CloseCode.SHUTTING_DOWN)
        await session.stop()

    def _sessions(self) -> list[Session]:
        return [each for user in self._users.values() for each in user.sessions]

    # -- sockets -------------------------------------------------------------------------

    @property
    def sockets(self) -> int:
        """How many sockets are attached."""
        return len(self._sessions())

    @property
    def inboxes(self) -> int:
        """How many inboxes they read."""
        return len(self._users)

    def users(self) -> Iterator[tuple[Inbox, Collection[Session]]]:
        """Yield the users who have sockets here, with their sockets."""
        for inbox, user in self._users.items():
            yield inbox, user.sessions

    def sessions_of(self, inbox: Inbox) -> Collection[Session]:
        """Return a user's sockets here."""
        user = self._users.get(inbox)
        return () if user is None else user.sessions

    def starting_of(self, service: str) -> asyncio.Semaphore:
        """Return what is held while somebody asks for a right to a topic.

        One for each service that is declared, so that an ``allow`` that takes long delays nobody
        else.
        """
        key = service if service in declared.topics else ""
        return self._starting_topics.setdefault(key, asyncio.Semaphore(STARTS_AT_ONCE))

    def require_open(self) -> None:
        """Refuse a socket that comes too late.

        Raises:
            IdentityRefused: The hub is being closed.
        """
        if self.draining:
            raise IdentityRefused(CloseCode.SHUTTING_DOWN, CloseCode.SHUTTING_DOWN.reason)

    def require_room(self, identity: Identity) -> None:
        """Refuse one socket more than a user may have.

        Raises:
            IdentityRefused: The user has too many sockets here.
        """
        limit = settings.MAX_CONNECTIONS_PER_USER
        is_one = not identity.is_anonymous  # who are many
        if limit and is_one and len(self.sessions_of(identity.inbox)) >= limit:
            raise IdentityRefused(
                CloseCode.TOO_MANY_CONNECTIONS,
                f"the user already has the maximum number of connections ({limit})",
                "close some, or raise WSGATEWAY_MAX_CONNECTIONS_PER_USER",
            )

    def attach(self, session: Session) -> None:
        """Add a socket; its live messages arrive from now on.

        Raises:
            IdentityRefused: The user has too many sockets here, or the hub is being closed.
        """
        self.require_open()  # since the handshake began; nobody would close the socket
        self.require_room(session.identity)
        inbox = session.inbox_subscription
        self.subscriptions.subscribe(inbox)
        inbox.cursor = self.cursors.acquire(inbox.key)
        user = self._users.get(session.inbox)
        if user is None:
            user = self._users[session.inbox] = _User(self.presence.hold(session.inbox))
        user.sessions.add(session)
        self._revocations.add(session)

    def renew(self, session: Session, identity: Identity) -> None:
        """Let *identity* be what the socket lives by, unless it has been detached."""
        if session in self.sessions_of(session.inbox):
            session.identity = identity
            self._revocations.discard(session)
            self._revocations.add(session)

    def detach(self, session: Session) -> set[asyncio.Task[None]]:
        """Remove a socket; return the tasks that write its cursors, as far as they are due."""
        user = self._users.get(session.inbox)
        if user is None or session not in user.sessions:
            return set()
        user.sessions.discard(session)
        if not user.sessions:
            del self._users[session.inbox]
            user.interest.close()
        self._revocations.discard(session)
        inbox = session.inbox_subscription
        self.subscriptions.unsubscribe(inbox)
        self.cursors.undrained.discard(inbox)
        save = self.cursors.release(inbox.cursor)
        return set() if save is None else {save}

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* beside everything else, safe from garbage collection."""
        return start(work, "wsgateway-hub", tasks=self._wanted)

    def note_skipped(
        self, message: Stored, problem: MalformedMessage, log_fields: Mapping[str, object]
    ) -> None:
        """Count and log a message that a socket does not get; events at most once a minute.

        A program that sends events sends many, each to all sockets of a user. Any other message
        is warned about once for all sockets that got it live: a topic may have thousands.
        """
        counters.gateway.skipped += 1
        level = logging.DEBUG if message.skipped else logging.WARNING
        message.skipped = True
        if isinstance(problem, NotForSockets):
            now = time.monotonic()
            level = logging.WARNING if now >= self._tells_of_events else logging.DEBUG
            if level == logging.WARNING:
                self._tells_of_events = now + EVENTS_INTERVAL
        offset, count = message.offset, counters.gateway.skipped
        if logger.isEnabledFor(level):
            log_fields = {**log_fields, "offset": offset}
            text = "skipped message %s (%s so far): %s"
            logger.log(level, text, offset, count, reason_of(problem), extra=log_fields)


_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}


def get_hub() -> Hub:
    """Return the running loop's hub, made at the first call; not opened."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        for known in list(_hubs):
            if known.is_closed():
                _hubs.pop(known, None)
        connection = runtime.own()
        connection.kept = True
        hub = _hubs[loop] = Hub(connection)
    return hub


def is_draining() -> bool:
    """Say whether a gateway of this process takes no more sockets. From any thread."""
    return any(hub.draining for loop, hub in list(_hubs.items()) if not loop.is_closed())
