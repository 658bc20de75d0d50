"""A layer's channels in this process: their mailboxes, their groups, and the loop they live in.

Everything that changes membership runs in that one loop, so that the read path finds it
unchanged. Mailboxes may be read from any loop. The channels live in the first long-lived loop that
receives; if that loop is gone or blocked, they move to the next receiver's. Moving away from a
loop that runs would lose what is on its way there, so they stay: also in the background, once a
channel was made there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from wsgateway import counters
from wsgateway.broker.bus import Closable
from wsgateway.broker.connection import Connection
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    MalformedMessage,
    reason_of,
)
from wsgateway.layer import wire
from wsgateway.layer.control import FLUSHED, Change, flush_subject
from wsgateway.layer.fullness import Complaints
from wsgateway.layer.groups import Groups, Item
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.unread import Unread
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["LocalChannels"]

logger = logging.getLogger("wsgateway.layer")


class LocalChannels:
    """See the module.

    Args:
        layer: Whose.
    """

    def __init__(self, layer: NatsChannelLayer) -> None:
        self.layer = layer
        self.client = layer.client_prefix
        self.connection: Connection | None = None
        self.mailboxes: dict[bytes, Mailbox[Item]] = {}
        self.by_channel: dict[str, Mailbox[Item]] = {}
        """Those that were read, by the names that callers use."""
        self.unconfirmed = False  # it has moved, and its subscriptions may not be in effect yet
        self.is_new = True  # until somebody may send to a channel of this process
        self._interests: list[Closable] = []  # subscriptions besides those of groups
        self._joiner = wire.Joiner()
        self._log_fields = {"channel": f"{self.client}!"}  # what its channels' names have in common
        self.complaints = Complaints(self._tell)
        self.groups = Groups(self)
        self.unread = Unread(self)
        self._moving = threading.Lock()

    # -- where it is ---------------------------------------------------------------------

    async def place(self) -> Connection:
        """Return the connection of the channels' loop; if they have none, move them to this loop.

        If the channels have moved, every subscription is in effect then.
        """
        while True:
            chosen = self._choose()
            try:
                if chosen is not self.connection:
                    await chosen.call(partial(self._move, chosen))
                if self.unconfirmed:  # perhaps another call has moved them
                    await self.confirm()
                return self.connection or chosen
            except BrokerClosed:  # the layer's `close` was called while this waited
                if chosen.usable:
                    raise

    def _choose(self) -> Connection:
        """Return where the channels have to be for a call in the running loop."""
        connection = self.connection
        if connection is not None and self._must_stay(connection):
            return connection
        chosen = self.layer.connections.current()
        if connection is not None and connection.usable and chosen.is_background:
            return connection
        return chosen

    def _must_stay(self, connection: Connection) -> bool:
        return connection.usable and not (connection.is_background and self.is_new)

    @property
    def is_stranded(self) -> bool:
        """Whether its loop does not run, so that nothing comes to its channels."""
        connection = self.connection
        return connection is not None and not connection.usable

    async def _move(self, connection: Connection) -> None:
        await connection.connect()
        with self._moving:
            old, interests = self.connection, self._interests
            if old is connection or (old is not None and self._must_stay(old)):
                return
            interests += self.groups.pause()
            self.unconfirmed = True
            self.connection = connection
            self._interests = self._subscribe(connection)
            self.groups.restore(connection)
            self.unread.look_later(connection)
        if old is not None:
            text = "moving the channels of %s to another event loop"
            logger.debug(text, self.client, extra=self._log_fields)
            _close_in(old, interests)

    def _subscribe(self, connection: Connection) -> list[Closable]:
        def on_message(_s: bytes, reply: bytes, data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                self._on_message(connection, reply, data)

        def on_flush(_s: bytes, reply: bytes, _data: bytes, _h: bytes | None) -> None:
            if self.connection is connection:
                self._flush()
                if reply:
                    connection.bus.publish(reply.decode(), FLUSHED)

        return [
            connection.bus.subscribe(connection.subjects.process(self.client), on_message),
            connection.bus.subscribe(flush_subject(connection), on_flush),
            connection.broker.on_new_service(partial(self.groups.look_at_services, connection)),
            connection.bus.on_lost(partial(self._notify, connection, False)),
            connection.bus.on_open(partial(self._on_open, connection)),
        ]

    def _on_open(self, connection: Connection) -> None:
        if self.layer.notice(True) is not None:
            number = connection.bus.times_connected
            start(self._notify_restored(connection, number), "wsgateway-layer-notice")

    async def _notify_restored(self, connection: Connection, number: int) -> None:
        with contextlib.suppress(BrokerError):  # lost again: the next connection says so
            await connection.broker.in_effect()
            if connection.bus.times_connected == number and connection.bus.is_open:
                self._notify(connection, True)

    def _notify(self, connection: Connection, is_open: bool) -> None:
        """Tell every channel of this process what became of the connection."""
        envelope = self.layer.notice(is_open)
        if self.connection is connection and envelope is not None:
            for mailbox in list(self.mailboxes.values()):
                mailbox.put(envelope)

    async def confirm(self) -> None:
        """After a move, wait until every subscription is in effect; from any loop."""
        connection = self.connection
        if connection is None or not connection.usable:
            return
        await connection.call(connection.broker.in_effect)
        with self._moving:
            if self.connection is connection:
                self.unconfirmed = False

    def leave(self) -> None:
        """Give up the connection; mailboxes and memberships stay for the next one."""
        with self._moving:
            connection, self.connection = self.connection, None
            interests, self._interests = self._interests, []
            interests += self.groups.pause()
            self.unread.stop()
        if connection is not None:
            _close_in(connection, interests)

    # -- mailboxes -----------------------------------------------------------------------

    def mailbox(self, name: bytes) -> Mailbox[Item]:
        """Return the channel's mailbox; made at the first call."""
        mailbox = self.mailboxes.get(name)
        if mailbox is None:
            new: Mailbox[Item] = Mailbox(self.layer.get_capacity(name.decode()), self.is_expired)
            new.used = time.monotonic()
            self.is_new = False
            mailbox = self.mailboxes.setdefault(name, new)
        return mailbox

    def resize(self) -> None:
        """Have each mailbox hold what the options say now."""
        for name, mailbox in self.mailboxes.copy().items():
            mailbox.capacity = self.layer.get_capacity(name.decode())
            self.taken(name.decode())

    def read(self, channel: str, name: bytes) -> Mailbox[Item]:
        """Return the mailbox of *channel* for a reader, and find it faster the next time."""
        while True:
            mailbox = self.mailbox(name)
            self.by_channel[channel] = mailbox
            self.unread.wake(name)
            if self.mailboxes.get(name) is mailbox:  # else it was just forgotten in its own loop
                return mailbox

    def is_expired(self, item: Item) -> bool:
        """Say whether an envelope is too old; messages of durable groups never are."""
        return isinstance(item, bytes) and self.layer.envelopes.is_expired(item)

    def _on_message(self, connection: Connection, reply: bytes, data: bytes) -> None:
        if not wire.is_enveloped(data):
            counters.layer.dropped_unreadable += 1
            logger.warning(
                "skipped %d bytes for channels of %s that are not a channel message",
                len(data),
                self.client,
                extra=self._log_fields,
            )
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
            counters.layer.dropped_full += 1
            channel = name.decode()
            text = "dropped a message because channel %s is over capacity"
            logger.info(text, channel, extra={"channel": channel})
        if reply and len(mailbox.queue) >= mailbox.capacity:
            self.complaints.full(name, reply)

    def _tell(self, sender: str, data: bytes) -> None:
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(BrokerError):  # the sender tries again by itself
                connection.bus.publish(sender, data)

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
            counters.layer.dropped_unreadable += 1
            logger.warning(
                "skipped a part of a message: %s", reason_of(exc), extra=self._log_fields
            )
            return None

    # -- control -------------------------------------------------------------------------

    def _on_control(self, connection: Connection, reply: bytes, data: bytes) -> None:
        try:
            change = Change.parse(data)
        except MalformedMessage as exc:
            logger.warning("skipped a request: %s", reason_of(exc), extra=self._log_fields)
            return
        client, mark, _ = change.channel.partition("!")
        if mark and not client.endswith(self.client):
            return
        if change.action == "add":
            start(self._join_for_other(connection, reply, change), "wsgateway-layer-join")
            return
        if change.action == "discard":
            self.groups.discard(change.group, change.channel)
        if reply:
            connection.bus.publish(reply.decode(), b"")

    async def _join_for_other(self, connection: Connection, reply: bytes, change: Change) -> None:
        """Add a member for another process; answer once it is one."""
        try:
            name = self.layer.directory.get(change.group)
            name = name or self.layer.directory.add(connection, change.group)
            await self.groups.add(connection, name, change.channel)
            if reply:
                connection.bus.publish(reply.decode(), b"")
        except BrokerError as exc:
            logger.warning(
                "channel %s cannot join group %s: %s",
                change.channel,
                change.group,
                reason_of(exc),
                extra={"channel": change.channel, "group": change.group},
            )

    def _flush(self) -> None:
        self.layer.normal.flushed()
        mailboxes = self.mailboxes.copy()  # other threads make more
        for name, mailbox in mailboxes.items():
            mailbox.queue.clear()
            self.complaints.room(name)
        self.groups.clear()
        for name, mailbox in mailboxes.items():
            if not mailbox.reading:
                self.forget(name)

    def forget(self, name: bytes) -> None:
        """Drop the mailbox of a channel that nobody uses."""
        del self.mailboxes[name]
        self.unread.forget(name)
        self.by_channel.pop(name.decode(), None)


def _close_in(connection: Connection, interests: list[Closable]) -> None:
    def close() -> None:
        for interest in interests:
            with contextlib.suppress(BrokerUnavailable):
                interest.close()

    with contextlib.suppress(RuntimeError):  # its loop is closed, and the connection with it
        if asyncio._get_running_loop() is connection.loop:
            close()
        else:
            connection.loop.call_soon_threadsafe(close)
