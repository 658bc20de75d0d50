"""Publishing to RabbitMQ, confirmed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from wsgateway.bridges.amqp.connection import Link, explain, until_closed
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.names import Names
from wsgateway.deadlines import Deadlines
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.supervision import share

__all__ = ["Outgoing", "Publisher"]

CONFIRM_TIMEOUT = 10.0
"""Seconds that a caller waits for a connection and RabbitMQ's confirmation."""

MAX_CONFIRMED = 10_000
"""Confirmations that are kept for callers who have left, and may try again."""
CHANNEL_PAUSE = 0.05
"""Seconds between a channel that RabbitMQ has closed and the next one."""

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


class Outgoing(NamedTuple):
    """A message to publish.

    Attributes:
        exchange: Where.
        key: The routing key.
        payload: The body.
        properties: The rest.
    """

    exchange: str
    key: str
    payload: bytes
    properties: Basic.Properties


class Publisher:
    """Publishes over a connection of its own: RabbitMQ's alarms stop whole connections.

    Args:
        bridge: Its configuration.

    Attributes:
        link: The connection.
        messages: For what clients send.
        dead: For what is set aside. If that fails, RabbitMQ closes the channel, and with it
            whatever else is on its way there.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.link = Link(bridge, "publishing", self._use)
        self.messages = Outlet(bridge, self.link)
        self.dead = Outlet(bridge, self.link)

    async def _use(self, connection: AbstractConnection) -> None:
        outlets = self.messages, self.dead

        def on_open() -> None:
            if all(outlet.is_open for outlet in outlets):
                self.link.established()

        tasks = [share(each.run(connection, on_open), "publish to RabbitMQ") for each in outlets]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises why it ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


class Outlet:
    """A channel to publish on, which is replaced when it is closed.

    Args:
        bridge: The bridge's configuration.
        link: Its connection.

    Attributes:
        max_size: Bytes of the largest payload that RabbitMQ takes, once it has refused a larger
            one; None before.
    """

    def __init__(self, bridge: Bridge, link: Link) -> None:
        self._bridge = bridge
        self._link = link
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None  # None while nothing can be published
        self._deadlines = Deadlines()
        # What RabbitMQ has not confirmed, by turn. Its caller may have left.
        self._pending: dict[object, tuple[object, asyncio.Task[None]]] = {}
        # What it has confirmed, and no caller has heard of: the id, by turn
        self._confirmed: dict[object, object] = {}
        self.max_size: int | None = None

    @property
    def is_open(self) -> bool:
        return self._channel is not None

    async def run(self, connection: AbstractConnection, on_open: Callable[[], None]) -> None:
        """Have a channel of a connection until that is lost."""
        self.max_size = None  # RabbitMQ may have restarted with another
        while True:
            try:
                return await self._use_channel(connection, on_open)
            except amqp.AMQPChannelError:
                # For what was published, such as to a missing exchange. That is explained to the
                # caller; the connection is as good as before.
                await asyncio.sleep(CHANNEL_PAUSE)

    async def _use_channel(
        self, connection: AbstractConnection, on_open: Callable[[], None]
    ) -> None:
        channel = connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.initialize()
        under = await channel.get_underlay_channel()
        self._connection, self._channel = connection, under
        on_open()
        try:
            await until_closed(under)
        finally:
            self._connection = self._channel = None
            for _, task in self._pending.values():
                task.cancel()  # some would wait for the lost channel forever

    async def publish(self, message: Outgoing, *, turn: object, id: object) -> None:
        """Publish a message; return once RabbitMQ has confirmed that every queue has it.

        An attempt that takes too long for its caller goes on. The next one of the same turn waits
        for it. If both are of the same message, it has the first one's result, even if that came
        before it asked. So an alarm, during which RabbitMQ confirms nothing, neither repeats nor
        reorders what it is told afterwards.

        Args:
            message: The message.
            turn: Messages of the same turn are published one after the other. Those with the same
                ``message_id`` must be: aio-pika tells by it which one RabbitMQ returns.
            id: Tells an attempt to publish the same message again; None: nothing does.

        Raises:
            BusUnavailable: It is not confirmed.
            BusMisconfigured: It cannot be published, or there is no queue for it.
            RecordRefused: RabbitMQ never takes it.
        """
        self._check_size(message.payload)
        timeout = asyncio.timeout(None)
        withdraw = self._deadlines.add(CONFIRM_TIMEOUT, lambda: timeout.reschedule(0))
        try:
            async with timeout:
                await self._publish_in_turn(message, turn, id)
            self._confirmed.pop(turn, None)
        except TimeoutError:
            late = (
                f"RabbitMQ did not confirm a message within {CONFIRM_TIMEOUT:g} s; its memory or "
                "disk alarm may be on"
            )
            raise BusUnavailable(str(self._link.error or late)) from None
        finally:
            withdraw()

    async def _publish_in_turn(self, message: Outgoing, turn: object, id: object) -> None:
        if id is not None and self._confirmed.get(turn) == id:
            return
        while True:
            before = self._pending.get(turn)
            if before is not None:
                its_id, task = before
                if id is not None and id == its_id:
                    return await _result(task)
                await asyncio.wait({task})
                continue
            channel = await self._usable()
            if turn not in self._pending:  # somebody else may have waited for the channel, too
                break
        task = share(self._publish(channel, message), f"publish to {message.exchange}")
        self._pending[turn] = id, task
        task.add_done_callback(lambda done: self._on_done(turn, id, done))
        return await _result(task)

    def _on_done(self, turn: object, id: object, task: asyncio.Task[None]) -> None:
        del self._pending[turn]
        if id is None or task.cancelled() or task.exception() is not None:
            return
        while len(self._confirmed) >= MAX_CONFIRMED:
            del self._confirmed[next(iter(self._confirmed))]
        self._confirmed[turn] = id

    async def _usable(self) -> AbstractChannel:
        """Return the channel once RabbitMQ takes messages: it is connected, and raises no alarm."""
        while True:
            await self._link.wait()
            connection, channel = self._connection, self._channel
            transport = connection and connection.transport
            if channel is None or channel.is_closed or transport is None:
                await asyncio.sleep(CHANNEL_PAUSE)
                continue
            await transport.ready()
            if channel is self._channel:
                return channel

    async def _publish(self, channel: AbstractChannel, message: Outgoing) -> None:
        exchange, key, payload, properties = message
        try:
            await channel.basic_publish(
                payload,
                exchange=exchange,
                routing_key=key,
                properties=properties,
                mandatory=True,
            )
        except amqp.PublishError:
            raise BusMisconfigured(self._unrouted(exchange, key)) from None
        except amqp.DeliveryError:
            raise BusUnavailable(
                f"RabbitMQ rejected a message: a queue bound to exchange {exchange!r} is full, or "
                "most of its replicas are down"
            ) from None
        except (*amqp.CONNECTION_EXCEPTIONS, asyncio.CancelledError) as exc:
            raise self._failure(exc, payload) from exc

    def _unrouted(self, exchange: str, key: str) -> str:
        bridge = self._bridge
        if exchange == Names(bridge.prefix).dead:
            return (
                f"no queue is bound to exchange {exchange!r}; run "
                f'"manage.py setup_bridges {bridge.name}"'
            )
        return (
            f"no queue is bound to exchange {exchange!r} for routing key "
            f"'{key.partition('.')[0]}.*'; bind the queue that your service reads"
        )

    def _failure(self, error: BaseException, payload: bytes) -> BusError:
        """Return why a channel that has ended has not published a message.

        One message that is too large ends it for others. They are published on the next channel.
        """
        said = _TOO_LARGE.search(str(error))
        if said:
            self.max_size = int(said[1])
            try:
                self._check_size(payload)
            except RecordRefused as exc:
                return exc
        if isinstance(error, asyncio.CancelledError):
            return BusUnavailable("the channel to RabbitMQ was closed")
        return explain(error, self._bridge)

    def _check_size(self, payload: bytes) -> None:
        if self.max_size is not None and len(payload) > self.max_size:
            raise RecordRefused(
                f"message of {len(payload)} bytes exceeds RabbitMQ's max_message_size "
                f"({self.max_size} bytes); raise it and restart RabbitMQ"
            )


async def _result(task: asyncio.Task[None]) -> None:
    """Wait for an attempt, which goes on if its caller leaves.

    `asyncio.shield` would hand on the cancellation of one that has not begun when its channel is
    lost. Nobody has cancelled the caller.
    """
    ended = asyncio.get_running_loop().create_future()
    task.add_done_callback(partial(_end, ended))
    await ended
    if task.cancelled():
        raise BusUnavailable("the channel to RabbitMQ was closed")
    task.result()


def _end(ended: asyncio.Future[None], _task: object) -> None:
    if not ended.done():  # its caller may have left
        ended.set_result(None)
