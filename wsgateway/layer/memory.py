"""The channel layer within one process, for ``PUBSUB_BROKER = "memory"``.

It has the names, the options and the errors of the one on NATS, and writes messages as that does,
so that a test refuses what production would. What it keeps belongs to the memory broker's store.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from typing import Any

from channels.exceptions import ChannelFull, MessageTooLarge

from wsgateway.broker.bus import Closable
from wsgateway.broker.memory import MemoryBroker, shared_store
from wsgateway.broker.messages import Stored
from wsgateway.conf import settings
from wsgateway.exceptions import MessageTooBig, ServiceUnknown
from wsgateway.layer.durable import UNKNOWN_SERVICE, kept_inbox, payload_of
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.options import ConfiguredLayer, require_message, require_no_loop
from wsgateway.protocol.group_names import inbox_of_group, meant_services
from wsgateway.protocol.subjects import Inbox

__all__ = ["MemoryChannelLayer"]

logger = logging.getLogger("wsgateway.layer")

Item = bytes | Stored
"""What a mailbox holds: an envelope, or a message of a durable group."""


class _State:
    """What all layers with one prefix share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.mailboxes: dict[str, Mailbox[Item]] = {}
        self.groups: dict[str, set[str]] = {}  # name -> channels
        self.warned: set[str] = set()  # services that do not exist, although somebody means them
        self.watches: dict[str, Closable] = {}  # durable group -> what brings its messages


class MemoryChannelLayer(ConfiguredLayer):
    """See the module."""

    def _begin(self) -> None:
        self.client_prefix = uuid.uuid4().hex

    def __str__(self) -> str:
        return f"{type(self).__name__}(prefix={self.prefix!r})"

    @property
    def _state(self) -> _State:
        found = shared_store(settings).layers.setdefault(self.prefix, _State())
        assert isinstance(found, _State)
        return found

    # -- channels ------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send *message* to one channel.

        Raises:
            ChannelFull: The channel holds as much as it may.
            MessageTooLarge: The message exceeds ``max_message_size``.
        """
        require_message(message)
        self.require_valid_channel_name(channel)
        if not self._put(channel, self.envelopes.encode(b"", message)):
            raise ChannelFull(channel)

    def _put(self, channel: str, item: Item) -> bool:
        state = self._state
        with state.lock:
            mailbox = self._mailbox(state, channel)
            if isinstance(item, bytes):
                return mailbox.put(item)
            mailbox.put_always(item)
            return True

    def _mailbox(self, state: _State, channel: str) -> Mailbox[Item]:
        mailbox = state.mailboxes.get(channel)
        if mailbox is None:
            mailbox = state.mailboxes[channel] = Mailbox(0, self._is_expired)
        mailbox.capacity = self.get_capacity(channel)
        return mailbox

    def _is_expired(self, item: Item) -> bool:
        return isinstance(item, bytes) and self.envelopes.is_expired(item)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of *channel*; wait for one. May be cancelled at any point.

        Raises:
            AssertionError: A process-specific channel of another layer, which on NATS would be
                another process's.
        """
        self.require_valid_channel_name(channel)
        if "!" in channel and not channel.partition("!")[0].endswith(self.client_prefix):
            raise AssertionError("Wrong client prefix")
        state = self._state
        with state.lock:
            mailbox = self._mailbox(state, channel)
            mailbox.reading += 1
        try:
            while True:
                item = await mailbox.get()
                if isinstance(item, bytes):
                    message = self.envelopes.decode(item)
                else:
                    message = self.envelopes.event_of(item)
                if message is not None:
                    return message
        finally:
            with state.lock:
                mailbox.end_reading()
                if not mailbox.queue and not mailbox.reading:
                    state.mailboxes.pop(channel, None)

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that only this layer receives on."""
        return f"{prefix}.{self.client_prefix}!{uuid.uuid4().hex}"

    # -- groups --------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make *channel* a member of *group*. Idempotent."""
        inbox = self._inbox_of(group)
        self.require_valid_channel_name(channel)
        state = self._state
        with state.lock:
            state.groups.setdefault(group, set()).add(channel)
            if inbox is not None and group not in state.watches:
                state.watches[group] = shared_store(settings).watch(
                    inbox, lambda stored: self._deliver(group, stored)
                )

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership. Idempotent."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        state = self._state
        with state.lock:
            members = state.groups.get(group, set())
            members.discard(channel)
            if not members:
                state.groups.pop(group, None)
                watch = state.watches.pop(group, None)
                if watch is not None:
                    watch.close()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send *message* to every member of *group*; store it if the group is durable.

        Raises:
            MessageTooLarge: The message exceeds ``max_message_size``; a durable one also
                ``WSGATEWAY_MAX_MESSAGE_SIZE``.
        """
        require_message(message)
        inbox = self._inbox_of(group)
        if inbox is None:
            self._deliver(group, self.envelopes.encode(b"", message))
            return
        payload, kind = payload_of(message, self.envelopes.pack)
        broker = MemoryBroker.from_settings(settings)
        await broker.open()
        try:
            await broker.publish(inbox, payload, kind=kind)
        except MessageTooBig as exc:
            raise MessageTooLarge(str(exc)) from exc

    def _inbox_of(self, group: str) -> Inbox | None:
        """Return where a group is stored; None if it is not."""
        self.require_valid_group_name(group)
        inbox = inbox_of_group(group)
        if inbox is not None:
            broker = MemoryBroker.from_settings(settings)
            if broker.known_service(inbox.service):
                return inbox
            warned = self._state.warned
            if inbox.service in meant_services and inbox.service not in warned:
                warned.add(inbox.service)
                unknown = ServiceUnknown(inbox.service, broker.service_names)
                logger.warning(UNKNOWN_SERVICE, group, unknown)
        return kept_inbox(group)

    def _deliver(self, group: str, item: Item) -> None:
        members = list(self._state.groups.get(group, ()))
        full = sum(not self._put(channel, item) for channel in members)
        if full:
            logger.info("%s of %s channels over capacity in group %s", full, len(members), group)

    # -- synchronous callers -------------------------------------------------------------

    def send_sync(self, channel: str, message: dict[str, Any]) -> None:
        """As `send`, from a thread without an event loop."""
        require_no_loop("send_sync")
        asyncio.run(self.send(channel, message))

    def group_send_sync(self, group: str, message: dict[str, Any]) -> None:
        """As `group_send`, from a thread without an event loop."""
        require_no_loop("group_send_sync")
        asyncio.run(self.group_send(group, message))

    # -- flush, close --------------------------------------------------------------------

    async def flush(self) -> None:
        """Drop every message and group; durable messages stay stored."""
        state = self._state
        with state.lock:
            for watch in state.watches.values():
                watch.close()
            state.watches.clear()
            state.groups.clear()
            for mailbox in state.mailboxes.values():
                mailbox.queue.clear()

    async def close(self) -> None:
        """Do nothing; there is nothing to disconnect."""

    async def close_pools(self) -> None:
        """Do nothing; as channels_redis, whose callers need it."""

    async def wait_received(self) -> None:
        """Return at once: nothing is received in the background that could be waited for."""
