"""The groups that this process has members of, and how their messages reach them."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from wsgateway import counters
from wsgateway.broker.bus import Closable, Hook
from wsgateway.exceptions import BrokerError
from wsgateway.layer.durable import GroupName
from wsgateway.layer.forward import Forward
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.subscription import DurableItem, Subscription
from wsgateway.protocol.subjects import Address
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.layer.local_channels import LocalChannels

__all__ = ["Group", "Groups", "Item"]

logger = logging.getLogger("wsgateway.layer")

Item = bytes | DurableItem
"""What a mailbox holds: an envelope, or a message of a durable group."""


class Group:
    """The members that one process has in one group.

    Args:
        name: The group's.
        inbox: Where its messages are stored, a topic too; None if they are not.
    """

    __slots__ = ("confirmed", "inbox", "interests", "members", "name", "normal", "subscriptions")

    def __init__(self, name: str, inbox: Address | None) -> None:
        self.name = name
        self.inbox = inbox
        self.members: dict[bytes, Mailbox[Item]] = {}
        """Process-specific channels by name."""
        self.interests: dict[bytes, Closable] = {}
        """Subscriptions: b"" brings messages to all `members`, others to a normal channel."""
        self.confirmed: dict[bytes, int] = {}
        """Which of both are in effect, with the number of the connection."""
        self.normal: set[str] = set()
        """Normal channels."""
        self.subscriptions: dict[bytes, Subscription] = {}
        """What brings a durable group's messages to each of `members`."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in it."""
        return not self.members and not self.normal

    def deliver(self, item: Item) -> None:
        """Put *item* into every member's mailbox; full ones miss it, and the log says so."""
        full = 0
        for mailbox in self.members.values():
            if not mailbox.put(item):
                full += 1
        if full:
            counters.layer.dropped_full += full
            logger.info(
                "%s of %s channels over capacity in group %s",
                full,
                len(self.members),
                self.name,
                extra={"group": self.name},
            )

    def close(self) -> list[Closable]:
        """Forget everybody; return what is to be closed in the loop that made it."""
        interests = self.pause()
        self.members.clear()
        self.normal.clear()
        self.subscriptions.clear()
        return interests

    def pause(self) -> list[Closable]:
        """Return what is to be closed in the loop that made it; who is a member stays known."""
        attached = [each.attachment for each in self.subscriptions.values()]
        interests: list[Closable] = [*self.interests.values()]
        interests += [attachment for attachment in attached if attachment is not None]
        self.interests.clear()
        self.confirmed.clear()
        return interests


