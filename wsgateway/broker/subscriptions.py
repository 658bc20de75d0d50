"""What reads inboxes and topics over one connection, and what the live messages left out.

The broker delivers live messages at most once: a message may be missed while the connection is
lost, or when too many come at once. It is still stored. A sweep compares how far each address
reaches with what its subscribers have heard of, and whether the stream is still the one that they
have read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol, Self, TypeVar

from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable
from wsgateway.broker.log import Log
from wsgateway.broker.messages import Position, Stored
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerClosed, BrokerError, reason_of
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import Address, Inbox
from wsgateway.protocol.v1 import Reason
from wsgateway.protocol.window import Window
from wsgateway.supervision import supervise

__all__ = ["LogSubscriptions", "Subscriber", "Subscriptions", "fetch", "wait_usable"]

logger = logging.getLogger("wsgateway.broker")

T = TypeVar("T")

MAX_SUSPECTS = 32
"""Subscribers whose newest message is gone, after which no other is asked whether it changed."""
LAG = Backoff(initial=0.02, cap=2.0, jitter=0.5)
"""Pauses before a lagging replica is asked again."""
MOST = 1000
"""Messages that are read at once, at most."""
REFUSED_PAUSE = (0.05, 0.25)
"""Seconds after which something that failed is tried again, at the earliest."""


class Subscriber(Protocol):
    """Reads one inbox or topic; what reads several is several subscribers.

    Everything is called in the connection's loop, often in the broker's read path: nothing may
    wait or raise.
    """

    @property
    def address(self) -> Address:
        """Which one; always the same."""

    @property
    def window(self) -> Window:
        """What live messages and announcements go to, even before it is started."""

    @property
    def epoch(self) -> str:
        """Life of the stream that the window's offsets belong to; empty before it is started."""

    def wake(self) -> None:
        """Look at the window: there may be a message to take, or something to fetch."""

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """Start the window again, now or soon: its offsets mean nothing any more.

        Until `epoch` or the window has changed, each sweep calls this again.

        Args:
            position: Where the stream stands now.
            reason: `Reason.EPOCH`: it is another stream. `Reason.AHEAD`: it has lost its end, and
                gives the same offsets to other messages.
            since: With `Reason.AHEAD`, when the newest message that the window knew of was
                stored; empty if that is not known.
        """


