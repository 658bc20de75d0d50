"""How a durable group's messages reach a member: read from the inbox stream, in its order.

Each member has its own position. What does not fit its mailbox waits in the stream, so nobody
misses anything because of capacity, expiry, a reconnect or a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

from wsgateway import counters
from wsgateway.broker.messages import Batch, Position, Stored
from wsgateway.broker.subscriptions import fetch, wait_usable
from wsgateway.exceptions import BrokerClosed, BrokerError
from wsgateway.protocol.credit import Credit
from wsgateway.protocol.subjects import Address
from wsgateway.protocol.v1 import Reason
from wsgateway.protocol.window import Window, later
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.layer.mailbox import Mailbox

__all__ = ["DurableItem", "Subscription"]

_NOBODYS = Window(Credit(1))
"""Takes what still comes where a subscription has left."""


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


class Subscription:
    """Brings a durable group's messages into one member's mailbox, in order, none left out.

    Keeps its position when it moves to another connection.

    Args:
        address: Where the group is stored.
        mailbox: The member's; its capacity is how many messages may wait there.
    """

    def __init__(self, address: Address, mailbox: Mailbox[Any]) -> None:
        self.address = address
        self.window = Window(Credit(mailbox.capacity), counters.layer.windows)
        self.attachment: Attachment | None = None
        """Where it is now."""
        self.epoch = ""
        """Life of the stream that its offsets belong to; empty until it is known where to begin."""
        self.origin = math.inf
        """Offset after which it begins: of the first loop that asked, if it has moved."""
        self.life = 0
        """Changes when offsets begin to mean something else."""
        self.taken = 0
        """Offset up to which the member has taken everything."""
        self._mailbox = mailbox
        self._since = ""  # what was stored until then, the member has had before

    def attach(self, connection: Connection) -> None:
        """Begin, or go on where it was, in the running loop, which is *connection*'s."""
        if self.attachment is not None:
            self.attachment.leave()
        self.attachment = here = Attachment(self, connection)
        epoch = connection.broker.log(self.address).epoch
        if self.epoch and epoch not in ("", self.epoch):
            self.restart(epoch, 0)  # nobody told it that the stream is another
        elif self.epoch:
            self.window.confirm(self.taken)
            self.window.fetch_failed()  # whatever was under way: fetch after the position
        here.open()

    async def started(self) -> None:
        """Wait until everything stored from now on is sure to come.

        Raises:
            BrokerError: The stream could not be asked. It is asked again.
        """
        if not self.epoch and self.attachment is not None:
            await self.attachment.started()

    def start(self, epoch: str) -> None:
        """Begin after `origin`."""
        self.epoch, self.taken = epoch, int(self.origin)
        self.window.start(self.taken)

    def restart(self, epoch: str, offset: int, since: str = "") -> None:
        """Begin again after *offset*: the stream is another one, or has lost its end.

        Args:
            epoch: Life of the stream.
            offset: Of the last message that is not wanted.
            since: The member has had everything up to that time; empty: nothing.
        """
        self.life += 1
        self.epoch, self.taken = epoch, offset
        self._since = since
        self.window.restart(offset)

    def rest(self) -> None:
        """Stop and free what the member has not taken; `attach` brings it again."""
        self.end()
        if self.epoch:
            self.window.restart(self.taken)

    def end(self) -> None:
        """Stop for good, and free what the member has not taken."""
        if self.attachment is not None:
            self.attachment.close()
        self._mailbox.remove(
            lambda item: isinstance(item, DurableItem) and item.subscription is self
        )

    def confirm(self, offset: int, life: int) -> None:
        """Make room: the member has taken the message at *offset*. From any thread."""
        if life != self.life:
            return  # it is of the stream before
        self.taken = max(self.taken, offset)
        here = self.attachment
        if here is None:
            return
        if asyncio._get_running_loop() is here.connection.loop:
            here.confirm(offset, life)
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed; `attach` makes up for it
            here.connection.loop.call_soon_threadsafe(here.confirm, offset, life)

    def deliver(self) -> None:
        """Put what the window has ready into the mailbox."""
        while (stored := self.window.take()) is not None:
            assert isinstance(stored, Stored)
            if self._since:
                if not later(stored.time, self._since):
                    self.window.drop(stored.offset)
                    continue
                self._since = ""
            self._mailbox.put_always(DurableItem(self, stored, self.life))


