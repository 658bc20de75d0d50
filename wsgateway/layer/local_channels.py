"""A layer's channels in this process: their mailboxes, their groups, and the loop they live in.

Everything that changes membership runs in that one loop, so that the read path finds it
unchanged. Mailboxes may be read from any loop. The channels live in the first long-lived loop that
receives; if that loop is gone or stands still, they move to the next receiver's. Moving away from a
loop that runs would lose what is on its way there, so they stay: also in the background, once a
channel was made there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import msgpack

from wsgateway.broker.bus import Closable
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerUnavailable, MalformedMessage
from wsgateway.layer import wire
from wsgateway.layer.connection import LayerConnection
from wsgateway.layer.durable import Directory, GroupName
from wsgateway.layer.fullness import Complaints
from wsgateway.layer.groups import Group, Item
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.subscription import Subscription
from wsgateway.protocol.subjects import Inbox

__all__ = ["LocalChannels", "Options"]

logger = logging.getLogger("wsgateway.layer")

ABANDONED = 10.0
"""A channel with expired messages that nobody has read for this many times the expiry has no
reader any more: a consumer ended without leaving its groups."""
FLUSHED = b"flushed"


class Options(Protocol):
    """What a layer's mailboxes and groups go by; read at each use."""

    @property
    def expiry(self) -> float:
        """Seconds that a message lives."""

    @property
    def group_expiry(self) -> float:
        """Seconds after which a channel that nobody reads leaves its groups."""

    def get_capacity(self, channel: str) -> int:
        """Return how many messages *channel* holds."""