class Subscriptions:
    """The subscribers of one connection. Those of the same address share its live messages.

    Use it in the connection's loop. It looks for missed messages every ``WSGATEWAY_SWEEP_INTERVAL``
    seconds, and each time the broker becomes ready; in each log by itself, so that one that cannot
    be asked delays no other.

    Args:
        broker: Where the logs are.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._logs: dict[Log, LogSubscriptions] = {}  # what anybody has read; a process reads few
        broker.on_ready(self.resync)
        broker.on_lost(self._suspect_end)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Begin to wake *subscriber* for what is stored at its address from now on.

        Subscribe first; then find out where to begin, start the window, and fetch what it wants.
        So nothing falls between what is read and what comes live.
        """
        log = self._broker.log(subscriber.address)
        found = self._logs.get(log)
        if found is None:
            found = self._logs[log] = LogSubscriptions(self._broker, log)
        found.subscribe(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Call nothing of *subscriber* any more, except from a sweep under way. Idempotent."""
        found = self._logs.get(self._broker.log(subscriber.address))
        if found is not None:
            found.unsubscribe(subscriber)

    def resync(self) -> None:
        """Sweep soon, as after a reconnect."""
        for log in self._logs.values():
            log.resync()

    def close(self) -> None:
        """Unsubscribe everybody; before the broker is closed. Idempotent."""
        for log in self._logs.values():
            log.close()

    async def sweep(self, *, thorough: bool) -> None:
        """Look for what the live messages left out, once.

        Args:
            thorough: As after a reconnect: look at every address, not only at those that were
                quiet, and at whether a log has lost its end and is as long again.

        Raises:
            BrokerError: Not all is known now. Sweep again, thoroughly.
        """
        for log in list(self._logs.values()):
            await log.sweep(thorough=thorough)

    def _suspect_end(self) -> None:
        """Note how far everybody is: the server may come back without its last messages."""
        for log in self._logs.values():
            log.suspect_end()


class LogSubscriptions:
    """Those subscribers of one connection that read one log.

    Args:
        broker: Whose log it is.
        log: Which one.
    """

    def __init__(self, broker: Broker, log: Log) -> None:
        self._broker = broker
        self._log = log
        self._readers: dict[Address, _Readers] = {}
        self._resync = asyncio.Event()
        self._lock = asyncio.Lock()  # held by a sweep
        self._swept: Position | None = None  # at the last sweep
        self._skipped = False  # the last sweep left out addresses that were heard of
        self._sweeping: asyncio.Task[None] | None = None  # while anybody subscribes

    def subscribe(self, subscriber: Subscriber) -> None:
        """See `Subscriptions.subscribe`."""
        readers = self._readers.get(subscriber.address)
        if readers is None:
            readers = _Readers(self.resync)
            readers.watch = self._log.watch(subscriber.address, readers.on_message)
            self._readers[subscriber.address] = readers
        readers.subscribers.add(subscriber)
        if self._sweeping is None:
            self._sweeping = supervise(self._sweep, "wsgateway-sweep")

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """See `Subscriptions.unsubscribe`."""
        readers = self._readers.get(subscriber.address)
        if readers is None:
            return
        readers.subscribers.discard(subscriber)
        if not readers.subscribers:
            del self._readers[subscriber.address]
            readers.close()
        if not self._readers:
            self._stop_sweeping()

    def resync(self) -> None:
        """Sweep soon, thoroughly."""
        self._resync.set()

    def close(self) -> None:
        """Unsubscribe everybody. Idempotent."""
        self._stop_sweeping()
        for readers in self._readers.values():
            readers.close()
        self._readers.clear()

    async def sweep(self, *, thorough: bool) -> None:
        """See `Subscriptions.sweep`."""
        async with self._lock:
            started = [each for each in self._subscribers() if each.epoch]
            reached = [Reached.of(each) for each in started]
            position = await self._log.position()
            await self._restart(reached, position, thorough=thorough)
            for subscriber in started:
                subscriber.window.suspect = None
            swept = self._swept
            at_rest = swept and (position.epoch, position.last) == (swept.epoch, swept.last)
            if thorough:
                # What came since the last sweep may have gone already, by its age
                if swept is None or position.first > swept.last + 1:
                    _invalidate(started)
            elif at_rest and not self._skipped:
                return
            await self._announce(everything=thorough)
            self._swept = position

    async def _restart(self, reached: list[Reached], position: Position, *, thorough: bool) -> None:
        """Restart those whose stream was replaced, or has lost its end."""
        replaced = [each for each in reached if each.subscriber.epoch != position.epoch]
        same = [each for each in reached if each.epoch == position.epoch]
        name, count = self._log.name, len(replaced)
        if replaced:
            logger.warning("restarting %d readers because %r was replaced", count, name)
        for each in replaced:
            each.subscriber.restart(position, Reason.EPOCH, "")
        lost = await find_lost(self._log, same, position, thorough)
        if lost:
            logger.warning("restarting %d readers because %r lost its end", len(lost), name)
        for each in lost:
            each.subscriber.restart(position, Reason.AHEAD, each.time)

    async def _announce(self, *, everything: bool) -> None:
        """Tell subscribers how far their addresses reach; those of a quiet one, or everybody."""
        quiet = [key for key, readers in self._readers.items() if everything or not readers.heard]
        # What came last to the others may be missing: a gap would have shown, but not an end
        self._skipped = len(quiet) < len(self._readers)
        for readers in self._readers.values():
            readers.heard = False
        for key, offset in (await self._log.last_offsets(quiet)).items():
            found = self._readers.get(key)
            for subscriber in list(found.subscribers) if found else ():
                if subscriber.window.announce(offset):
                    subscriber.wake()

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.SWEEP_INTERVAL):
                    await self._resync.wait()
            thorough = self._resync.is_set()
            self._resync.clear()
            try:
                await self.sweep(thorough=thorough)
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("cannot look for what was missed: %s", reason_of(exc))
                self._resync.set()
                await wait_usable(self._broker)
            except BaseException:
                self._resync.set()
                raise

    def _stop_sweeping(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def suspect_end(self) -> None:
        """Note how far everybody is."""
        for subscriber in self._subscribers():
            if subscriber.epoch:
                subscriber.window.suspect_end()

    def _subscribers(self) -> list[Subscriber]:
        return [each for readers in self._readers.values() for each in readers.subscribers]


class _Readers:
    """The subscribers of one address."""

    __slots__ = ("_resync", "heard", "subscribers", "watch")

    def __init__(self, resync: Callable[[], None]) -> None:
        self.subscribers: set[Subscriber] = set()
        self.heard = False  # a live message came since the last sweep
        self.watch: Closable | None = None
        self._resync = resync

    def on_message(self, stored: Stored) -> None:
        """Take a live message, in the broker's read path."""
        self.heard = True
        for subscriber in self.subscribers:
            window = subscriber.window
            if window.live(stored):
                subscriber.wake()
            elif window.suspect is not None:
                self._resync()

    def close(self) -> None:
        """End the live messages."""
        if self.watch is not None:
            self.watch.close()


class Reached(NamedTuple):
    """How far a subscriber has come.

    Attributes:
        epoch: Life of the stream.
        offset: Of the newest message that its window knows of, or where it began.
        time: When that message was stored; empty if that is not known.
        subscriber: Whose window it is.
    """

    epoch: str
    offset: int
    time: str
    subscriber: Subscriber

    @classmethod
    def of(cls, subscriber: Subscriber) -> Self:
        """Return where *subscriber* is, or was when the stream's end became suspect."""
        window = subscriber.window
        offset, time = window.suspect or window.reached
        return cls(subscriber.epoch, offset, time, subscriber)


async def find_lost(
    log: Log, reached: Iterable[Reached], position: Position, thorough: bool
) -> list[Reached]:
    """Return those whose newest message is not, or may not be, the stream's any more.

    A server that loses power loses what it had not synced, and gives those offsets out again.

    Args:
        log: What they read.
        reached: Where each subscriber was before *position* was asked for.
        position: Where the stream stands.
        thorough: The stream may be as long again as it was: compare messages. The furthest one
            that is the same proves that nothing before it changed.
    """
    suspects: list[Reached] = []
    certain = False
    for each in sorted(reached, key=lambda each: each.offset, reverse=True):
        _, offset, time, subscriber = each
        if offset > position.last:
            certain = True
        elif not offset or not (thorough or certain):
            break
        elif time:
            batch = await log.read_after(subscriber.address, offset - 1, limit=1)
            found = next((m.time for m in batch.messages if m.offset == offset), "")
            if found == time:
                break
            certain = certain or bool(found)
        suspects.append(each)
        if not certain and len(suspects) >= MAX_SUSPECTS:
            break
    return suspects if certain else []


def _invalidate(subscribers: list[Subscriber]) -> None:
    for subscriber in subscribers:
        if subscriber.window.invalidate():
            subscriber.wake()


async def fetch(
    broker: Broker,
    subscriber: Subscriber,
    read: Callable[[int, int], Awaitable[T]],
    has_changed: Callable[[], bool],
) -> T | None:
    """Return what *read* finds for a window that wants a fetch; pass it to `Window.fetched`.

    Args:
        broker: What *read* reads from.
        subscriber: Whose window it is.
        read: Reads after an offset, so many messages at most.
        has_changed: Says whether what was read may be of another stream, or nobody wants it now.

    Returns:
        None if it counts for nothing. The window may want it again, and the broker is usable.

    Raises:
        BrokerClosed: It is closed.
    """
    if subscriber.window.reads_short:
        await asyncio.sleep(LAG.delay(subscriber.window.reads_short - 1))
        if has_changed():
            return None
    offset, room = subscriber.window.begin_fetch()
    try:
        found = await read(offset, min(room, MOST))
    except BaseException as exc:
        subscriber.window.fetch_failed()
        if not isinstance(exc, BrokerError) or isinstance(exc, BrokerClosed):
            raise
        address = subscriber.address
        log_fields = {"service": address.service, "offset": offset}
        if isinstance(address, Inbox):
            log_fields["user"] = address.user
        else:
            log_fields["topic"] = address.name
        logger.debug("cannot read messages now: %s", reason_of(exc), extra=log_fields)
        await wait_usable(broker)
        return None
    if has_changed():
        subscriber.window.fetch_failed()
        return None
    return found


async def wait_usable(broker: Broker) -> None:
    """Wait until *broker* is ready, however long that takes; a moment at least.

    A broker that is ready may refuse the same thing again, its permissions for example.

    Raises:
        BrokerClosed: It is closed.
    """
    await asyncio.sleep(random.uniform(*REFUSED_PAUSE))  # noqa: S311 - jitter, no secret
    while True:
        try:
            await broker.wait_ready(60.0)
        except BrokerClosed:
            raise
        except BrokerError:
            await asyncio.sleep(0.2)
        else:
            return
