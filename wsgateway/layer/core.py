"""The channel layer: the methods of Channels' specification."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from channels.exceptions import ChannelFull
from channels.layers import channel_layers
from django.core.signals import setting_changed

from wsgateway.broker.bus import Closable, new_reply_subject
from wsgateway.broker.isolation import resets
from wsgateway.broker.runtime import on_fork
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable, NobodyAnswers
from wsgateway.layer import blobs, durable
from wsgateway.layer.connection import LayerConnection, full_channels
from wsgateway.layer.connections import Connections
from wsgateway.layer.durable import Directory, GroupName
from wsgateway.layer.forward import Forward
from wsgateway.layer.groups import Item
from wsgateway.layer.local_channels import FLUSHED, LocalChannels, control_message, flush_subject
from wsgateway.layer.mailbox import COMING_VALID, Mailbox
from wsgateway.layer.normal import NormalChannels
from wsgateway.layer.options import ConfiguredLayer, require_message, require_no_loop
from wsgateway.protocol.subjects import Inbox, Subjects

__all__ = ["NatsChannelLayer"]

logger = logging.getLogger("wsgateway.layer")

FLUSH_QUIET = 0.1
"""Seconds without another answer after which every process has flushed."""
NAMES_KEPT = 10_000
"""Valid names that are remembered, so that they are not checked again."""


class _Address(NamedTuple):
    """Where messages to a channel go.

    Attributes:
        subject: Its process's; "" for a normal channel.
        name: The channel's on the wire.
        is_own: Whether the channel is this process's.
    """

    subject: str
    name: bytes
    is_own: bool


class NatsChannelLayer(ConfiguredLayer):
    """Channels on NATS; a drop-in for ``channels_redis``.

    `ConfiguredLayer` describes the arguments. With ``PUBSUB_BROKER = "memory"`` and without
    servers of its own, everything stays within this process.
    """

    def _begin(self) -> None:
        self._start(uuid.uuid4().hex)
        _layers.add(self)

    def _start(self, client_prefix: str) -> None:
        """Begin with no connection and nothing known; again after a fork.

        Args:
            client_prefix: What says in channels' names that they are this process's.
        """
        self.client_prefix = client_prefix
        self._channels: dict[str, _Address] = {}
        self.directory = Directory()
        self.connections = Connections(self)
        self.normal = NormalChannels(self)
        self.local = LocalChannels(
            self.client_prefix,
            options=self,
            is_expired=self.envelopes.is_expired,
            choose=self.connections.current,
            forward=self._forward,
            directory=self.directory,
            on_flush=self.normal.flushed,
            notice=self._notice,
        )

    def __str__(self) -> str:
        return f"{type(self).__name__}(prefix={self.prefix!r}, client={self.client_prefix})"

    def _resized(self) -> None:
        self.local.resize()

    def _moved(self) -> None:
        self._channels.clear()
        self.directory.clear()
        self.local.leave()
        for connection in self.connections.move():
            asyncio.run_coroutine_threadsafe(self._depart(connection), connection.loop)

    async def _depart(self, connection: LayerConnection) -> None:
        await self.normal.close(connection)
        if not connection.is_background:
            await connection.leave(self)
        self._move_readers()

    @property
    def servers(self) -> tuple[list[str], str | None]:
        """The servers and the prefix that were given; empty and None: as the settings say."""
        return self._servers, self._prefix

    async def _fetch(self, claim: bytes) -> bytes | None:
        async def fetch(connection: LayerConnection) -> bytes | None:
            return await blobs.fetch(connection.broker.blobs, claim)

        return await self.connections.run(fetch)

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
                    raise ChannelFull(channel)
            mailbox.announce()
        await self.connections.publish(subject, data, mailbox is None)

    def _addressed(
        self, channel: str, message: dict[str, Any]
    ) -> tuple[str, bytes, Mailbox[Item] | None]:
        """Return subject ("" for a normal channel), envelope, and the mailbox if it is here.

        Raises:
            ChannelFull: The channel is one process's, and known to be full.
        """
        require_message(message)
        subject, name, is_own = self._channels.get(channel) or self._address(channel)
        data = self.envelopes.encode(name, message)
        mailbox = None
        if is_own:
            mailbox = self.local.mailboxes.get(name) or self.local.mailbox(name)
            if mailbox.is_full():
                raise ChannelFull(channel)
        elif full_channels.until and name in full_channels:
            raise ChannelFull(channel)
        return subject, data, mailbox

    async def _let_arrive(self) -> None:
        """Wait until this process has received what it has sent to its own channels."""

        async def confirm(connection: LayerConnection) -> None:
            await connection.bus.confirm()

        with contextlib.suppress(TimeoutError):  # the channels' loop is busy
            async with asyncio.timeout(COMING_VALID):
                await self.connections.run(confirm)
                local = self.local.connection
                if local is not None and local.usable and local is not self.connections.current():
                    await local.call(local.bus.confirm)

    def _address(self, channel: str) -> _Address:
        """Return where messages to *channel* go."""
        self.require_valid_channel_name(channel)
        if "!" in channel:
            owner = channel.partition("!")[0].rpartition(".")[2]
            subject = Subjects(self.prefix).process(owner or "-")
            known = _Address(subject, channel.encode(), owner == self.client_prefix)
        else:
            known = _Address("", channel.encode(), False)
        if len(self._channels) >= NAMES_KEPT:
            self._channels.clear()
        self._channels[channel] = known
        return known

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of *channel*; wait for one.

        May be cancelled at any point: a message not returned stays for the next receiver.

        Raises:
            AssertionError: A process-specific channel of another process.
        """
        local = self.local
        mailbox = local.by_channel.get(channel) or self._own_mailbox(channel)
        if mailbox is None:
            if local.connection is None:
                await local.place()  # where `flush` is heard; a worker reads nothing else
            return await self.normal.receive(channel)
        while (item := mailbox.take()) is not None:  # what is here needs no connection
            if local.complaints.told:
                local.taken(channel)
            if isinstance(item, bytes):
                message = self.envelopes.decode(item)
            else:
                message = await self.envelopes.decode_durable(mailbox, item)
            if message is not None:
                return message
        return await self._wait_for_message(channel, mailbox)

    def _own_mailbox(self, channel: str) -> Mailbox[Item] | None:
        """Return the mailbox of a channel of this process; None if *channel* is a normal one."""
        subject, name, is_own = self._channels.get(channel) or self._address(channel)
        if not subject:
            return None
        if not is_own:
            raise AssertionError("Wrong client prefix")
        return self.local.read(channel, name)

    async def _wait_for_message(self, channel: str, mailbox: Mailbox[Item]) -> dict[str, Any]:
        local = self.local
        mailbox.reading += 1
        try:
            while True:
                # Again after each wait: it also ends when the local channels' loop is closed
                if local.connection is None or not local.connection.usable:
                    await local.place()
                await mailbox.wait()
                item = mailbox.take()
                if item is None:
                    continue
                if local.complaints.told:
                    local.taken(channel)
                if isinstance(item, bytes):
                    message = self.envelopes.decode(item)
                else:
                    message = await self.envelopes.decode_durable(mailbox, item)
                if message is not None:
                    return message
        finally:
            mailbox.end_reading()

    async def connection_closing(self, connection: LayerConnection) -> None:
        """Give back what *connection* has fetched of normal channels."""
        await self.normal.close(connection)

    def connection_closed(self, connection: LayerConnection) -> None:
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
        subject, _, is_own = self._channels.get(channel) or self._address(channel)
        if subject and not is_own:
            await self._change_elsewhere(group, channel, subject, action)
            return
        connection = await self.local.place()
        change = self._add_here if action == "add" else self._discard_here
        if self.connections.here() is connection:
            await change(connection, name, channel)
        else:
            await connection.call(lambda: change(connection, name, channel))

    async def _add_here(self, connection: LayerConnection, group: GroupName, channel: str) -> None:
        if not connection.bus.is_open:
            await connection.ready()
        if "!" not in channel:
            # Otherwise the group's first messages would go nowhere
            await connection.broker.channels.ensure(self.largest_capacity)
        await self.local.groups.add(connection, group, channel)

    async def _discard_here(
        self, connection: LayerConnection, group: GroupName, channel: str
    ) -> None:
        self.local.groups.discard(group.name, channel)
        if "!" not in channel:  # other processes may have added it, too
            await connection.ready()
            with contextlib.suppress(NobodyAnswers):  # any more: each request tells one of them
                while True:
                    await connection.bus.request(
                        connection.subjects.leave(group.name, channel), b""
                    )
        elif connection.is_breathless():
            await connection.breathe()

    async def _change_elsewhere(self, group: str, channel: str, subject: str, action: str) -> None:
        """Ask the channel's owner; if it is gone, so is the channel."""
        data = control_message(action, group, channel)

        async def ask(connection: LayerConnection) -> None:
            try:
                await connection.bus.request(subject, data)
            except NobodyAnswers:
                logger.debug("nobody owns channel %s any more", channel)

        await self.connections.run(ask)

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

    async def _inbox_of(self, name: GroupName) -> Inbox | None:
        """Return where a group is stored; None if it is not."""
        is_known, inbox = self.directory.known(self.connections.current(), name)
        return inbox if is_known else await self.connections.run(self.directory.find, name)

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
        inbox = name.kept if name.inbox is None else await self._inbox_of(name)
        if inbox is None:
            await self.connections.publish(name.subject, self.envelopes.encode(b"", message), False)
            return
        payload, kind = durable.payload_of(message, self.envelopes.pack)
        await self.connections.run(durable.store, inbox, payload, kind)

    def _notice(self, is_open: bool) -> bytes | None:
        kind = self.on_reconnect if is_open else self.on_disconnect
        return None if kind is None else self.envelopes.encode(b"", {"type": kind})

    def _forward(
        self, connection: LayerConnection, group: str, inbox: Inbox | None, channel: str
    ) -> Closable:
        options, envelopes = self, self.envelopes
        return Forward(connection, group, inbox, channel, options=options, envelopes=envelopes)

    # -- synchronous callers -------------------------------------------------------------

    def send_sync(self, channel: str, message: dict[str, Any]) -> None:
        """As `send`, from a thread without an event loop, over the shared connection."""
        require_no_loop("send_sync")
        subject, data, mailbox = self._addressed(channel, message)
        if mailbox is not None:
            if mailbox.has_room():
                mailbox.announce()
                if self.connections.publish_soon(subject, data, False):
                    return
                mailbox.came()
        elif subject and self.connections.publish_soon(subject, data, True):
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
        is_known, inbox = self.directory.known(self.connections.background(), name)
        if not is_known or inbox is not None:
            return False
        return self.connections.publish_soon(
            name.subject, self.envelopes.encode(b"", message), False
        )

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
        await self.connections.run(self._flush_at)

    async def _flush_at(self, connection: LayerConnection) -> None:
        await connection.broker.channels.purge()
        heard = asyncio.Event()
        answered = True

        def on_answer(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
            nonlocal answered
            answered = answered or data == FLUSHED
            heard.set()

        bus, answers = connection.bus, new_reply_subject()
        subscription = bus.subscribe(answers, on_answer)
        try:
            bus.publish(flush_subject(connection), b"", reply=answers)
            while answered:
                answered = False
                heard.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_QUIET):
                        await heard.wait()
        finally:
            subscription.close()

    async def close(self) -> None:
        """Leave this layer's groups and channels, and disconnect.

        The next call reconnects, and so does a `receive` that is waiting: cancel it first.
        """
        self.local.leave()
        await self.normal.close()
        for connection in self.connections.take():
            if not connection.is_background:
                await connection.call(partial(connection.leave, self))
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


_layers: weakref.WeakSet[NatsChannelLayer] = weakref.WeakSet()
CHOOSING = {"PUBSUB_BROKER", "NATS_BROKER_URL", "WSGATEWAY_PREFIX"}
"""Settings that decide what a layer works with."""


def _forget_layers(*, setting: str, **kwargs: Any) -> None:
    """Have layers go by what a test has set; for most, the next `get_channel_layer` makes one."""
    if setting in CHOOSING:
        for alias, layer in list(channel_layers.backends.items()):
            if isinstance(layer, ConfiguredLayer):
                del channel_layers.backends[alias]
    elif setting == "WSGATEWAY_DURABLE_GROUPS":
        for layer in list(_layers):
            layer.directory.clear()


setting_changed.connect(_forget_layers)


def _restart_layers() -> None:
    for layer in list(_layers):
        layer._start(uuid.uuid4().hex)


on_fork(_restart_layers)


def _empty_memory() -> None:
    for layer in list(_layers):
        if layer.connections.are_in_memory:
            layer.local.leave()
            layer._start(layer.client_prefix)


resets.append(_empty_memory)
