"""Whose presence the sockets of an event loop watch.

All who watch a user share one subscription to that user's events, and one answer. An event only
says that something has changed: whether the user is online, the gateways are asked, because
another socket of theirs may be anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from wsgateway import counters
from wsgateway.exceptions import BrokerError, MalformedMessage, reason_of
from wsgateway.presence.users import RECHECK, find_online
from wsgateway.protocol.events import CONNECTED, parse_event
from wsgateway.protocol.strict_json import loads
from wsgateway.protocol.subjects import Inbox
from wsgateway.roll_call import RollCall
from wsgateway.supervision import start, supervise

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.bus import Closable, Handler

__all__ = ["Watcher", "Watching"]

logger = logging.getLogger("wsgateway")

SETTLE = 0.3
"""Seconds after a socket has gone until the gateways are asked: a page that is reloaded, or moves
on to the next one, is back by then."""
RETRY = 1.0
"""Seconds until they are asked again about a user of whom they did not know."""
SWEEP = 30.0
"""Seconds until they are asked again about everybody: an event can be lost."""
BATCH = 500
"""Users that are asked about at once."""


class Watcher(Protocol):
    """A socket that watches."""

    def tell(self, inbox: Inbox, online: bool | None) -> None:
        """Hear whether a user is online; called again with the same now and then."""

    def recheck(self, inbox: Inbox | None = None) -> None:
        """Find out whether it may still watch *inbox*; None: whom it watches at all."""


class _User:
    """A user who is watched."""

    __slots__ = ("answered", "asked", "due", "online", "subscription", "watchers")

    def __init__(self, subscription: Closable) -> None:
        self.subscription = subscription
        self.watchers: set[Watcher] = set()
        self.online: bool | None = None  # the last answer
        self.due = math.inf  # when to ask, by the loop's clock
        self.asked = 0  # counts what made the last answer doubtful
        self.answered = -1  # its value at the question of the last answer

    @property
    def is_known(self) -> bool:
        """Whether there was an answer, doubtful or not."""
        return self.answered >= 0


class Watching:
    """Tells sockets whether users are online. Call everything in the loop that opened the broker.

    Args:
        broker: Carries events and questions.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._users: dict[Inbox, _User] = {}
        self._owners: dict[Inbox, set[Watcher]] = {}  # sockets that watch somebody, by their user
        self.asking: set[Watcher] = set()
        """Sockets of which it is being found out whether they may watch somebody."""
        self._due: list[tuple[float, Inbox]] = []  # a heap; some are out of date
        self._news = asyncio.Event()  # something may be due earlier than `_run` knows
        self._tasks: list[asyncio.Task[None]] = []  # as long as anybody is watched
        self._questions: set[asyncio.Task[None]] = set()
        self._hooks: list[Closable] = []

    @property
    def users(self) -> int:
        """How many users are watched."""
        return len(self._users)

    # -- sockets -----------------------------------------------------------------------------

    def listen(self) -> None:
        """Hear from now on when rights have changed."""
        self._broker.listen(RECHECK, self._on_recheck)

    def _on_recheck(self, payload: bytes) -> None:
        try:
            service, user = loads(payload)
            inbox = Inbox(str(service), str(user))
        except (ValueError, TypeError, RecursionError):
            return
        for watcher in list(self._owners.get(inbox, ())):
            watcher.recheck()
        watchers = self._users[inbox].watchers if inbox in self._users else set()
        for watcher in watchers | self.asking:
            watcher.recheck(inbox)

    def join(self, owner: Inbox, watcher: Watcher) -> None:
        """Note that a socket of *owner* may watch somebody."""
        self._owners.setdefault(owner, set()).add(watcher)

    def leave(self, owner: Inbox, watcher: Watcher) -> None:
        """Note that it does not any more. Idempotent."""
        found = self._owners.get(owner, set())
        found.discard(watcher)
        if not found:
            self._owners.pop(owner, None)

    def add(self, inbox: Inbox, watcher: Watcher) -> None:
        """Tell *watcher* soon whether *inbox*'s user is online, and again when that changes."""
        user = self._users.get(inbox)
        if user is None:
            subject = self._broker.subjects.event(inbox)
            subscription = self._broker.bus.subscribe(subject, self._handler(inbox), optional=True)
            user = self._users[inbox] = _User(subscription)
            counters.gateway.watched += 1
            self._start()
            self._ask_in(0.0, inbox, user)
        is_new = watcher not in user.watchers
        user.watchers.add(watcher)
        if is_new and user.is_known:
            watcher.tell(inbox, user.online)

    def remove(self, inbox: Inbox, watcher: Watcher) -> None:
        """Tell *watcher* nothing more about *inbox*. Idempotent."""
        user = self._users.get(inbox)
        if user is None:
            return
        user.watchers.discard(watcher)
        if not user.watchers:
            user.subscription.close()
            del self._users[inbox]
            counters.gateway.watched -= 1
            if not self._users:
                self.close()

    def _start(self) -> None:
        if self._tasks:
            return
        self._hooks = [self._broker.on_ready(self._ask_all), self._broker.on_lost(self._doubt_all)]
        self._tasks = [
            supervise(self._run, "wsgateway-watching"),
            supervise(RollCall(self._broker, self._ask_all).run, "wsgateway-roll-call"),
        ]

    def close(self) -> None:
        """End the tasks. Idempotent."""
        for task in (*self._tasks, *self._questions):
            task.cancel()
        for hook in self._hooks:
            hook.close()
        self._tasks, self._hooks, self._due = [], [], []

    # -- when to ask -------------------------------------------------------------------------

    def _handler(self, inbox: Inbox) -> Handler:
        def on_event(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            user = self._users.get(inbox)
            if user is None:
                return
            try:
                came = parse_event(payload).event == CONNECTED
            except MalformedMessage:
                came = False  # whatever it was, the answer will be right
            if not came or not user.online or user.asked != user.answered:
                self._ask_in(0.0 if came else SETTLE, inbox, user)

        return on_event

    def _ask_all(self, delay: float = 0.0) -> None:
        for inbox, user in self._users.items():
            self._ask_in(delay, inbox, user)

    def _doubt_all(self) -> None:
        """Ask about everybody once the connection has had time to come back."""
        self._ask_all(RETRY)

    def _ask_in(self, delay: float, inbox: Inbox, user: _User) -> None:
        """Ask after *delay* seconds; an answer to an earlier question does not count any more."""
        user.asked += 1
        due = asyncio.get_running_loop().time() + delay
        if due < user.due:
            user.due = due
            heapq.heappush(self._due, (due, inbox))
            self._news.set()

    async def _run(self) -> None:
        """Ask about those who are due, until cancelled."""
        loop = asyncio.get_running_loop()
        sweep = loop.time() + SWEEP
        while True:
            if loop.time() >= sweep:
                self._ask_all()
                sweep = loop.time() + SWEEP
            self._news.clear()
            while batch := list(islice(self._take_due(loop.time()), BATCH)):
                start(self._ask(batch), "wsgateway-watched", tasks=self._questions)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(sweep, self._due[0][0] if self._due else sweep)):
                    await self._news.wait()

    def _take_due(self, now: float) -> Iterator[Inbox]:
        while self._due and self._due[0][0] <= now:
            due, inbox = heapq.heappop(self._due)
            user = self._users.get(inbox)
            if user is not None and user.due == due:
                user.due = math.inf
                yield inbox

    # -- answers -----------------------------------------------------------------------------

    async def _ask(self, inboxes: list[Inbox]) -> None:
        users = self._users  # without those whom nobody watches since they were due
        questions = {inbox: users[inbox].asked for inbox in inboxes if inbox in users}
        answers = await self._answers([*questions])
        for inbox, number in questions.items():
            user = self._users.get(inbox)
            if user is not None and user.asked == number:
                user.answered = number
                self._apply(inbox, user, answers.get(inbox))

    async def _answers(self, inboxes: list[Inbox]) -> Mapping[Inbox, bool | None]:
        """Return who is online; those of whom nobody knows may be missing."""
        try:
            return await find_online(self._broker, inboxes)
        except BrokerError as exc:
            logger.debug("cannot find out who is online: %s", reason_of(exc))
            return {}

    def _apply(self, inbox: Inbox, user: _User, online: bool | None) -> None:
        user.online = online
        if online is None:
            self._ask_in(RETRY, inbox, user)
        for watcher in list(user.watchers):
            watcher.tell(inbox, online)
