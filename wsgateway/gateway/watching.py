"""Which users and topics the sockets of an event loop watch.

All who watch one share one subscription to its events, and one answer. An event only says that
something has changed: whether the user is online, or who reads the topic, the gateways are asked,
because another socket of the same user may be anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from wsgateway import counters
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, MalformedMessage, reason_of
from wsgateway.presence.readers import find_readers
from wsgateway.presence.users import RECHECK, find_online
from wsgateway.protocol.events import CONNECTED, LEFT, parse_event
from wsgateway.protocol.readership import Present, Readership
from wsgateway.protocol.strict_json import loads
from wsgateway.protocol.subjects import Address, Inbox, Topic
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
PAUSE = 0.5
"""Seconds between two questions about a topic, so that a busy one costs two frames a second."""
LONG_PAUSE = 10.0
"""The same for one that so many read that they are counted, and not named."""
AT_ONCE = 16
"""Topics that are asked about at once."""


class Watcher(Protocol):
    """A socket that watches."""

    def tell(self, target: Address, state: bool | Present | None) -> None:
        """Hear whether a user is online, or who reads a topic; again with the same now and then."""

    def recheck(self, inbox: Inbox | None = None) -> None:
        """Find out whether it may still watch *inbox*; None: whom it watches at all."""


class _Watched:
    """A user or a topic that is watched."""

    __slots__ = ("answered", "asked", "due", "free", "state", "subscription", "watchers")

    def __init__(self, subscription: Closable) -> None:
        self.subscription = subscription
        self.watchers: set[Watcher] = set()
        self.state: bool | Present | None = None  # the last answer
        self.due = math.inf  # when to ask, by the loop's clock
        self.free = 0.0  # not to be asked about earlier
        self.asked = 0  # counts what made the last answer doubtful
        self.answered = -1  # its value at the question of the last answer

    @property
    def is_known(self) -> bool:
        """Whether there was an answer, doubtful or not."""
        return self.answered >= 0


class _WatchedTopic(_Watched):
    """A topic that is watched."""

    __slots__ = ("readership",)

    def __init__(self, subscription: Closable) -> None:
        super().__init__(subscription)
        self.readership = Readership(settings.OFFLINE_GRACE)

    @property
    def pause(self) -> float:
        """Seconds between two questions, at least."""
        return PAUSE if self.readership.is_listed else LONG_PAUSE


class Watching:
    """Tells sockets what they watch. Call everything in the loop that opened the broker.

    Args:
        broker: Carries events and questions.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._watched: dict[Address, _Watched] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)  # for questions about topics
        self._owners: dict[Inbox, set[Watcher]] = {}  # sockets that watch somebody, by their user
        self.asking: set[Watcher] = set()
        """Sockets of which it is being found out whether they may watch somebody."""
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Address]] = []  # a heap; some are out of date
        self._news = asyncio.Event()  # something may be due earlier than `_run` knows
        self._tasks: list[asyncio.Task[None]] = []  # as long as anybody is watched
        self._questions: set[asyncio.Task[None]] = set()
        self._hooks: list[Closable] = []

    @property
    def targets(self) -> int:
        """How many users and topics are watched."""
        return len(self._watched)

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
        watchers = self._watched[inbox].watchers if inbox in self._watched else set()
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

    def add(self, target: Address, watcher: Watcher) -> None:
        """Tell *watcher* soon about *target*, and again when that changes."""
        watched = self._watched.get(target)
        if watched is None:
            watched = self._begin(target)
            self._watched[target] = watched
            counters.gateway.watched += 1
            self._start()
            self._ask_in(0.0, target, watched)
        is_new = watcher not in watched.watchers
        watched.watchers.add(watcher)
        if is_new and watched.is_known:
            watcher.tell(target, watched.state)

    def _begin(self, target: Address) -> _Watched:
        subject, subscribe = self._broker.subjects.event(target), self._broker.bus.subscribe
        if isinstance(target, Topic):
            return _WatchedTopic(subscribe(subject, self._topic_handler(target), optional=True))
        return _Watched(subscribe(subject, self._handler(target), optional=True))

    def remove(self, target: Address, watcher: Watcher) -> None:
        """Tell *watcher* nothing more about *target*. Idempotent."""
        watched = self._watched.get(target)
        if watched is None:
            return
        watched.watchers.discard(watcher)
        if not watched.watchers:
            watched.subscription.close()
            del self._watched[target]
            counters.gateway.watched -= 1
            if not self._watched:
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
            user = self._watched.get(inbox)
            if user is None:
                return
            try:
                came = parse_event(payload).event == CONNECTED
            except MalformedMessage:
                came = False  # whatever it was, the answer will be right
            if not came or not user.state or user.asked != user.answered:
                self._ask_in(0.0 if came else SETTLE, inbox, user)

        return on_event

    def _topic_handler(self, topic: Topic) -> Handler:
        def on_event(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            watched = self._watched.get(topic)
            if not isinstance(watched, _WatchedTopic):
                return
            readership, due = watched.readership, None
            with contextlib.suppress(MalformedMessage):
                event = parse_event(payload)
                if event.event == LEFT:
                    inbox = Inbox(event.service, event.user)
                    readership.left(inbox, _now(), event.reconnect_after)
                    due = readership.due  # nobody has left before
            self._ask_in(0.0 if due is None else max(0.0, due - _now()), topic, watched)

        return on_event

    def _ask_all(self, delay: float = 0.0) -> None:
        for target, watched in self._watched.items():
            self._ask_in(delay, target, watched)

    def _doubt_all(self) -> None:
        """Ask about everybody once the connection has had time to come back."""
        self._ask_all(RETRY)

    def _ask_in(self, delay: float, target: Address, watched: _Watched) -> None:
        """Ask after *delay* seconds; an answer to an earlier question does not count any more.

        That of a topic still counts: in a busy one, there would never be one that does.
        """
        watched.asked += 1
        due = max(_now() + delay, watched.free)
        if due < watched.due:
            watched.due = due
            heapq.heappush(self._due, (due, next(self._numbers), target))
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
                users = [target for target in batch if isinstance(target, Inbox)]
                if users:
                    start(self._ask(users), "wsgateway-watched", tasks=self._questions)
                for target in batch:
                    if isinstance(target, Topic):
                        question = self._ask_topic(target)
                        start(question, "wsgateway-watched", tasks=self._questions)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(sweep, self._due[0][0] if self._due else sweep)):
                    await self._news.wait()

    def _take_due(self, now: float) -> Iterator[Address]:
        while self._due and self._due[0][0] <= now:
            due, _, target = heapq.heappop(self._due)
            watched = self._watched.get(target)
            if watched is not None and watched.due == due:
                watched.due = math.inf
                yield target

    # -- answers -----------------------------------------------------------------------------

    async def _ask(self, inboxes: list[Inbox]) -> None:
        users = self._watched  # without those whom nobody watches since they were due
        questions = {inbox: users[inbox].asked for inbox in inboxes if inbox in users}
        answers = await self._answers([*questions])
        for inbox, number in questions.items():
            user = self._watched.get(inbox)
            if user is not None and user.asked == number:
                user.answered = number
                online = answers.get(inbox)
                if online is None:
                    self._ask_in(RETRY, inbox, user)
                self._apply(inbox, user, online)

    async def _answers(self, inboxes: list[Inbox]) -> Mapping[Inbox, bool | None]:
        """Return who is online; those of whom nobody knows may be missing."""
        try:
            return await find_online(self._broker, inboxes)
        except BrokerError as exc:
            logger.debug("cannot find out who is online: %s", reason_of(exc))
            return {}

    async def _ask_topic(self, topic: Topic) -> None:
        watched = self._watched.get(topic)
        if not isinstance(watched, _WatchedTopic):
            return
        number, readership = watched.asked, watched.readership
        watched.free = _now() + watched.pause
        async with self._slots:
            try:
                found = await find_readers(self._broker, topic, None, readership.limit)
            except BrokerError as exc:
                logger.debug("cannot find out who reads %s: %s", topic, reason_of(exc))
                present = readership.unknown()
            else:
                users = None if found.after is not None else found.users
                present = readership.found(users, found.sockets, found.complete, _now())
        if self._watched.get(topic) is not watched:
            return
        watched.answered = number
        if not present.complete:
            self._ask_in(RETRY, topic, watched)
        elif readership.due is not None:
            self._ask_in(max(0.0, readership.due - _now()), topic, watched)
        if present is not watched.state:
            self._apply(topic, watched, present)

    def _apply(self, target: Address, watched: _Watched, state: bool | Present | None) -> None:
        watched.state = state
        for watcher in list(watched.watchers):
            watcher.tell(target, state)


def _now() -> float:
    return asyncio.get_running_loop().time()