class LocalChannels:
    """See the module.

    Args:
        client: The part of the channels' names that says whose they are.
        options: The layer's, which may change.
        is_expired: Says whether an envelope is too old.
        choose: Returns the running loop's connection.
        forward: Opens a group's way to a normal channel.
        directory: Knows which groups are durable.
        on_flush: Called when the layer is flushed.
        notice: Makes the envelope that each channel gets when the connection is lost (False) or
            is there again (True); None: they are not told.
    """

    def __init__(
        self,
        client: str,
        *,
        options: Options,
        is_expired: Callable[[bytes], bool],
        choose: Callable[[], LayerConnection],
        forward: Callable[[LayerConnection, str, Inbox | None, str], Closable],
        directory: Directory,
        on_flush: Callable[[], None],
        notice: Callable[[bool], bytes | None],
    ) -> None:
        self.client = client
        self.connection: LayerConnection | None = None
        self.mailboxes: dict[bytes, Mailbox[Item]] = {}
        self.by_channel: dict[str, Mailbox[Item]] = {}
        """Those that were read, by the names that callers use."""
        self.groups: dict[str, Group] = {}
        self.unconfirmed = False  # it has moved, and its subscriptions may not be in effect yet
        self.is_new = True  # until somebody may send to a channel of this process
        self._options = options
        self._is_expired = is_expired
        self._choose = choose
        self._interests: list[Closable] = []  # subscriptions besides those of groups
        self._joined: dict[bytes, set[str]] = {}  # channel -> its groups
        self._tasks: set[asyncio.Task[None]] = set()  # joins for others, notices
        self._unstored: set[str] = set()  # groups that name an inbox whose service did not exist
        self._resting: set[bytes] = set()  # channels whose durable groups wait for a reader
        self._joiner = wire.Joiner()
        self.complaints = Complaints(self._tell)
        self._moving = threading.Lock()
        self._sweeper: asyncio.TimerHandle | None = None
        self._forward = forward
        self._directory = directory
        self._on_flush = on_flush
        self._notice = notice

    # -- where it is ---------------------------------------------------------------------

    async def place(self) -> LayerConnection:
        """Return the connection of the channels' loop; if they have none, move them to this loop.

        If the channels have moved, every subscription is in effect then.
        """
        while True:
            connection = self.connection
            if (
                connection is not None
                and connection.usable
                and not (connection.is_background and self.is_new)
            ):
                if self.unconfirmed:
                    await self.confirm()
                return connection
            chosen = self._choose()
            if connection is not None and connection.usable and chosen.is_background:
                return connection
            try:
                await chosen.call(partial(self._move, chosen))
                return self.connection or chosen
            except BrokerClosed:  # by the layer's `close`, meanwhile
                if chosen.usable:
                    raise

    @property
    def is_stranded(self) -> bool:
        """Whether its loop does not run, so that nothing comes to its channels."""
        connection = self.connection
        return connection is not None and not connection.usable

    async def _move(self, connection: LayerConnection) -> None:
        await connection.ready()
        with self._moving:
            old, interests = self.connection, self._interests
            if old is connection or (
                old is not None and old.usable and not (old.is_background and self.is_new)
            ):
                return
            for group in self.groups.values():
                interests += group.pause()
            self.unconfirmed = True
            self.connection = connection
            self._interests = self._subscribe(connection)
            self._restore_groups(connection)
            if self._sweeper is not None:
                self._sweeper.cancel()
            self._sweep_later(connection)
        if old is not None:
            logger.debug("the channels of %s move to another event loop", self.client)
            _close_in(old, interests)
        await self.confirm()

    def _subscribe(self, connection: LayerConnection) -> list[Closable]:
        def on_message(_s: bytes, reply: bytes, data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                self._on_message(connection, reply, data)

        def on_flush(_s: bytes, reply: bytes, _data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                self._flush()
                if reply:
                    connection.publish(reply.decode(), FLUSHED)

        return [
            connection.bus.subscribe(connection.subjects.process(self.client), on_message),
            connection.bus.subscribe(flush_subject(connection), on_flush),
            connection.broker.on_new_service(partial(self._look_at_services, connection)),
            connection.bus.on_lost(partial(self._notify, connection, False)),
            connection.bus.on_open(partial(self._on_open, connection)),
        ]

    def _on_open(self, connection: LayerConnection) -> None:
        if self._notice(True) is not None:
            self._run(
                self._notify_restored(connection, connection.bus.times_connected),
                "wsgateway-layer-notice",
            )

    async def _notify_restored(self, connection: LayerConnection, number: int) -> None:
        with contextlib.suppress(BrokerError):  # lost again: the next connection says so
            await connection.in_effect()
            if connection.bus.times_connected == number and connection.bus.is_open:
                self._notify(connection, True)

    def _notify(self, connection: LayerConnection, is_open: bool) -> None:
        """Tell every channel of this process what became of the connection."""
        envelope = self._notice(is_open)
        if self.connection is connection and envelope is not None:
            for mailbox in list(self.mailboxes.values()):
                mailbox.put(envelope)

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave(self) -> None:
        """Give up the connection; mailboxes and memberships stay for the next one."""
        with self._moving:
            connection, self.connection = self.connection, None
            interests, self._interests = self._interests, []
            for group in self.groups.values():
                interests += group.pause()
            if self._sweeper is not None:
                self._sweeper.cancel()
        if connection is not None:
            _close_in(connection, interests)

    # -- mailboxes -----------------------------------------------------------------------

    def mailbox(self, name: bytes) -> Mailbox[Item]:
        """Return the channel's mailbox; made at the first call."""
        mailbox = self.mailboxes.get(name)
        if mailbox is None:
            new: Mailbox[Item] = Mailbox(self._options.get_capacity(name.decode()), self.is_expired)
            new.used = time.monotonic()
            self.is_new = False
            mailbox = self.mailboxes.setdefault(name, new)
        return mailbox

    def resize(self) -> None:
        """Have each mailbox hold what the options say now."""
        for name, mailbox in list(self.mailboxes.items()):
            mailbox.capacity = self._options.get_capacity(name.decode())
            self.taken(name.decode())

    def read(self, channel: str, name: bytes) -> Mailbox[Item]:
        """Return the mailbox of *channel* for a reader, and find it faster the next time."""
        while True:
            mailbox = self.mailboxes.get(name) or self.mailbox(name)
            self.by_channel[channel] = mailbox
            if name in self._resting:
                self._wake(name)
            if self.mailboxes.get(name) is mailbox:  # else it was just forgotten in its own loop
                return mailbox

    def is_expired(self, item: Item) -> bool:
        """Say whether an envelope is too old; messages of durable groups never are."""
        return isinstance(item, bytes) and self._is_expired(item)

    def _on_message(self, connection: LayerConnection, reply: bytes, data: bytes) -> None:
        if not wire.is_enveloped(data):
            logger.warning("skipped %d bytes at %s: not a channel message", len(data), connection)
            return
        if wire.is_control(data):
            self._on_control(connection, reply, data)
            return
        whole = self.join(data) if wire.is_part(data) else data
        if whole is None:
            return
        name = wire.name(whole)
        mailbox = self.mailboxes.get(name) or self.mailbox(name)
        if not reply:  # from this process itself
            mailbox.came()
        if not mailbox.put(whole):
            logger.info("channel %s is over capacity; dropped a message", name.decode())
        if reply and len(mailbox.queue) >= mailbox.capacity:
            self.complaints.full(name, reply)

    def _tell(self, sender: str, data: bytes) -> None:
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(BrokerUnavailable):  # the sender tries again by itself
                connection.publish(sender, data)

    def taken(self, channel: str) -> None:
        """Record that a message was taken, in case somebody waits for room. From any thread."""
        name, connection = channel.encode(), self.connection
        if name not in self.complaints.told or connection is None:
            return
        if asyncio._get_running_loop() is connection.loop:
            self.complaints.room(name)
        else:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                connection.loop.call_soon_threadsafe(self.complaints.room, name)

    def whole(self, data: bytes) -> bytes | None:
        """Return the envelope of a group's message; None until its last part is there."""
        data = wire.framed(data)
        return self.join(data) if wire.is_part(data) else data

    def join(self, data: bytes) -> bytes | None:
        """Take a part of a split envelope; return the whole once it is complete."""
        try:
            return self._joiner.add(data)
        except MalformedMessage as exc:
            logger.warning("%s", exc)
            return None

    # -- groups --------------------------------------------------------------------------

    async def add(self, connection: LayerConnection, group_name: GroupName, channel: str) -> None:
        """Make *channel* a member; return once it is. In the channels' loop. Idempotent.

        Raises:
            BrokerError: It did not become a member.
        """
        known = self.groups.get(group_name.name)
        inbox = known.inbox if known else await self._directory.find(connection, group_name)
        if group_name.inbox != inbox and group_name.inbox is not None:
            self._unstored.add(group_name.name)
        is_new = self._add(connection, group_name.name, inbox, channel)
        group = self.groups[group_name.name]
        name = channel.encode()
        subscription = group.subscriptions.get(name)
        key = name if subscription is not None or "!" not in channel else b""
        number = connection.bus.times_connected
        if group.confirmed.get(key) == number:
            return
        try:
            if subscription is not None:
                await subscription.started()
            await connection.in_effect()
        except BrokerError:
            if is_new:
                self.discard(group.name, channel)
            raise
        if self.connection is connection and (key in group.interests or key in group.subscriptions):
            group.confirmed[key] = number

    def _add(
        self, connection: LayerConnection, group_name: str, inbox: Inbox | None, channel: str
    ) -> bool:
        """Make *channel* a member, in effect some time later; return False if it was one."""
        group = self.groups.get(group_name)
        if group is None:
            group = self.groups[group_name] = Group(group_name, inbox)
            self.is_new = False
        name = channel.encode()
        if "!" not in channel:
            is_new = channel not in group.normal
            group.normal.add(channel)
            self._watch_for_normal(connection, group, channel)
            return is_new
        mailbox = self.mailboxes.get(name) or self.mailbox(name)
        mailbox.used = time.monotonic()
        if name in group.members:
            return False
        group.members[name] = mailbox
        self._joined.setdefault(name, set()).add(group_name)
        self._watch(connection, group, name, mailbox)
        return True

    def _watch(
        self, connection: LayerConnection, group: Group, name: bytes, mailbox: Mailbox[Item]
    ) -> None:
        if group.inbox is not None:
            subscription = group.subscriptions.get(name)
            if subscription is None:
                subscription = group.subscriptions[name] = Subscription(group.inbox, mailbox)
            subscription.attach(connection)
        elif b"" not in group.interests:
            group.interests[b""] = self._watch_ephemeral(connection, group)

    def _watch_for_normal(self, connection: LayerConnection, group: Group, channel: str) -> None:
        name = channel.encode()
        if name in group.interests:
            return

        def on_leave(_s: bytes, reply: bytes, _data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                self.discard(group.name, channel)
                connection.publish(reply.decode(), b"")

        subject = connection.subjects.leave(group.name, channel)
        group.interests[name] = _Several(
            self._forward(connection, group.name, group.inbox, channel),
            connection.bus.subscribe(subject, on_leave, queue="leave"),
        )

    def _watch_ephemeral(self, connection: LayerConnection, group: Group) -> Closable:
        deliver = group.deliver

        def on_message(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                envelope = self.whole(data)
                if envelope is not None:
                    deliver(envelope)

        return connection.bus.subscribe(connection.subjects.group(group.name), on_message)

    async def confirm(self) -> None:
        """After a move, wait until every subscription is in effect; from any loop."""
        connection = self.connection
        if connection is None or not connection.usable:
            return
        await connection.call(connection.in_effect)
        with self._moving:
            if self.connection is connection:
                self.unconfirmed = False

    def discard(self, group_name: str, channel: str) -> None:
        """End a membership. In the channels' loop. Idempotent."""
        group = self.groups.get(group_name)
        if group is None:
            return
        name = channel.encode()
        if group.members.pop(name, None) is not None:
            joined = self._joined.get(name, set())
            joined.discard(group_name)
            if not joined:
                self._joined.pop(name, None)
        group.normal.discard(channel)
        group.confirmed.pop(name, None)
        interest = group.interests.pop(name, None)
        subscription = group.subscriptions.pop(name, None)
        if interest is not None:
            interest.close()
        if subscription is not None:
            subscription.end()
            self.complaints.room(name)
        if group.is_empty:
            for left in group.close():
                left.close()
            del self.groups[group_name]

    def _restore_groups(self, connection: LayerConnection) -> None:
        for group in self.groups.values():
            self._restore(connection, group)

    def _restore(self, connection: LayerConnection, group: Group) -> None:
        for name, mailbox in group.members.items():
            self._watch(connection, group, name, mailbox)
        for channel in group.normal:
            self._watch_for_normal(connection, group, channel)

    def _look_at_services(self, connection: LayerConnection) -> None:
        if self.connection is connection and self._unstored:
            self._run(self._store_groups(connection), "wsgateway-layer-services")

    async def _store_groups(self, connection: LayerConnection) -> None:
        """Make groups durable whose service exists by now, as their senders do."""
        for group_name in list(self._unstored):
            name = self._directory.get(group_name) or self._directory.add(connection, group_name)
            with contextlib.suppress(BrokerError):  # looked at again with the next sweep
                inbox = await self._directory.find(connection, name)
                if self.connection is not connection:
                    return
                group = self.groups.get(group_name)
                if group is None or inbox == name.inbox:
                    self._unstored.discard(group_name)
                if group is not None and inbox != group.inbox:
                    for interest in group.pause():
                        interest.close()
                    group.subscriptions.clear()
                    group.inbox = inbox
                    self._restore(connection, group)

    # -- control -------------------------------------------------------------------------

    def _on_control(self, connection: LayerConnection, reply: bytes, data: bytes) -> None:
        try:
            action, group, channel = msgpack.unpackb(wire.body(data, 4096))
        except (ValueError, TypeError) as exc:
            logger.warning("a control message means nothing: %s", exc)
            return
        client, mark, _ = str(channel).partition("!")
        if mark and not client.endswith(self.client):
            return
        if action == "add":
            self._run(
                self._join_for_other(connection, reply, group, channel), "wsgateway-layer-join"
            )
            return
        if action == "discard":
            self.discard(group, channel)
        if reply:
            connection.publish(reply.decode(), b"")

    async def _join_for_other(
        self, connection: LayerConnection, reply: bytes, group: str, channel: str
    ) -> None:
        """Add a member for another process; answer once it is one."""
        try:
            name = self._directory.get(group) or self._directory.add(connection, group)
            await self.add(connection, name, channel)
            if reply:
                connection.publish(reply.decode(), b"")
        except BrokerError as exc:
            logger.warning("channel %s cannot join group %s: %s", channel, group, exc)

    def _flush(self) -> None:
        self._on_flush()
        for name, mailbox in self.mailboxes.items():
            mailbox.queue.clear()
            self.complaints.room(name)
        for group in self.groups.values():
            for interest in group.close():
                interest.close()
        self.groups.clear()
        self._joined.clear()
        for name in [name for name, box in self.mailboxes.items() if not box.reading]:
            self._forget(name)

    # -- what nobody reads ---------------------------------------------------------------

    def _sweep_later(self, connection: LayerConnection) -> None:
        options = self._options
        pause = min(max(min(options.expiry, options.group_expiry), 1.0), 60.0)
        self._sweeper = connection.loop.call_later(pause, self._sweep, connection)

    def _sweep(self, connection: LayerConnection) -> None:
        if self.connection is not connection:
            return
        self._sweep_later(connection)
        self._look_at_services(connection)
        now = time.monotonic()
        expiry, group_expiry = self._options.expiry, self._options.group_expiry
        for name, mailbox in list(self.mailboxes.items()):
            expired = mailbox.purge()
            if expired:
                self.complaints.room(name)
            if mailbox.reading:
                continue
            idle = now - mailbox.used
            is_abandoned = idle > ABANDONED * expiry
            if (expired and is_abandoned) or idle > group_expiry:
                self._leave_all(name)
            elif is_abandoned and name in self._joined and mailbox.queue:
                self._rest(name)
            if name not in self._joined and not mailbox.queue and idle > max(expiry, 60.0):
                self._forget(name)

    def _forget(self, name: bytes) -> None:
        del self.mailboxes[name]
        self._resting.discard(name)
        self.by_channel.pop(name.decode(), None)

    def _rest(self, name: bytes) -> None:
        """Free what a durable group has brought to a channel that nobody reads, until then."""
        self._resting.add(name)
        self.by_channel.pop(name.decode(), None)  # so that its next reader comes to `read`
        for subscription in self._subscriptions(name):
            subscription.rest()
        self.complaints.room(name)

    def _wake(self, name: bytes) -> None:
        """Bring what `_rest` has freed. From any thread."""

        connection = self.connection
        if connection is None:
            return  # the next loop attaches all

        def wake() -> None:
            if self.connection is connection and name in self._resting:
                self._resting.discard(name)
                for subscription in self._subscriptions(name):
                    if subscription.attachment is None:
                        subscription.attach(connection)

        with contextlib.suppress(RuntimeError):  # its loop is closed
            connection.loop.call_soon_threadsafe(wake)

    def _subscriptions(self, name: bytes) -> list[Subscription]:
        groups = [self.groups[group] for group in self._joined.get(name, ())]
        return [group.subscriptions[name] for group in groups if name in group.subscriptions]

    def _leave_all(self, name: bytes) -> None:
        for group in list(self._joined.get(name, ())):
            logger.info("channel %s has no reader; it leaves group %s", name.decode(), group)
            self.discard(group, name.decode())


def control_message(action: str, group: str, channel: str) -> bytes:
    """Return what asks a channel's owner to ``add`` it to a group, or ``discard`` it."""
    content: bytes = msgpack.packb([action, group, channel])
    return wire.pack(time.time(), b"", content, wire.CONTROL)


def flush_subject(connection: LayerConnection) -> str:
    """Return where layers are told to forget everything."""
    return f"{connection.subjects.prefix}.all.flush"


class _Several:
    """Interests that are closed together."""

    def __init__(self, *interests: Closable) -> None:
        self._interests = interests

    def close(self) -> None:
        for interest in self._interests:
            interest.close()


def _close_in(connection: LayerConnection, interests: list[Closable]) -> None:
    def close() -> None:
        for interest in interests:
            with contextlib.suppress(BrokerUnavailable):
                interest.close()

    with contextlib.suppress(RuntimeError):  # its loop is closed, and the connection with it
        if asyncio._get_running_loop() is connection.loop:
            close()
        else:
            connection.loop.call_soon_threadsafe(close)