class Groups:
    """The groups that channels of this process are in. Call it in the channels' loop.

    Args:
        local: The channels.
    """

    def __init__(self, local: LocalChannels) -> None:
        self.by_name: dict[str, Group] = {}
        self.joined: dict[bytes, set[str]] = {}
        """Process-specific channels to the names of their groups."""
        self._unstored: set[str] = set()  # groups that name an inbox whose service did not exist
        self._local = local
        self._layer = local.layer

    async def add(self, connection: Connection, group_name: GroupName, channel: str) -> None:
        """Make *channel* a member; return once it is. Idempotent.

        Raises:
            BrokerError: It did not become a member.
        """
        known = self.by_name.get(group_name.name)
        inbox = known.inbox if known else await self._layer.directory.find(connection, group_name)
        if group_name.inbox is not None and not _is_stored(group_name, inbox):
            self._unstored.add(group_name.name)
        is_new = self._add(connection, group_name.name, inbox, channel)
        group = self.by_name[group_name.name]
        name = channel.encode()
        subscription = group.subscriptions.get(name)
        key = name if subscription is not None or "!" not in channel else b""
        number = connection.bus.times_connected
        if group.confirmed.get(key) == number:
            return
        try:
            if subscription is not None:
                await subscription.started()
            await connection.broker.in_effect()
        except BrokerError:
            if is_new:
                self.discard(group.name, channel)
            raise
        is_current = self._local.connection is connection
        if is_current and (key in group.interests or key in group.subscriptions):
            group.confirmed[key] = number

    def _add(
        self, connection: Connection, group_name: str, inbox: Address | None, channel: str
    ) -> bool:
        """Make *channel* a member, in effect some time later; return False if it was one."""
        group = self.by_name.get(group_name)
        if group is None:
            group = self.by_name[group_name] = Group(group_name, inbox)
            self._local.is_new = False
        name = channel.encode()
        if "!" not in channel:
            is_new = channel not in group.normal
            group.normal.add(channel)
            self._listen_for_normal(connection, group, channel)
            return is_new
        mailbox = self._local.mailbox(name)
        mailbox.used = time.monotonic()
        if name in group.members:
            return False
        group.members[name] = mailbox
        self.joined.setdefault(name, set()).add(group_name)
        self._listen(connection, group, name, mailbox)
        return True

    def _listen(
        self, connection: Connection, group: Group, name: bytes, mailbox: Mailbox[Item]
    ) -> None:
        if group.inbox is not None:
            subscription = group.subscriptions.get(name)
            if subscription is None:
                subscription = group.subscriptions[name] = Subscription(group.inbox, mailbox)
            subscription.attach(connection)
        elif b"" not in group.interests:
            group.interests[b""] = self._listen_for_members(connection, group)

    def _listen_for_members(self, connection: Connection, group: Group) -> Closable:
        local, deliver = self._local, group.deliver

        def on_message(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
            if local.connection is connection:
                envelope = local.whole(data)
                if envelope is not None:
                    deliver(envelope)

        return connection.bus.subscribe(connection.subjects.group(group.name), on_message)

    def _listen_for_normal(self, connection: Connection, group: Group, channel: str) -> None:
        name = channel.encode()
        if name in group.interests:
            return

        def on_leave(_s: bytes, reply: bytes, _data: bytes, _h: bytes | None) -> None:
            if self._local.connection is connection:
                self.discard(group.name, channel)
                if reply:
                    connection.bus.publish(reply.decode(), b"")

        forward = Forward(self._layer, connection, group.name, group.inbox, channel)
        subject = connection.subjects.leave(group.name, channel)
        leaving = connection.bus.subscribe(subject, on_leave, queue="leave")

        def close() -> None:
            forward.close()
            leaving.close()

        group.interests[name] = Hook(close)

    def discard(self, group_name: str, channel: str) -> None:
        """End a membership. Idempotent."""
        group = self.by_name.get(group_name)
        if group is None:
            return
        name = channel.encode()
        if group.members.pop(name, None) is not None:
            joined = self.joined.get(name, set())
            joined.discard(group_name)
            if not joined:
                self.joined.pop(name, None)
        group.normal.discard(channel)
        group.confirmed.pop(name, None)
        interest = group.interests.pop(name, None)
        subscription = group.subscriptions.pop(name, None)
        if interest is not None:
            interest.close()
        if subscription is not None:
            subscription.end()
            self._local.complaints.room(name)
        if group.is_empty:
            for left in group.close():
                left.close()
            del self.by_name[group_name]

    def leave_all(self, name: bytes) -> None:
        """Take a channel that has no reader out of its groups."""
        for group in list(self.joined.get(name, ())):
            channel = name.decode()
            text = "removed channel %s from group %s because nobody reads it"
            logger.info(text, channel, group, extra={"channel": channel, "group": group})
            self.discard(group, name.decode())

    def subscriptions_of(self, name: bytes) -> list[Subscription]:
        """Return what brings durable groups' messages to a channel."""
        groups = [self.by_name[group] for group in self.joined.get(name, ())]
        return [group.subscriptions[name] for group in groups if name in group.subscriptions]

    def pause(self) -> list[Closable]:
        """Return what is to be closed in the loop that made it; memberships stay known."""
        return [interest for group in self.by_name.values() for interest in group.pause()]

    def restore(self, connection: Connection) -> None:
        """Listen again, on *connection*, for all members."""
        for group in self.by_name.values():
            self._restore(connection, group)

    def _restore(self, connection: Connection, group: Group) -> None:
        for name, mailbox in group.members.items():
            self._listen(connection, group, name, mailbox)
        for channel in group.normal:
            self._listen_for_normal(connection, group, channel)

    def clear(self) -> None:
        """Forget everybody: the layer was flushed."""
        for group in self.by_name.values():
            for interest in group.close():
                interest.close()
        self.by_name.clear()
        self.joined.clear()

    def look_at_services(self, connection: Connection) -> None:
        """Soon, make groups durable whose service exists by now, as their senders do."""
        if self._local.connection is connection and self._unstored:
            start(self._store_groups(connection), "wsgateway-layer-services")

    async def _store_groups(self, connection: Connection) -> None:
        directory = self._layer.directory
        for group_name in list(self._unstored):
            name = directory.get(group_name) or directory.add(connection, group_name)
            with contextlib.suppress(BrokerError):  # looked at again with the next sweep
                inbox = await directory.find(connection, name)
                if self._local.connection is not connection:
                    return
                group = self.by_name.get(group_name)
                if group is None or _is_stored(name, inbox):
                    self._unstored.discard(group_name)
                if group is not None and inbox != group.inbox:
                    for interest in group.pause():
                        interest.close()
                    group.subscriptions.clear()
                    group.inbox = inbox
                    self._restore(connection, group)


def _is_stored(name: GroupName, address: Address | None) -> bool:
    """Say whether a group is stored where its name says, and not only kept by a setting."""
    return address is not None and address in (name.inbox, name.topic)
