"""How a durable group's messages reach a member: read from the inbox stream, in its order.

Each member has its own position. What does not fit its mailbox waits in the stream, so nobody
misses anything because of capacity, expiry, a reconnect or a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref
from typing import TYPE_CHECKING, Any

from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Reached, find_lost
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.window import Window, later
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.layer.connection import LayerConnection
    from wsgateway.layer.mailbox import Mailbox

__all__ = ["DurableItem", "Subscription"]

logger = logging.getLogger("wsgateway.layer")


class DurableItem:
    """A stored message in a member's mailbox."""

    __slots__ = ("life", "stored", "subscription")

    def __init__(self, subscription: Subscription, stored: Stored, life: int) -> None:
        self.subscription = subscription
        self.stored = stored
        self.life = life

    def take(self) -> Stored:
        """Return the message and make room for another. Call it once, from any thread."""
        self.subscription.confirm(self.stored.offset, self.life)
        return self.stored


class Attachment:
    """A subscription on one connection, until it is closed or attached again."""

    __slots__ = ("connection", "subscription")

    def __init__(self, subscription: Subscription, connection: LayerConnection) -> None:
        self.subscription = subscription
        self.connection = connection

    def is_current(self) -> bool:
        """Whether the subscription is here, and not somewhere else by now."""
        return self.subscription.attachment is self

    def close(self) -> None:
        """End it, in the connection's loop. Idempotent."""
        watcher = _watchers.get(self.connection)
        if watcher is not None:
            watcher.remove(self)
        if self.is_current():
            self.subscription.detach()


class _Watch:
    """One inbox' live messages and the subscriptions that share them."""

    def __init__(self, connection: LayerConnection, inbox: Inbox) -> None:
        self.attachments: list[Attachment] = []
        self._interest = connection.broker.watch(inbox, self._on_message)

    def _on_message(self, stored: Stored) -> None:
        for attachment in self.attachments:
            if attachment.is_current():
                attachment.subscription.on_live(stored)

    def close(self) -> None:
        self._interest.close()


class _Watcher:
    """All durable groups of one connection: shares subscriptions, looks for what they missed."""

    def __init__(self, connection: LayerConnection) -> None:
        self._connection = connection
        self._watches: dict[Inbox, _Watch] = {}
        self._epoch = ""
        self._sweeping: asyncio.Task[None] | None = None
        self._look = asyncio.Event()  # set on a reconnect
        self._thorough = False  # messages must be compared: the stream's end is in doubt
        self._hooks: list[Closable] = []

    def add(self, attachment: Attachment) -> None:
        inbox = attachment.subscription.inbox
        watch = self._watches.get(inbox)
        if watch is None:
            watch = self._watches[inbox] = _Watch(self._connection, inbox)
        watch.attachments.append(attachment)
        if self._sweeping is None:
            broker = self._connection.broker
            self._hooks = [broker.on_ready(self._look.set), broker.on_lost(self._suspect_end)]
            self._sweeping = supervise(self._sweep, "wsgateway-layer-sweep")

    def remove(self, attachment: Attachment) -> None:
        inbox = attachment.subscription.inbox
        watch = self._watches.get(inbox)
        if watch is None or attachment not in watch.attachments:
            return
        watch.attachments.remove(attachment)
        if not watch.attachments:
            del self._watches[inbox]
            watch.close()
        if not self._watches and self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
            for hook in self._hooks:
                hook.close()

    async def _sweep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(settings.SWEEP_INTERVAL):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._thorough = self._thorough or self._look.is_set()
            self._look.clear()
            try:
                await self._find_missed()
            except BrokerError as exc:
                logger.debug("cannot look for missed messages: %s", exc)
                if self._connection.bus.is_open:
                    await asyncio.sleep(0.5)
                    self._look.set()

    async def _find_missed(self) -> None:
        broker, thorough = self._connection.broker, self._thorough
        reached = [Reached.of(subscription) for subscription in self._subscriptions()]
        position = await broker.position()
        if self._epoch and position.epoch != self._epoch:
            logger.warning("the inbox stream was replaced; durable groups start at its beginning")
            for subscription in self._subscriptions():
                subscription.restart(0)
        else:
            for offset, time, subscription in await find_lost(broker, reached, position, thorough):
                logger.warning("the inbox stream lost its end before %s", offset)
                # Where offsets were given out again is not known, but what is newer is.
                subscription.restart(0 if time else position.last, since=time)
        self._epoch, self._thorough = position.epoch, False
        for each in reached:
            each.owner.window.suspect = None
        offsets = await self._connection.broker.last_offsets(list(self._watches))
        for subscription in self._subscriptions():
            subscription.begin()
            if subscription.inbox in offsets:
                subscription.announce(offsets[subscription.inbox])

    def look(self) -> None:
        """Look for what is missing, and at what the stream was, soon."""
        self._look.set()

    def _suspect_end(self) -> None:
        """Note how far each subscription is: the server may come back without its last messages."""
        for subscription in self._subscriptions():
            subscription.window.suspect_end()

    def _subscriptions(self) -> list[Subscription]:
        return [
            attachment.subscription
            for watch in self._watches.values()
            for attachment in watch.attachments
            if attachment.is_current()
        ]


