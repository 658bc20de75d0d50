"""What the channel layers of one connection share: who they are, and how full channels are."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Protocol

from wsgateway.broker import runtime
from wsgateway.broker.bus import new_reply_subject
from wsgateway.broker.connection import Connection
from wsgateway.layer.fullness import FullChannels

__all__ = ["full_channels", "notices", "share", "shared"]


class Layer(Protocol):
    """One that uses a connection."""

    async def connection_closing(self, connection: Connection) -> None:
        """Give back what *connection* has fetched, as long as it is connected."""

    def connection_closed(self, connection: Connection) -> None:
        """Record that *connection* is closed."""


class Sharing:
    """The layers of one connection.

    Args:
        connection: Theirs.
    """

    def __init__(self, connection: Connection) -> None:
        self.layers: weakref.WeakSet[Layer] = weakref.WeakSet()
        self._connection = connection
        connection.on_close(self._on_closing, self._on_closed)

    def begin(self) -> None:
        """Subscribe to what every layer needs; in the connection's loop."""
        self._connection.bus.subscribe(notices(), _on_notice)
        self._connection.broker.take_part()

    async def leave(self, layer: Layer) -> None:
        """Disconnect if nobody else uses the connection; in its loop."""
        self.layers.discard(layer)
        if not self.layers and not self._connection.kept:
            await self._connection.close()

    async def _on_closing(self) -> None:
        for layer in list(self.layers):
            await layer.connection_closing(self._connection)

    def _on_closed(self) -> None:
        for layer in list(self.layers):
            layer.connection_closed(self._connection)
        if not any(Sharing in each.attached for each in runtime.connections()):
            full_channels.until.clear()  # nobody here hears what becomes of them


def shared(connection: Connection) -> Sharing:
    """Return the layers of *connection*. From any thread."""
    found: Sharing | None = connection.attached.get(Sharing)
    if found is None:
        with _attaching:
            found = connection.attached.get(Sharing)
            if found is None:
                found = connection.attached[Sharing] = Sharing(connection)
                if asyncio._get_running_loop() is connection.loop:
                    found.begin()
                else:  # before anything that its loop is asked to do
                    connection.loop.call_soon_threadsafe(found.begin)
    return found


def share(connection: Connection, layer: Layer) -> None:
    """Count *layer* among those of *connection*."""
    shared(connection).layers.add(layer)


def notices() -> str:
    """Return where owners of channels answer what this process sends to them."""
    return _notices


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
