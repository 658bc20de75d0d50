"""Channels that nobody reads: they leave their groups, and what they hold is freed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.layer.local_channels import LocalChannels

__all__ = ["Unread"]

ABANDONED = 10.0
"""A channel with expired messages that nobody has read for this many times the expiry has no
reader any more: a consumer ended without leaving its groups."""


class Unread:
    """Looks for unread channels now and then. Call it in the channels' loop, but for `wake`.

    Args:
        local: The channels.
    """

    def __init__(self, local: LocalChannels) -> None:
        self._local = local
        self._resting: set[bytes] = set()  # channels whose durable groups wait for a reader
        self._timer: asyncio.TimerHandle | None = None  # of the next look

    def look_later(self, connection: Connection) -> None:
        """Look soon, and again from then on, as long as the channels are on *connection*."""
        self.stop()
        options = self._local.layer
        pause = min(max(min(options.expiry, options.group_expiry), 1.0), 60.0)
        self._timer = connection.loop.call_later(pause, self._look, connection)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, connection: Connection) -> None:
        local, groups = self._local, self._local.groups
        if local.connection is not connection:
            return
        self.look_later(connection)
        groups.look_at_services(connection)
        now = time.monotonic()
        expiry, group_expiry = local.layer.expiry, local.layer.group_expiry
        for name, mailbox in local.mailboxes.copy().items():  # other threads make more
            expired = mailbox.purge()
            if expired:
                local.complaints.room(name)
            if mailbox.reading:
                continue
            idle = now - mailbox.used
            is_abandoned = idle > ABANDONED * expiry
            if (expired and is_abandoned) or idle > group_expiry:
                groups.leave_all(name)
            elif is_abandoned and name in groups.joined and mailbox.queue:
                self._rest(name)
            if name not in groups.joined and not mailbox.queue and idle > max(expiry, 60.0):
                local.forget(name)

    def _rest(self, name: bytes) -> None:
        """Free what a durable group has brought to a channel that nobody reads, until then."""
        self._resting.add(name)
        self._local.by_channel.pop(name.decode(), None)  # so that its next reader calls `wake`
        for subscription in self._local.groups.subscriptions_of(name):
            subscription.rest()
        self._local.complaints.room(name)

    def forget(self, name: bytes) -> None:
        """Record that a channel is gone."""
        self._resting.discard(name)

    def wake(self, name: bytes) -> None:
        """Bring what `_rest` has freed, if anything. From any thread."""
        connection = self._local.connection
        if name not in self._resting or connection is None:
            return  # the next loop attaches all

        def wake() -> None:
            if self._local.connection is connection and name in self._resting:
                self._resting.discard(name)
                for subscription in self._local.groups.subscriptions_of(name):
                    if subscription.attachment is None:
                        subscription.attach(connection)

        with contextlib.suppress(RuntimeError):  # its loop is closed
            connection.loop.call_soon_threadsafe(wake)
