"""What all sockets of a loop share.

The `Hub` holds one live subscription per user, writes cursors, and looks for messages that the
live subscription missed.
"""

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
from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Position, Stored
from wsgateway.broker.recovery import Reached, find_lost
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
from wsgateway.protocol.v1 import MAX_AFTER, Reason
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["Hub", "get_hub"]

logger = logging.getLogger("wsgateway")

STARTS_AT_ONCE = 32
"""Sockets that find their beginning at the same time. When a gateway dies, thousands come at once;
all together they would take so long that each one's time-outs pass, and all would come again."""
EVENTS_INTERVAL = 60.0
"""Seconds in which the log says once that sockets do not get events."""
REFUSED_PAUSE = (0.05, 0.25)
"""Seconds after which something that failed is tried again, at the earliest."""


class _Shared:
    """What the sockets of one user share."""

    __slots__ = ("cursors", "heard", "sessions", "watch")

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self.cursors: dict[str, Cursor] = {}  # by device
        self.watch: Closable | None = None
        self.heard = False  # a live message came since the last sweep


class Hub:
    """What all sockets of one event loop share.

    Args:
        broker: The loop's broker; the hub opens and closes it.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.starting = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held by a socket while it starts; the others wait their turn."""
        self.counts: Counter[str] = Counter()
        """Messages skipped, by reason."""
        self.cursors = Cursors(broker)
        self.unsettled: set[Session] = set()
        """Sockets whose last messages may wait for the kernel."""
        self._revocations = Revocations(broker)
        self._users: dict[Inbox, _Shared] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: set[asyncio.Task[None]] = set()  # short ones, kept from collection
        self._tells_of_events = -math.inf  # when the log may say again that one was skipped
        self._swept = -1  # the stream's last offset at the last sweep
        self._resync = asyncio.Event()
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
        self.broker.on_ready(self.resync)
        self.broker.on_lost(self._suspect_end)
        self._revocations.listen()
        self._tasks = [
            self._keep_doing(self._save_cursors, "wsgateway-cursors"),
            self._keep_doing(self._sweep, "wsgateway-sweep"),
            self._keep_doing(self._revocations.run, "wsgateway-revocations"),
        ]
        at_shutdown(self.close)
        quieten()
        await self.broker.open()

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
                await self._flush_cursors()
        for task in (*self._tasks, *self._wanted):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not answer
                await runtime.close(self.broker)

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
                        await self.usable()

        return supervise(run, name)

    async def usable(self) -> None:
        """Wait until the broker is ready, however long that takes; a moment at least.

        A broker that is ready may refuse the same thing again, its permissions for example.
        """
        await asyncio.sleep(random.uniform(*REFUSED_PAUSE))  # noqa: S311 - jitter, no secret
        while True:
            try:
                await self.broker.wait_ready(60.0)
            except BrokerClosed:
                raise
            except BrokerError:
                await asyncio.sleep(0.2)
            else:
                return

    # -- sockets -------------------------------------------------------------------------

    @property
    def sockets(self) -> int:
        """How many sockets are attached."""
        return len(self._sessions())

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
        if shared.watch is None:
            self._users[session.inbox] = shared
            shared.watch = self.broker.watch(session.inbox, self._live(shared))
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
            if shared.watch is not None:
                shared.watch.close()
            del self._users[inbox]

    @staticmethod
    def _live(shared: _Shared) -> Callable[[Stored], None]:
        sessions = shared.sessions

        def on_message(stored: Stored) -> None:
            shared.heard = True
            for session in sessions:
                session.on_live(stored)

        return on_message

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

    async def _save_cursors(self) -> None:
        while True:
            await asyncio.sleep(settings.CURSOR_INTERVAL)
            await self._flush_cursors()

    async def _flush_cursors(self) -> None:
        for session in list(self.unsettled):
            session.settle()
        await self.cursors.flush()

    # -- what the live subscriptions missed ----------------------------------------------

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.SWEEP_INTERVAL):
                    await self._resync.wait()
            fresh = self._resync.is_set()
            self._resync.clear()
            try:
                await self._find_missed(everything=fresh)
            except BaseException:
                self._resync.set()
                raise

    async def _find_missed(self, *, everything: bool) -> None:
        """Announce to each inbox how far it reaches.

        Args:
            everything: Look at every inbox, not only at those that were quiet.
        """
        started = [each for each in self._sessions() if each.epoch]
        reached = [Reached.of(d) for d in started]
        position = await self.broker.position()
        replaced = [each for each in started if each.epoch != position.epoch]
        if replaced:
            logger.warning("the inbox stream was replaced; %s sockets start again", len(replaced))
        for session in replaced:
            session.begin_anew(position.epoch, Reason.EPOCH)
        same = [each for each in reached if each.owner.epoch == position.epoch]
        await self._forget_lost(same, position, thorough=everything)
        for each in reached:
            each.owner.window.suspect = None
        if position.last == self._swept and not everything:
            return
        if everything and position.first > self._swept + 1 > 0:
            # What came since the last sweep may have gone already, by its age.
            for session in started:
                session.check()
        quiet = [i for i, shared in self._users.items() if everything or not shared.heard]
        for shared in self._users.values():
            shared.heard = False
        for inbox, offset in (await self.broker.last_offsets(quiet)).items():
            for session in list(self._users[inbox].sessions if inbox in self._users else ()):
                session.announce(offset)
        self._swept = position.last

    def resync(self) -> None:
        """Look at every inbox soon, and at what the stream was."""
        self._resync.set()

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

    def _suspect_end(self) -> None:
        """Note how far every socket is: the server may come back without its last messages."""
        for session in self._sessions():
            if session.epoch:
                session.window.suspect_end()

    async def _forget_lost(
        self, reached: list[Reached[Session]], position: Position, *, thorough: bool
    ) -> None:
        """Let sockets begin again whose newest message the stream has lost."""
        lost = [each.owner for each in await find_lost(self.broker, reached, position, thorough)]
        if lost:
            logger.warning("the inbox stream lost its end; %s sockets start again", len(lost))
        for session in lost:
            if session._cursor is not None:
                session._cursor.lose()
                self.cursors.note((session.inbox, session.identity.device), session._cursor)
            session.begin_anew(position.epoch, Reason.AHEAD)
        if lost:
            await self._flush_cursors()


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the running loop's hub, made at the first call; not opened."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        connection = runtime.current()
        connection.kept = True
        hub = _hubs[loop] = Hub(connection.broker)
    return hub