class Attachment:
    """A subscription on one connection, until it is closed or attached to another one.

    Everything is called in the connection's loop. If that loop stood still while the subscription
    moved on, what it does afterwards must not touch the window any more.

    Args:
        subscription: Whose messages it reads.
        connection: Where.
    """

    def __init__(self, subscription: Subscription, connection: Connection) -> None:
        self.connection = connection
        self.address = subscription.address
        self._log = connection.broker.log(subscription.address)
        self.window = subscription.window
        self._subscription = subscription
        self._task: asyncio.Task[None] | None = None  # while there is something to ask for
        self._started: asyncio.Future[None] = connection.loop.create_future()

    def is_current(self) -> bool:
        """Whether the subscription is here, and not somewhere else by now."""
        return self._subscription.attachment is self

    @property
    def epoch(self) -> str:
        """Life of the stream that the window's offsets belong to; empty if they are not known."""
        return self._subscription.epoch if self.is_current() else ""

    def open(self) -> None:
        """Read from now on."""
        self.connection.subscriptions.subscribe(self)
        self.wake()

    def leave(self) -> None:
        """Let go of the window: another connection has it. From any thread."""
        self.window = _NOBODYS

    def close(self) -> None:
        """Read no more. Idempotent."""
        self.connection.subscriptions.unsubscribe(self)
        if not self.is_current():
            return  # what is under way ends by itself: somebody may wait in `started`
        self._subscription.attachment = None
        self.leave()
        if self._task is not None:
            self._task.cancel()
        self._report(None)  # it was a member until now; the call that added it did not fail

    async def started(self) -> None:
        """See `Subscription.started`."""
        await asyncio.shield(self._started)

    def wake(self) -> None:
        """Deliver what there is, and ask for what is missing."""
        subscription = self._subscription
        if subscription.attachment is not self:
            return
        subscription.deliver()
        if (self.window.wants_fetch or not subscription.epoch) and self._task is None:
            self._task = supervise(self._work, "wsgateway-layer-subscription")

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """Begin again; without *since*, after what is there now.

        Where offsets were given out again is not known, but which messages are newer is.
        """
        if self.is_current():
            is_unknown = reason is Reason.AHEAD and not since
            offset = position.last if is_unknown else 0
            self._subscription.restart(position.epoch, offset, since)
            self.wake()

    def confirm(self, offset: int, life: int) -> None:
        """See `Subscription.confirm`."""
        if self.is_current() and life == self._subscription.life:
            self.window.confirm(offset)
            if self.window.wants_fetch:
                self.wake()

    async def _work(self) -> None:
        with contextlib.suppress(BrokerClosed):
            if not self._subscription.epoch:
                await self._begin()
            while self.is_current() and self.window.wants_fetch:
                await self._fetch()
        self._task = None

    async def _begin(self) -> None:
        """Find out where to begin."""
        broker = self.connection.broker
        while True:
            try:
                await broker.wait_ready()
                position = await self._log.position()
                break
            except BrokerError as exc:
                self._report(exc)
                if not self.is_current():
                    return
                await wait_usable(broker)
        self._subscription.origin = min(self._subscription.origin, position.last)
        if self.is_current():  # otherwise the loop where it is now starts there
            self._subscription.start(position.epoch)
        self._report(None)

    def _report(self, error: BrokerError | None) -> None:
        """Tell those who wait in `started` whether it is; the next ones wait for a next attempt."""
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
            return
        self._started.set_exception(error)
        self._started.exception()  # nobody may be waiting
        self._started = self.connection.loop.create_future()

    async def _fetch(self) -> None:
        subscription, life = self._subscription, self._subscription.life

        async def read(offset: int, limit: int) -> Batch:
            return await self._log.read_after(self.address, offset, limit=limit)

        def has_changed() -> bool:
            return life != subscription.life or not self.is_current()

        batch = await fetch(self.connection.broker, self, read, has_changed)
        if batch is not None:
            self.window.fetched(batch.messages, more=batch.more)
            subscription.deliver()
