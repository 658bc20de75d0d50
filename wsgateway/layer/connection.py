"""What the channel layers of one event loop share. `wsgateway.broker.runtime` says which one."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import weakref
from collections import deque
from typing import Protocol, cast

from wsgateway.broker import runtime
from wsgateway.broker.bus import new_reply_subject
from wsgateway.broker.connection import Connection
from wsgateway.broker.targets import Target
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.layer.fullness import FullChannels

__all__ = ["LayerConnection", "background_connection", "current_connection", "full_channels"]

logger = logging.getLogger("wsgateway.layer")

YIELD_EVERY = 64
"""Publishes after which the publisher lets the connection write."""


class User(Protocol):
    """A layer that uses a connection."""

    async def connection_closing(self, connection: LayerConnection) -> None:
        """Give back what *connection* has fetched, as long as it is connected."""

    def connection_closed(self, connection: LayerConnection) -> None:
        """Record that *connection* is closed."""


class LayerConnection:
    """What the layers of one loop share: a connection, and what goes with it.

    Args:
        connection: Every method but `call` must be called in its loop.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.loop = connection.loop
        self.is_background = connection.is_background
        self.call = connection.call
        self.call_sync = connection.call_sync
        self.subscriptions = connection.subscriptions
        self.broker = connection.broker
        self.subjects = self.broker.subjects
        self.bus = self.broker.bus
        self.publish = self.bus.publish
        self.notices = _notices
        """Where owners of channels answer what this process sends to them."""
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        """The layers that share it."""
        self._published = 0  # since the last yield
        self._soon = itertools.count(1)
        self._handed: deque[tuple[str, bytes, str]] = deque()  # by other threads, to publish
        self._taking = False  # whether `_take_handed` is about to run
        connection.on_close(self._on_closing, self._on_closed)

    def begin(self) -> None:
        """Subscribe to what every layer needs."""
        self.bus.subscribe(self.notices, _on_notice)
        self.broker.take_part()

    @property
    def usable(self) -> bool:
        """Whether its loop runs now, and the connection is kept up."""
        return self.connection.usable

    async def ready(self, timeout: float | None = None) -> None:
        """Connect if that is still to be done; wait until connected.

        Args:
            timeout: Seconds; None: ``WSGATEWAY_BROKER_TIMEOUT``.

        Raises:
            BrokerUnavailable: Not within the timeout.
        """
        if not self.bus.is_open:
            await self.connection.open()
            await self.bus.ready(timeout)

    async def in_effect(self) -> None:
        """Return once the subscriptions made here are in effect, wherever somebody sends.

        If the connection is lost, waits until it is back: the subscriptions are, too.

        Raises:
            BrokerUnavailable: Not within the timeout.
        """
        await self.ready()
        await self.broker.in_effect()

    def is_breathless(self) -> bool:
        """Say whether to call `breathe`; ask after each publish."""
        self._published += 1
        return self._published >= YIELD_EVERY

    def publish_soon(self, subject: str, data: bytes, reply: str) -> bool:
        """Publish in the connection's loop, without waiting; from any thread, in its order.

        Args:
            subject: Where.
            data: At most the bus' `max_payload`.
            reply: Where answers go; "" for none.

        Returns:
            False if it is not connected, or the caller must wait this time, so that it cannot
            run ahead of the connection; then nothing was done.
        """
        if not self.bus.is_open or next(self._soon) % YIELD_EVERY == 0:
            return False
        self._handed.append((subject, data, reply))
        if not self._taking:
            self._taking = True
            self.loop.call_soon_threadsafe(self._take_handed)
        return True

    def _take_handed(self) -> None:
        self._taking = False  # before looking: what is appended after the look calls again
        while self._handed:
            subject, data, reply = self._handed.popleft()
            self._published += 1
            try:
                self.publish(subject, data, reply=reply)
            except BrokerUnavailable as exc:
                logger.info("a message on %s was not sent: %s", subject, exc)
        self.bus.send_now()

    async def breathe(self) -> None:
        """Let the connection write; wait while the server is far behind."""
        self._published = 0
        await asyncio.sleep(0)
        await self.bus.pressure()

    async def leave(self, user: User) -> None:
        """Disconnect if nobody else uses the connection."""
        self.users.discard(user)
        if not self.users and not self.connection.kept:
            await self.connection.close()

    async def _on_closing(self) -> None:
        for user in list(self.users):
            await user.connection_closing(self)

    def _on_closed(self) -> None:
        for user in list(self.users):
            user.connection_closed(self)
        if not any(LayerConnection in each.attached for each in runtime.connections()):
            full_channels.until.clear()  # nobody here hears what becomes of them


def current_connection(target: Target) -> LayerConnection:
    """Return the running loop's connection, see `runtime.current`."""
    return _connection_of(runtime.current(target))


def background_connection(target: Target) -> LayerConnection:
    """Return the background thread's connection."""
    return _connection_of(runtime.background(target))


def _connection_of(connection: Connection) -> LayerConnection:
    found = connection.attached.get(LayerConnection)
    if found is None:
        with _attaching:
            found = connection.attached.get(LayerConnection)
            if found is None:
                found = connection.attached[LayerConnection] = LayerConnection(connection)
                if asyncio._get_running_loop() is found.loop:
                    found.begin()
                else:  # before anything that its loop is asked to do
                    found.loop.call_soon_threadsafe(found.begin)
    return cast(LayerConnection, found)


_attaching = threading.Lock()
full_channels = FullChannels()
"""Other processes' channels that have no room, as far as this one has heard."""
_notices = new_reply_subject()  # all connections listen: the one that has sent may be gone


def _on_notice(_subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
    if headers is None:  # otherwise it is the server's: nobody owns the channel
        full_channels.hear(data)


def _after_fork() -> None:
    global _notices, _attaching
    _notices = new_reply_subject()
    _attaching = threading.Lock()  # another thread may have held it


runtime.on_fork(_after_fork)
