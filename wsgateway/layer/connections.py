"""Which connection a layer uses, and how it publishes what is not stored."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from wsgateway.broker import runtime
from wsgateway.broker.connection import Connection
from wsgateway.broker.runtime import is_short_lived
from wsgateway.broker.targets import Target, target_of
from wsgateway.exceptions import BrokerClosed
from wsgateway.layer import wire
from wsgateway.layer.differences import find_differences
from wsgateway.layer.sharing import notices, share, shared

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["Connections"]

logger = logging.getLogger("wsgateway.layer")

P = ParamSpec("P")
T = TypeVar("T")

YIELD_EVERY = 64
"""Publishes after which the publisher lets the connection write."""


class Connections:
    """The connections of one layer: each long-lived event loop has one.

    Args:
        layer: Whose.
    """

    def __init__(self, layer: NatsChannelLayer) -> None:
        self._layer = layer
        self._target: Target | None = None
        self.by_loop: dict[asyncio.AbstractEventLoop, Connection] = {}
        """Those that were used, by event loop."""
        self._published = 0  # since the last pause

    @property
    def target(self) -> Target:
        """Where the layer connects to; chosen at the first use."""
        if self._target is None:
            servers, prefix = self._layer.servers
            for what, cure in find_differences(servers, prefix):
                logger.warning("channel layer: %s. To fix this, %s", what, cure)
            self._target = target_of(tuple(servers), self._layer.prefix)
        return self._target

    @property
    def are_in_memory(self) -> bool:
        """Whether a broker within this process was chosen."""
        return self._target is not None and self._target.options is None

    def here(self) -> Connection | None:
        """Return the running loop's own connection, if it was used before."""
        return self.by_loop.get(asyncio.get_running_loop())

    def current(self) -> Connection:
        """Return the connection that serves the running loop."""
        loop = asyncio.get_running_loop()
        connection = self.by_loop.get(loop)
        if connection is None or not connection.usable:
            connection = runtime.current(self.target)
            share(connection, self._layer)
            if connection.loop is loop:
                for known in list(self.by_loop):  # other threads do the same
                    if known.is_closed():
                        self.by_loop.pop(known, None)
                self.by_loop[loop] = connection
        return connection

    def background(self) -> Connection:
        """Return the background thread's connection."""
        connection = runtime.background(self.target)
        shared(connection)  # begins with the first layer
        return connection

    async def ready(self) -> Connection:
        """Return the connection that serves the running loop, connected.

        Raises:
            BrokerUnavailable: Not connected within the timeout.
        """
        while True:
            connection = self.current()
            try:
                if not connection.bus.is_open:
                    await connection.call(connection.connect)
                return connection
            except BrokerClosed:  # `close` was called while this waited
                if connection.usable:
                    raise

    async def run(
        self,
        action: Callable[Concatenate[Connection, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run *action* in the loop of the connection that serves the running loop.

        The broker knows this process's groups then, so that what it publishes reaches them.
        """
        here, local = self.by_loop.get(asyncio.get_running_loop()), self._layer.local
        if here is not None and here.bus.is_open and not local.unconfirmed:
            return await action(here, *args, **kwargs)
        connection = await self.ready()
        if local.unconfirmed and local.connection is not connection:
            await local.confirm()
        return await connection.call(lambda: action(connection, *args, **kwargs))

    def take(self) -> list[Connection]:
        """Return all that are usable, and forget them."""
        connections, self.by_loop = self.by_loop, {}
        return [connection for connection in connections.values() if connection.usable]

    def take_here(self) -> Connection | None:
        """Return the running loop's own, if there is one, and forget it."""
        return self.by_loop.pop(asyncio.get_running_loop(), None)

    def move(self) -> list[Connection]:
        """Choose the target again with the next use; return and forget all that are usable."""
        self._target = None
        return self.take()

    # -- publish -------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes, has_owner: bool) -> None:
        """Publish an envelope, at most once, from whatever loop.

        Args:
            subject: A process's or a group's.
            data: An envelope.
            has_owner: Whether another process owns the channel, and may answer that it is full.
        """
        loop = asyncio.get_running_loop()
        here, local = self.by_loop.get(loop), self._layer.local
        if local.connection is not here and local.is_stranded:
            await local.place()  # one of our own channels may be among the receivers
        if here is not None and here.bus.is_open and not local.unconfirmed:
            if len(data) > here.bus.max_payload:
                await self._publish_at(here, subject, data, has_owner)
                return
            here.bus.publish(subject, data, reply=notices() if has_owner else "")
            if self.is_breathless():
                await self.breathe(here)
        elif not (
            is_short_lived(loop) and self.publish_soon(self.background(), subject, data, has_owner)
        ):
            await self.run(self._publish_at, subject, data, has_owner)

    async def _publish_at(
        self, connection: Connection, subject: str, data: bytes, has_owner: bool
    ) -> None:
        limit = connection.bus.max_payload
        reply = notices() if has_owner else ""
        is_whole = len(data) <= limit
        for part in [data] if is_whole else wire.split(data, uuid.uuid4().bytes, limit):
            connection.bus.publish(subject, part, reply=reply)
            if self.is_breathless() or not is_whole:
                await self.breathe(connection)

    def is_breathless(self) -> bool:
        """Say whether to call `breathe`; ask after each publish."""
        self._published += 1
        return self._published >= YIELD_EVERY

    async def breathe(self, connection: Connection) -> None:
        """Let *connection*, in its loop, write; wait while the other side is far behind."""
        self._published = 0
        await asyncio.sleep(0)
        await connection.bus.pressure()

    def publish_soon(
        self, connection: Connection, subject: str, data: bytes, has_owner: bool
    ) -> bool:
        """Hand an envelope to the background loop; return False if the caller has to wait.

        Args:
            connection: The background thread's.
            subject: As for `publish`.
            data: As for `publish`.
            has_owner: As for `publish`.
        """
        local = self._layer.local
        if local.connection is not connection and (local.unconfirmed or local.is_stranded):
            return False
        if len(data) > connection.bus.max_payload:
            return False
        return connection.publish_soon(subject, data, notices() if has_owner else "")
