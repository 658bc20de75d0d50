"""Who may read and write a topic, as a gateway asks it: tokens, ``allow``, and what was revoked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any, Protocol

from django.db import InterfaceError, OperationalError

from wsgateway import declared
from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable
from wsgateway.broker.follow import follow
from wsgateway.broker.messages import Stored
from wsgateway.broker.subscriptions import wait_usable
from wsgateway.conf import settings
from wsgateway.declared import source_of
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    MalformedMessage,
    reason_of,
)
from wsgateway.hooks import call_hook
from wsgateway.identity.base import Identity, shown
from wsgateway.protocol.endpoint import Access
from wsgateway.protocol.subjects import Topic
from wsgateway.supervision import is_cancelled, start, supervise
from wsgateway.topics.marks import INBOX, Mark, Marks, keep_for
from wsgateway.topics.registry import TopicService
from wsgateway.topics.tokens import ACCESSES, read_token

__all__ = ["Holder", "Rights", "log_undeclared"]

logger = logging.getLogger("wsgateway")

BATCH = 1000
"""Marks that are read at once."""
AT_ONCE = 16
"""Subscriptions whose rights are asked about again at the same time."""


class Holder(Protocol):
    """An open subscription: it holds a right to its topic."""

    @property
    def identity(self) -> Identity:
        """Whose it is."""

    @property
    def topic(self) -> Topic:
        """What it reads."""

    @property
    def is_reading(self) -> bool:
        """Whether the client is being sent the topic's messages."""

    def change_access(self, access: Access | None) -> None:
        """Go on with another right; None: end, the right has been withdrawn. Must not wait."""