_watchers: weakref.WeakKeyDictionary[LayerConnection, _Watcher] = weakref.WeakKeyDictionary()


def _watcher_of(connection: LayerConnection) -> _Watcher:
    watcher = _watchers.get(connection)
    if watcher is None:
        watcher = _watchers[connection] = _Watcher(connection)
    return watcher


class Subscription:
    """Brings a durable group's messages into one member's mailbox, in order, none left out.

    Keeps its position when it moves to another connection.

    Args:
        inbox: Where the group is stored.
        mailbox: The member's; its capacity is how many messages may wait there.
    """

    def __init__(self, inbox: Inbox, mailbox: Mailbox[Any]) -> None:
        self.inbox = inbox
        self.window = Window(mailbox.capacity)
        self.attachment: Attachment | None = None
        """Where it is now."""
        self._mailbox = mailbox
        self._task: asyncio.Task[None] | None = None  # starts or fetches
        self._started: asyncio.Future[None] | None = None  # done once the position is known
        self._origin = math.inf  # offset after which it begins; the first loop that asked counts
        self._epoch = ""  # the stream's, while it rests
        self._life = 0  # changes when offsets begin to mean something else
        self._since = ""  # what was stored until then, the member has had before
        self._taken = 0  # offset up to which the member has taken everything
        self._backoff = Backoff(0.02, 2.0, 1.0, jitter=0.5)

    def attach(self, connection: LayerConnection) -> None:
        """Begin, or go on where it was, in the running loop, which is *connection*'s."""
        self.attachment = here = Attachment(self, connection)
        self._task = None  # if it still runs, in a loop that stands still, it ends by itself
        _watcher_of(connection).add(here)
        if self._started is None or not self._started.done():
            self._started = None
            self.begin()
        elif self._epoch and self._epoch != connection.broker.epoch:
            self.restart(0)  # nobody told it that the stream is another one
        else:
            self.window.confirm(self._taken)
            self.window.fetch_failed()  # whatever was under way: fetch after the position
            self._step()
        self._epoch = ""

    def begin(self) -> None:
        """Find out where to begin, if an earlier attempt has failed. Idempotent."""
        here = self.attachment
        if self._started is None and here is not None:
            self._started = here.connection.loop.create_future()
            self._spawn(self._start(here))

    def detach(self) -> None:
        """Stop; `attach` goes on."""
        self.attachment = None
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """Stop for good, and free what the member has not taken."""
        if self.attachment is not None:
            self.attachment.close()
        self._mailbox.remove(
            lambda item: isinstance(item, DurableItem) and item.subscription is self
        )

    def rest(self) -> None:
        """Stop and free what the member has not taken; `attach` brings it again."""
        self._epoch = self.attachment.connection.broker.epoch if self.attachment else self._epoch
        self.end()
        self.window.restart(self._taken)

    async def started(self) -> None:
        """Wait until everything stored from now on is sure to come.

        Raises:
            BrokerError: The stream could not be asked.
        """
        self.begin()
        if self._started is not None:
            await asyncio.shield(self._started)

    async def _start(self, here: Attachment) -> None:
        started = self._started
        assert started is not None
        try:
            await here.connection.broker.wait_ready()
            position = await here.connection.broker.position()
        except BaseException as exc:
            if self._started is started:
                self._started = None
            if not started.done():
                started.set_exception(exc if isinstance(exc, Exception) else BrokerError("closed"))
                started.exception()  # nobody may be waiting
            if not isinstance(exc, BrokerError):
                raise
            return
        self._origin = min(self._origin, position.last)
        self._taken = max(self._taken, int(self._origin))
        if here.is_current():  # otherwise the loop where it is now begins there
            self.window.start(int(self._origin))
            self._task = None
            self._step()
        if not started.done():
            started.set_result(None)

    # -- messages ------------------------------------------------------------------------

    def on_live(self, stored: Stored) -> None:
        """Take a message that was just stored."""
        if self.window.live(stored):
            self._step()
        elif self.window.suspect is not None and self.attachment is not None:
            watcher = _watchers.get(self.attachment.connection)
            if watcher is not None:
                watcher.look()

    def announce(self, offset: int) -> None:
        """Record that the group's messages reach to *offset*."""
        if self.window.announce(offset):
            self._step()

    def restart(self, offset: int, since: str = "") -> None:
        """Begin again after *offset*: the stream is another one, or has lost its end.

        Args:
            offset: Of the first message that is not wanted.
            since: The member has had everything up to that time; empty: nothing.
        """
        self._life += 1
        self._since = since
        self._taken = offset
        self.window.restart(offset)
        self._step()

    def confirm(self, offset: int, life: int) -> None:
        """Make room: the member has taken the message at *offset*. From any thread."""
        if life != self._life:
            return  # it is of the stream before
        self._taken = max(self._taken, offset)
        here = self.attachment
        if here is None:
            return
        if asyncio._get_running_loop() is here.connection.loop:
            self._confirm(here, offset, life)
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed; `attach` makes up for it
            here.connection.loop.call_soon_threadsafe(self._confirm, here, offset, life)

    def _confirm(self, here: Attachment, offset: int, life: int) -> None:
        if not here.is_current() or life != self._life:
            return
        self.window.confirm(offset)
        if self.window.wants_fetch:
            self._step()

    def _step(self) -> None:
        self._deliver()
        if self.window.wants_fetch and self.attachment is not None and self._idle():
            self._spawn(self._fetch(self.attachment))

    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    def _spawn(self, coroutine: Any) -> None:
        self._task = asyncio.create_task(coroutine, name="wsgateway-layer-subscription")

    async def _fetch(self, here: Attachment) -> None:
        read_after = here.connection.broker.read_after
        attempt = 0
        while here.is_current() and self.window.wants_fetch:
            offset, limit = self.window.begin_fetch()
            life = self._life
            try:
                batch = await read_after(self.inbox, offset, limit=min(limit, 1000))
            except BaseException as exc:
                if here.is_current():  # otherwise another loop has the window
                    self.window.fetch_failed()
                if not isinstance(exc, BrokerError):
                    raise
                logger.debug("cannot read %s: %s", self.inbox, exc)
            else:
                if not here.is_current():
                    return
                if life != self._life:
                    self.window.fetch_failed()  # what was read may be of either stream
                    continue
                self.window.fetched(batch.messages, more=batch.more)
                self._deliver()
                if not self.window.lagging:
                    attempt = 0
                    continue
            await asyncio.sleep(self._backoff.delay(attempt))
            attempt += 1

    def _deliver(self) -> None:
        while (stored := self.window.take()) is not None:
            assert isinstance(stored, Stored)
            if self._since:
                if not later(stored.time, self._since):
                    self.window.drop(stored.offset)
                    continue
                self._since = ""
            self._mailbox.put_always(DurableItem(self, stored, self._life))
