"""The channel layer: the methods of Channels' specification."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from wsgateway import counters
from wsgateway.broker.connection import Connection
from wsgateway.broker.targets import load
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer import blobs, durable
from wsgateway.layer.addresses import Addresses
from wsgateway.layer.connections import Connections
from wsgateway.layer.control import Change, change_elsewhere, flush, leave_everywhere
from wsgateway.layer.durable import Directory, GroupName
from wsgateway.layer.groups import Item
from wsgateway.layer.instances import layers
from wsgateway.layer.local_channels import LocalChannels
from wsgateway.layer.mailbox import COMING_VALID, Mailbox
from wsgateway.layer.normal import NormalChannels, channel_full
from wsgateway.layer.options import ConfiguredLayer, require_message, require_no_loop
from wsgateway.layer.sharing import full_channels, shared
from wsgateway.protocol.subjects import Address

__all__ = ["NatsChannelLayer"]


class NatsChannelLayer(ConfiguredLayer):
    """Channels on NATS; a drop-in for ``channels_redis``.

    Its arguments are the options in ``CONFIG``, which the reference lists. With
    ``PUBSUB_BROKER = "memory"`` and without servers of its own, everything stays within this
    process.
    """

    def _begin(self) -> None:
        load(tuple(self._servers))  # not in the first message's time
        self.restart(uuid.uuid4().hex)
        layers.add(self)

    def restart(self, client_prefix: str) -> None:
        """Begin with no connection and nothing known; again after a fork.

        Args:
            client_prefix: What says in channels' names that they are this process's.
        """
        self.client_prefix = client_prefix
        self._addresses = Addresses(self)
        self.directory = Directory()
        self.connections = Connections(self)
        self.normal = NormalChannels(self)
        self.local = LocalChannels(self)

    def __str__(self) -> str:
        return f"{type(self).__name__}(prefix={self.prefix!r}, client={self.client_prefix})"

    def _resized(self) -> None:
        self.local.resize()

    def _moved(self) -> None:
        self._addresses.clear()
        self.directory.clear()
        self.local.leave()
        for connection in self.connections.move():
            asyncio.run_coroutine_threadsafe(self._depart(connection), connection.loop)

    async def _depart(self, connection: Connection) -> None:
        await self.normal.close(connection)
        if not connection.is_background:
            await shared(connection).leave(self)
        self._move_readers()

    @property
    def servers(self) -> tuple[list[str], str | None]:
        """The servers and the prefix that were given; empty and None: as the settings say."""
        return self._servers, self._prefix

    async def _fetch(self, claim: bytes) -> bytes | None:
        return await self.connections.run(lambda here: blobs.fetch(here.broker.blobs, claim))

    # -- channels ------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send *message* to one channel.

        A normal channel's message is stored when this returns.

        Raises:
            ChannelFull: The channel holds as much as it may; if it is another process's: as far
                as that process has said so.
            MessageTooLarge: The message exceeds ``max_message_size``.
            BrokerUnavailable: No connection to NATS.
        """
        subject, data, mailbox = self._addressed(channel, message)
        if not subject:
            await self.connections.run(self.normal.send, channel, data)
            return
        if mailbox is not None:
            if not mailbox.has_room():
                await self._let_arrive()
                if not mailbox.has_room():
                    raise channel_full(channel)
            mailbox.announce()
        await self.connections.publish(subject, data, mailbox is None)
        counters.layer.sent_specific += 1

    def _addressed(
        self, channel: str, message: dict[str, Any]
    ) -> tuple[str, bytes, Mailbox[Item] | None]:
        """Return subject ("" for a normal channel), envelope, and the mailbox if it is here.

        Raises:
            ChannelFull: The channel is one process's, and known to be full.
        """
        require_message(message)
        subject, name, is_own = self._addresses[channel]
        data = self.envelopes.encode(name, message)
        mailbox = None
        if is_own:
            mailbox = self.local.mailboxes.get(name) or self.local.mailbox(name)
            if mailbox.is_full():
                raise channel_full(channel)
        elif full_channels.until and name in full_channels:
            raise channel_full(channel)
        return subject, data, mailbox

    async def _let_arrive(self) -> None:
        """Wait until this process has received what it has sent to its own channels."""

        async def confirm(connection: Connection) -> None:
            await connection.bus.confirm()

        with contextlib.suppress(TimeoutError):  # the channels' loop is busy
            async with asyncio.timeout(COMING_VALID):
                await self.connections.run(confirm)
                local = self.local.connection
                if local is not None and local.usable and local is not self.connections.current():
                    await local.call(local.bus.confirm)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of *channel*; wait for one.

        May be cancelled at any point: a message not returned stays for the next receiver.

        Raises:
            AssertionError: A process-specific channel of another process.
        """
        local = self.local
        while True:
            mailbox = local.by_channel.get(channel) or self._own_mailbox(channel)
            if mailbox is None:
                if local.connection is None:
                    await local.place()  # where `flush` is heard; a worker reads nothing else
                return await self.normal.receive(channel)
            item = mailbox.take()  # what is here needs no connection
            if item is None:
                item = await self._wait_for_item(mailbox)
            if local.complaints.told:
                local.taken(channel)
            if isinstance(item, bytes):
                message = self.envelopes.decode(item)
            else:
                message = await self.envelopes.decode_durable(mailbox, item)
            if message is not None:
                counters.layer.received += 1
                return message

    def _own_mailbox(self, channel: str) -> Mailbox[Item] | None:
        """Return the mailbox of a channel of this process; None if *channel* is a normal one."""
        subject, name, is_own = self._addresses[channel]
        if not subject:
            return None
        if not is_own:
            raise AssertionError("Wrong client prefix")
        return self.local.read(channel, name)

    async def _wait_for_item(self, mailbox: Mailbox[Item]) -> Item:
        local = self.local
        mailbox.reading += 1
        try:
            while True:
                # Again after each wait: it also ends when the local channels' loop is closed
                if local.connection is None or not local.connection.usable:
                    await local.place()
                await mailbox.wait()
                item = mailbox.take()
                if item is not None:
                    return item
        finally:
            mailbox.end_reading()

    async def connection_closing(self, connection: Connection) -> None:
        """Give back what *connection* has fetched of normal channels."""
        await self.normal.close(connection)

    def connection_closed(self, connection: Connection) -> None:
        """Let those who wait for messages find another connection."""
        if not connection.is_background:  # which is closed at the end of the process
            self._move_readers()

    def _move_readers(self) -> None:
        for mailbox in list(self.local.mailboxes.values()):
            mailbox.wake_all()
        self.normal.move_readers()

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that only this process receives on."""
        await self.local.place()
        self.local.is_new = False
        return f"{prefix}.{self.client_prefix}!{uuid.uuid4().hex}"

    # -- groups --------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make *channel*, of whichever process, a member of *group*. Idempotent.

        Whatever anybody sends to the group after this returned reaches the channel.

        Raises:
            BrokerUnavailable: No connection to NATS, or no answer in time.
        """
        await self._change(group, channel, "add")

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; a normal channel's in every process. Idempotent.

        Raises:
            BrokerUnavailable: Another process that has to know does not answer, or there is no
                connection to NATS.
        """
        await self._change(group, channel, "discard")

    async def _change(self, group: str, channel: str, action: str) -> None:
        name = self.directory.get(group) or self._name(group)
        subject, _, is_own = self._addresses[channel]
        if subject and not is_own:
            change = Change(action, group, channel)
            await self.connections.run(change_elsewhere, subject, change)
            return
        connection = await self.local.place()
        if action == "add":
            self.local.is_new = False  # the channels must not move while this waits
        here = self._add_here if action == "add" else self._discard_here
        if self.connections.here() is connection:
            await here(connection, name, channel)
        else:
            await connection.call(lambda: here(connection, name, channel))

    async def _add_here(self, connection: Connection, group: GroupName, channel: str) -> None:
        if not connection.bus.is_open:
            await connection.connect()
        if "!" not in channel:
            # Otherwise the group's first messages would go nowhere
            await connection.broker.channels.ensure(self.largest_capacity)
        await self.local.groups.add(connection, group, channel)

    async def _discard_here(self, connection: Connection, group: GroupName, channel: str) -> None:
        self.local.groups.discard(group.name, channel)
        if "!" not in channel:  # other processes may have added it, too
            await connection.connect()
            await leave_everywhere(connection, group.name, channel)
        elif self.connections.is_breathless():
            await self.connections.breathe(connection)

    def _name(self, group: str) -> GroupName:
        """Return what a new group's name says; in an event loop."""
        try:
            self.require_valid_group_name(group)
        except TypeError as exc:
            if isinstance(group, str) and "." in group:
                raise TypeError(
                    f"{exc} wsgateway.inbox_group(service, user) makes a valid name for every user."
                ) from None
            raise
        return self.directory.add(self.connections.current(), group)

    async def _address_of(self, name: GroupName) -> Address | None:
        """Return where a group is stored; None if it is not."""
        is_known, address = self.directory.known(self.connections.current(), name)
        return address if is_known else await self.connections.run(self.directory.find, name)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send *message* to every member of *group*.

        A durable group's message is stored when this returns; another's is sent, at most once.

        Raises:
            MessageTooLarge: The message exceeds ``max_message_size``; a durable ``ws.message``
                exceeds what NATS takes at once.
            BrokerUnavailable: No connection to NATS, or no answer in time.
        """
        require_message(message)
        name = self.directory.get(group) or self._name(group)
        address = name.kept if name.inbox is None else await self._address_of(name)
        if address is None:
            await self.connections.publish(name.subject, self.envelopes.encode(b"", message), False)
            if topic := self.directory.cast_of(self.connections.current(), name):
                await self.connections.run(durable.cast, topic, message)
            counters.layer.sent_group += 1
            return
        payload, kind = durable.payload_of(message, self.envelopes.pack)
        await self.connections.run(durable.store, address, payload, kind)
        counters.layer.sent_durable += 1

    def notice(self, is_open: bool) -> bytes | None:
        """Return what channels get when the connection is back, or lost; None: nothing."""
        kind = self.on_reconnect if is_open else self.on_disconnect
        return None if kind is None else self.envelopes.encode(b"", {"type": kind})

    # -- synchronous callers -------------------------------------------------------------

    def send_sync(self, channel: str, message: dict[str, Any]) -> None:
        """As `send`, from a thread without an event loop, over the shared connection."""
        require_no_loop("send_sync")
        subject, data, mailbox = self._addressed(channel, message)
        connection = self.connections.background()
        if mailbox is not None:
            if mailbox.has_room():
                mailbox.announce()
                if self.connections.publish_soon(connection, subject, data, False):
                    counters.layer.sent_specific += 1
                    return
                mailbox.came()
        elif subject and self.connections.publish_soon(connection, subject, data, True):
            counters.layer.sent_specific += 1
            return
        self._sync(lambda: self.send(channel, message))

    def group_send_sync(self, group: str, message: dict[str, Any]) -> None:
        """As `group_send`, from a thread without an event loop, over the shared connection.

        Several times faster than ``async_to_sync(layer.group_send)``, which makes a loop for
        each call.
        """
        require_no_loop("group_send_sync")
        require_message(message)
        if not self._group_send_soon(group, message):
            self._sync(lambda: self.group_send(group, message))

    def _group_send_soon(self, group: str, message: dict[str, Any]) -> bool:
        """Hand a message that is not stored to the background; False: the caller has to wait."""
        name = self.directory.get(group)
        if name is None:
            return False
        connection = self.connections.background()
        is_known, address = self.directory.known(connection, name)
        if not is_known or address is not None or self.directory.cast_of(connection, name):
            return False
        data = self.envelopes.encode(b"", message)
        was_handed = self.connections.publish_soon(connection, name.subject, data, False)
        counters.layer.sent_group += was_handed
        return was_handed

    def _sync(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        connection = self.connections.background()
        limit = 2 * settings.BROKER_TIMEOUT
        try:
            connection.call_sync(function, limit)
        except TimeoutError as exc:
            raise BrokerUnavailable(f"the background loop did not answer within {limit} s") from exc

    # -- flush, close --------------------------------------------------------------------

    async def flush(self) -> None:
        """Drop every message and group of every process; durable messages stay stored.

        Returns once every process has answered; one that stays silent for a tenth of a second
        after the last answer is not waited for.
        """
        await self.connections.run(flush)

    async def close(self) -> None:
        """Leave this layer's groups and channels, and disconnect.

        The next call reconnects, and so does a `receive` that is waiting: cancel it first.
        """
        self.local.leave()
        await self.normal.close()
        for connection in self.connections.take():
            if not connection.is_background:
                await connection.call(partial(shared(connection).leave, self))
        self._move_readers()

    async def close_pools(self) -> None:
        """Disconnect the running loop, if it has a connection of its own; as channels_redis."""
        connection = self.connections.take_here()
        if connection is None or connection.is_background:
            return
        if self.local.connection is connection:
            self.local.leave()
        await self._depart(connection)

    async def wait_received(self) -> None:
        """Return at once: nothing is received in the background that could be waited for."""