class Rights:
    """Decides what the sockets of one event loop may do. Call everything in that loop.

    Args:
        broker: Brings what is revoked.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._marks = Marks()
        self._holders: dict[Topic, dict[Holder, Access]] = {}
        self._after, self._epoch = 0, ""  # up to where marks were read, in which life of the stream
        self._loaded = asyncio.Event()  # set once the marks that are kept are known
        self._lost: float | None = None  # when the connection was lost, monotonic
        self._hooks: list[Closable] = []
        self._following: asyncio.Task[None] | None = None  # while it is open
        self._tasks: set[asyncio.Task[Any]] = set()  # those that ask again

    def open(self) -> None:
        """Begin to follow what is revoked, if there are topics. Idempotent."""
        if declared.topics and self._following is None:
            broker = self._broker
            self._hooks = [broker.on_lost(self._on_lost), broker.on_ready(self._on_ready)]
            self.reread()

    def reread(self) -> None:
        """Read all marks that are kept, as after a reconnect.

        The stream may have lost its end and given the same offsets to other marks.
        """
        if self._following is not None:
            self._following.cancel()
        self._after = 0
        self._following = supervise(self._follow, "wsgateway-topic-rights")

    def close(self) -> None:
        """Follow nothing any more. Idempotent."""
        for hook in self._hooks:
            hook.close()
        for task in (self._following, *self._tasks):
            if task is not None:
                task.cancel()
        self._hooks, self._following = [], None

    # -- what a socket asks ------------------------------------------------------------------

    async def access(
        self, identity: Identity, topic: Topic, token: str | None = None
    ) -> Access | None:
        """Return what *identity* may do with *topic*; None: nothing, or there is no such topic.

        A valid token decides. Without one, Django does. What is revoked while that is found out
        has it found out again.

        Raises:
            BrokerUnavailable: It is not known yet what is revoked.
            InterfaceError, OperationalError: The database cannot be asked now.
        """
        service = declared.topics.get(topic.service)
        if service is None or "\0" in topic.name:  # databases choke on it
            return None
        await self._wait_loaded()
        while True:
            number = self._marks.number(topic, identity.inbox)
            grant = read_token(token, topic, identity.inbox) if token else None
            if grant and self._marks.allow(grant.issued, topic, identity.inbox):
                return grant.access
            access = await _ask(service, identity, topic)
            if number == self._marks.number(topic, identity.inbox):
                return access

    async def acquire(self, holder: Holder, token: str | None = None) -> Access | None:
        """Do what `access` does, and tell *holder* from then on when its right changes.

        Nothing is told before this has returned. Call `release` at the end, whatever the answer.
        It raises what `access` does.
        """
        access = await self.access(holder.identity, holder.topic, token)
        if access is not None:
            self.hold(holder, access)
        return access

    def hold(self, holder: Holder, access: Access) -> None:
        """Tell *holder* from now on when its right changes, which another holder has just now."""
        self._holders.setdefault(holder.topic, {})[holder] = access

    def release(self, holder: Holder) -> None:
        """Tell *holder* nothing more. Idempotent."""
        holders = self._holders.get(holder.topic, {})
        holders.pop(holder, None)
        if not holders:
            self._holders.pop(holder.topic, None)

    def holders_of(self, topic: Topic) -> Collection[Holder]:
        """Return those who hold a right to *topic*; some of them may not have begun to read."""
        return self._holders.get(topic, {}).keys()

    async def _wait_loaded(self) -> None:
        self.open()
        if self._loaded.is_set():
            return
        try:
            async with asyncio.timeout(settings.BROKER_TIMEOUT):
                await self._loaded.wait()
        except TimeoutError:
            text = f"cannot read from {self._broker.where} which rights to topics are revoked"
            raise BrokerUnavailable(text) from None

    # -- what is revoked ---------------------------------------------------------------------

    async def _follow(self) -> None:
        with contextlib.suppress(BrokerClosed):
            await self._load()
            following = follow(self._broker, INBOX, self._after, self._on_replaced)
            async with aclosing(following) as messages:
                async for stored in messages:
                    self._after = stored.offset
                    mark = _mark_in(stored)
                    if mark is not None and self._marks.add(mark):
                        self._on_mark(mark)

    async def _load(self) -> None:
        """Read the marks that are kept, and do what the new ones say."""
        while True:
            try:
                await self._broker.wait_ready()
                position = await self._broker.inboxes.position()
                kept = [stored async for stored in self._kept()]
                break
            except BrokerError:
                await wait_usable(self._broker)
        self._epoch = self._epoch or position.epoch
        self._take_kept(kept, is_full=0 < position.max_messages <= len(kept))
        self._loaded.set()
        if self._epoch != self._broker.inboxes.epoch:
            self._on_replaced()

    async def _kept(self) -> AsyncIterator[Stored]:
        after, more = 0, True
        while more:
            batch = await self._broker.inboxes.read_after(INBOX, after, limit=BATCH)
            for stored in batch.messages:
                after = stored.offset
                yield stored
            more = batch.more

    def _take_kept(self, kept: list[Stored], *, is_full: bool) -> None:
        """Do what those marks say that are new.

        Args:
            kept: All messages of the inbox.
            is_full: Whether older ones had to go. If the oldest is new, so were others perhaps.
        """
        self._after = kept[-1].offset if kept else 0
        for mark in filter(None, map(_mark_in, kept)):
            is_new = self._marks.add(mark)
            if is_new and is_full:
                self._marks.distrust(mark.time)
                self._ask_again(self._everybody())
            is_full = False
            if is_new:
                self._on_mark(mark)

    def _on_replaced(self) -> None:
        """Marks are gone with the stream: trust no token, and ask about every subscription."""
        self._after, self._epoch = 0, self._broker.inboxes.epoch
        self._marks.distrust(time.time())
        self._ask_again(self._everybody())

    def _on_lost(self) -> None:
        self._lost = self._lost or time.monotonic()

    def _on_ready(self) -> None:
        lost, self._lost = self._lost, None
        if lost is None:
            return
        self.reread()
        if time.monotonic() - lost > keep_for() / 2:
            self._ask_again(self._everybody())  # some marks may have come and gone

    def _everybody(self) -> list[Holder]:
        return [holder for holders in self._holders.values() for holder in holders]

    def _on_mark(self, mark: Mark) -> None:
        whom: Iterable[Holder] = self._everybody()
        if mark.name is not None:
            whom = self._holders.get(Topic(mark.service, mark.name), ())
        holders = [each for each in whom if mark.covers(each.topic, each.identity.inbox)]
        if mark.ask:
            self._ask_again(holders)
            return
        for holder in holders:
            self._change(holder, None)

    def _ask_again(self, holders: Collection[Holder]) -> None:
        if holders:
            start(self._ask_about(iter(holders)), "wsgateway-topic-recheck", tasks=self._tasks)

    async def _ask_about(self, holders: Iterator[Holder]) -> None:
        async def work() -> None:
            for holder in holders:
                if not self._holds(holder):
                    continue
                try:
                    access = await self.access(holder.identity, holder.topic)
                except (InterfaceError, OperationalError):  # it is logged
                    access = None
                self._change(holder, access)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    def _holds(self, holder: Holder) -> bool:
        return holder in self._holders.get(holder.topic, ())

    def _change(self, holder: Holder, access: Access | None) -> None:
        """Tell *holder* about its right, if that is another one than before."""
        if not self._holds(holder) or self._holders[holder.topic][holder] == access:
            return
        if access is None:
            self.release(holder)
        else:
            self._holders[holder.topic][holder] = access
        try:
            holder.change_access(access)
        except Exception:  # the others must hear of it all the same
            logger.exception("cannot change the right to topic %s", holder.topic)


def _mark_in(stored: Stored) -> Mark | None:
    """Return the mark that *stored* is; None if it is not one."""
    try:
        return Mark.decode(stored.payload)
    except MalformedMessage as exc:
        logger.warning(
            "skipped message %d: %s", stored.offset, reason_of(exc), extra={"offset": stored.offset}
        )
        return None


def log_undeclared(topic: Topic, identity: Identity) -> None:
    """Say why nobody can read a topic; the client may not learn it."""
    nearest = get_close_matches(topic.service, declared.topics, n=1)
    logger.info(
        "refused topic %r to %r: no @topic declares %r%s",
        str(topic),
        identity.user,
        topic.service,
        f"; did you mean {nearest[0]!r}?" if nearest else "",
        extra={"topic": str(topic), "service": identity.service, "user": identity.user},
    )


async def _ask(service: TopicService, identity: Identity, topic: Topic) -> Access | None:
    """Return what ``allow`` says; None if it fails, or says something else.

    Raises:
        InterfaceError, OperationalError: The database cannot be asked now, which says nothing
            about the right.
    """
    log_fields = {"topic": str(topic), "service": identity.service, "user": identity.user}
    try:
        allowed = await call_hook(service.allow, identity, topic.name)
    except (Exception, asyncio.CancelledError, SystemExit) as exc:
        _require_wanted()
        logger.exception("refused topic %r: its allow failed", str(topic), extra=log_fields)
        if isinstance(exc, (InterfaceError, OperationalError)):
            raise
        return None
    _require_wanted()
    if allowed in ACCESSES:
        access: Access = allowed
        return access
    if not allowed:
        text = "refused topic %r to %r: %s returned %s"
        source = source_of(service.allow)
        logger.info(text, str(topic), identity.user, source, shown(allowed), extra=log_fields)
        return None
    logger.error(
        "refused topic %r: its allow, %s, returned %s. Return 'read', 'write' or None",
        str(topic),
        source_of(service.allow),
        shown(allowed),
        extra=log_fields,
    )
    return None


def _require_wanted() -> None:
    """End a task that was cancelled, whatever ``allow`` made of that: nobody wants the answer."""
    if is_cancelled():
        raise asyncio.CancelledError
