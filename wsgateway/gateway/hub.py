"""The registry of the sockets of an event loop, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from wsgateway.broker import runtime
from wsgateway.broker.subscriptions import wait_usable
from wsgateway.conf import settings
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    IdentityRefused,
    MalformedMessage,
)
from wsgateway.gateway.cursors import Cursor, Cursors
from wsgateway.gateway.daphne import at_shutdown, quieten
from wsgateway.gateway.revocation import Revocations
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import NotForSockets
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import MAX_AFTER
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.gateway.session import Session

__all__ = ["Hub", "get_hub"]

logger = logging.getLogger("wsgateway")

STARTS_AT_ONCE = 32
"""Sockets that find their beginning at the same time. When a gateway dies, thousands come at once;
all together they would take so long that each one's time-outs pass, and all would come again."""
EVENTS_INTERVAL = 60.0
"""Seconds in which the log says once that sockets do not get events."""


class _Shared:
    """What the sockets of one user share."""

    __slots__ = ("cursors", "sessions")

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self.cursors: dict[str, Cursor] = {}  # by device


class Hub:
    """What all sockets of one event loop share.

    Args:
        connection: The loop's; the hub opens and closes it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.broker = broker = connection.broker
        self.subscriptions = connection.subscriptions
        self.starting = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held by a socket while it starts; the others wait their turn."""
        self.counts: Counter[str] = Counter()
        """Messages skipped, by reason."""
        self.cursors = Cursors(broker)
        self.unsettled: set[Session] = set()
        """Sockets whose last messages may wait for the kernel."""
        self._save_now = asyncio.Event()  # cursors, without waiting for their interval
        self._revocations = Revocations(broker)
        self._users: dict[Inbox, _Shared] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: set[asyncio.Task[None]] = set()  # short ones, kept from collection
        self._tells_of_events = -math.inf  # when the log may say again that one was skipped
        self._opened = False
        self.draining = False
        """Whether it is being closed: no socket is accepted any more."""
        self._spread: float | None = None  # seconds over which clients come back, once draining

    async def open(self) -> None:
        """Open the broker and start the background tasks; returns at once. Idempotent."""
        if self._opened:
            return
        self._opened = True
        logger.info("the gateway starts; its broker is %s", self.broker.where)
        self._revocations.listen()
        self._tasks = [
            self._keep_doing(self._save_cursors, "wsgateway-cursors"),
            self._keep_doing(self._revocations.run, "wsgateway-revocations"),
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
        # A socket whose client does not read must not take the time that the cursors need
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                await asyncio.gather(*(self._shut(each) for each in self._sessions()))
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                if self._wanted:
                    await asyncio.wait(self._wanted)
                await self.flush_cursors()
        for task in (*self._tasks, *self._wanted):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not answer
                await self._connection.close()

    def reconnect_after(self) -> float:
        """Return the seconds after which a client is to come back: random, by the rate allowed."""
        if self._spread is None:
            self._spread = self.sockets / settings.DRAIN_RATE
        return min(random.uniform(0.0, self._spread), MAX_AFTER)  # noqa: S311 - jitter, no secret

    async def _shut(self, session: Session) -> None:
        await session.socket.close(CloseCode.SHUTTING_DOWN)
        await session.stop()

    def _sessions(self) -> list[Session]:
        return [each for shared in self._users.values() for each in shared.sessions]

    def _keep_doing(self, work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        """Run *work* for ever, in a task; while the broker is away it waits."""

        async def run() -> None:
            with contextlib.suppress(BrokerClosed):
                while True:
                    try:
                        await work()
                    except BrokerClosed:
                        raise
                    except BrokerError as exc:
                        logger.debug("%s waits for the broker: %s", name, exc)
                        await wait_usable(self.broker)

        return supervise(run, name)

    # -- sockets -------------------------------------------------------------------------

    @property
    def sockets(self) -> int:
        """How many sockets are attached."""
        return len(self._sessions())

    @property
    def inboxes(self) -> int:
        """How many inboxes they read."""
        return len(self._users)

    def require_open(self) -> None:
        """Refuse a socket that comes too late.

        Raises:
            IdentityRefused: The hub is being closed.
        """
        if self.draining:
            raise IdentityRefused(CloseCode.SHUTTING_DOWN, CloseCode.SHUTTING_DOWN.reason)

    def attach(self, session: Session) -> Cursor:
        """Add a socket; its live messages arrive from now on.

        Raises:
            IdentityRefused: The user has too many sockets here, or the hub is being closed.
        """
        self.require_open()  # since the handshake began; nobody would close the socket
        shared = self._users.get(session.inbox) or _Shared()
        limit = settings.MAX_CONNECTIONS_PER_USER
        if limit and len(shared.sessions) >= limit:
            raise IdentityRefused(
                CloseCode.TOO_MANY_CONNECTIONS,
                f"the user already has the maximum number of connections ({limit})",
                "close some, or raise WSGATEWAY_MAX_CONNECTIONS_PER_USER",
            )
        self.subscriptions.subscribe(session)
        self._users[session.inbox] = shared
        shared.sessions.add(session)
        self._revocations.add(session)
        cursor = shared.cursors.setdefault(session.identity.device, Cursor())
        cursor.sockets += 1
        return cursor

    def detach(self, session: Session) -> asyncio.Task[None] | None:
        """Remove a socket; return the task that writes its cursor, if that has to be done."""
        shared = self._users.get(session.inbox)
        if shared is None or session not in shared.sessions:
            return None
        shared.sessions.discard(session)
        self.subscriptions.unsubscribe(session)
        self.unsettled.discard(session)
        self._revocations.discard(session)
        cursor = shared.cursors[session.identity.device]
        cursor.sockets -= 1
        if cursor.sockets == 0 and cursor.due:
            return self.keep(self._save_and_forget(session.inbox, session.identity.device))
        self._forget(session.inbox, session.identity.device)
        return None

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* beside everything else, safe from garbage collection."""
        task = asyncio.create_task(work)
        self._wanted.add(task)
        task.add_done_callback(self._wanted.discard)
        return task

    async def _save_and_forget(self, inbox: Inbox, device: str) -> None:
        """Write the last cursor; until then a new socket finds it in memory."""
        shared = self._users.get(inbox)
        cursor = None if shared is None else shared.cursors.get(device)
        if cursor is None:  # a socket that came and went meanwhile has done it
            return
        try:
            await self.cursors.save((inbox, device), cursor)
        except BrokerError as exc:
            logger.info("a cursor was not written, so messages may arrive twice: %s", exc)
        finally:
            self._forget(inbox, device)

    def _forget(self, inbox: Inbox, device: str) -> None:
        shared = self._users.get(inbox)
        if shared is None:
            return
        cursor = shared.cursors.get(device)
        if cursor is not None and cursor.sockets == 0:
            del shared.cursors[device]
            self.cursors.forget((inbox, device))
        if not shared.sessions and not shared.cursors:
            del self._users[inbox]

    # -- cursors -------------------------------------------------------------------------

    def confirmed(self, session: Session, offset: int) -> None:
        """Note a device's progress; it is written within ``WSGATEWAY_CURSOR_INTERVAL``."""
        cursor = session._cursor
        if cursor is None:
            return
        cursor.enter(session.epoch)
        if offset > cursor.confirmed:
            cursor.confirmed = offset
            self.cursors.note((session.inbox, session.identity.device), cursor)

    def lost(self, session: Session) -> None:
        """Forget a device's progress: the stream gives its offsets to other messages now."""
        if session._cursor is not None:
            session._cursor.lose()
            self.cursors.note((session.inbox, session.identity.device), session._cursor)
            self._save_now.set()

    async def _save_cursors(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.CURSOR_INTERVAL):
                    await self._save_now.wait()
            self._save_now.clear()
            await self.flush_cursors()

    async def flush_cursors(self) -> None:
        """Store the cursors that have moved."""
        for session in list(self.unsettled):
            session.settle()
        await self.cursors.flush()

    def note_skipped(self, offset: int, problem: MalformedMessage) -> None:
        """Count and log a message that a socket does not get; events at most once a minute.

        A program that sends events sends many, each to all sockets of a user.
        """
        self.counts["malformed"] += 1
        level = logging.WARNING
        if isinstance(problem, NotForSockets):
            now = time.monotonic()
            level = logging.WARNING if now >= self._tells_of_events else logging.DEBUG
            if level == logging.WARNING:
                self._tells_of_events = now + EVENTS_INTERVAL
        count = self.counts["malformed"]
        logger.log(level, "skipped message %s (%s so far): %s", offset, count, problem)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the running loop's hub, made at the first call; not opened."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        connection = runtime.current()
        connection.kept = True
        hub = _hubs[loop] = Hub(connection)
    return hub
