"""Publishing to RabbitMQ, confirmed."""

from __future__ import annotations

import asyncio
import re

from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from wsgateway.bridges.amqp.connection import Link, explain, until_closed
from wsgateway.bridges.config import Bridge
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.supervision import share

__all__ = ["Publisher"]

CONFIRM_TIMEOUT = 10.0
"""Seconds that a caller waits for a connection and RabbitMQ's confirmation."""

CHANNEL_PAUSE = 0.05
"""Seconds between a channel that RabbitMQ has closed and the next one."""

_TOO_LARGE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")


class Publisher:
    """Publishes over a connection of its own: RabbitMQ's alarms stop whole connections.

    Args:
        bridge: Its configuration.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.link = Link(bridge, "publishing", self._use)
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None  # None while nothing can be published
        # What RabbitMQ has not confirmed, by exchange and routing key, with its id. Its caller may
        # have left.
        self._pending: dict[tuple[str, str], tuple[str | None, asyncio.Task[None]]] = {}
        self._max_size: int | None = None  # bytes, once RabbitMQ has refused a larger message

    async def _use(self, connection: AbstractConnection) -> None:
        while True:
            try:
                return await self._use_channel(connection)
            except amqp.AMQPChannelError:
                # For what was published, such as to a missing exchange. That is explained to the
                # caller; the connection is as good as before.
                await asyncio.sleep(CHANNEL_PAUSE)

    async def _use_channel(self, connection: AbstractConnection) -> None:
        channel = connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.initialize()
        under = await channel.get_underlay_channel()
        self._connection, self._channel = connection, under
        self.link.established()
        try:
            await until_closed(under)
        finally:
            self._connection = self._channel = None
            for _, task in self._pending.values():
                task.cancel()  # some would wait for the lost channel forever

    async def publish(
        self, exchange: str, key: str, payload: bytes, properties: Basic.Properties
    ) -> None:
        """Publish a message; return once RabbitMQ has confirmed that every queue has it.

        An attempt that takes too long for its caller goes on. The next one for the same routing
        key waits for it, and has its result if it is of the same message. So an alarm, during
        which RabbitMQ confirms nothing, neither repeats nor reorders what it is told afterwards.

        Args:
            exchange: Where.
            key: The routing key.
            payload: The body.
            properties: The rest. ``message_id`` tells an attempt to publish it again.

        Raises:
            BusUnavailable: It is not confirmed.
            BusMisconfigured: It cannot be published, or there is no queue for it.
            RecordRefused: RabbitMQ never takes it.
        """
        self._check_size(payload)
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                await self._publish_in_turn(exchange, key, payload, properties)
        except TimeoutError:
            raise BusUnavailable(
                str(self.link.error or f"RabbitMQ has not confirmed within {CONFIRM_TIMEOUT:g} s")
            ) from None

    async def _publish_in_turn(
        self, exchange: str, key: str, payload: bytes, properties: Basic.Properties
    ) -> None:
        turn = exchange, key
        while (before := self._pending.get(turn)) is not None:
            id, task = before
            if id is not None and id == properties.message_id:
                return await _result(task)
            await asyncio.wait({task})
        channel = await self._usable()
        task = share(
            self._publish(channel, exchange, key, payload, properties), f"publish to {exchange}"
        )
        self._pending[turn] = properties.message_id, task
        task.add_done_callback(lambda _: self._pending.pop(turn))
        return await _result(task)

    async def _usable(self) -> AbstractChannel:
        """Return the channel once RabbitMQ takes messages: it is connected, and raises no alarm."""
        while True:
            await self.link.wait()
            connection, channel = self._connection, self._channel
            if channel is None or connection is None or connection.transport is None:
                await asyncio.sleep(CHANNEL_PAUSE)
                continue
            await connection.transport.ready()
            if channel is self._channel:
                return channel

    async def _publish(
        self,
        channel: AbstractChannel,
        exchange: str,
        key: str,
        payload: bytes,
        properties: Basic.Properties,
    ) -> None:
        try:
            await channel.basic_publish(
                payload,
                exchange=exchange,
                routing_key=key,
                properties=properties,
                mandatory=True,
            )
        except amqp.PublishError:
            raise BusMisconfigured(
                f"no queue is bound to exchange {exchange!r} for routing key "
                f"'{key.partition('.')[0]}.*'; bind the queue of the service that reads it"
            ) from None
        except amqp.DeliveryError:
            raise BusUnavailable(
                "RabbitMQ took no message: a queue for it is full, or has lost its replicas"
            ) from None
        except (*amqp.CONNECTION_EXCEPTIONS, asyncio.CancelledError) as exc:
            raise self._failure(exc, payload) from exc

    def _failure(self, error: BaseException, payload: bytes) -> BusError:
        """Return why a channel that has ended has not published a message.

        One message that is too large ends it for others. They are published on the next channel.
        """
        said = _TOO_LARGE.search(str(error))
        if said:
            self._max_size = int(said[1])
            try:
                self._check_size(payload)
            except RecordRefused as exc:
                return exc
        if isinstance(error, asyncio.CancelledError):
            return BusUnavailable("RabbitMQ's channel was closed")
        return explain(error, self._bridge)

    def _check_size(self, payload: bytes) -> None:
        if self._max_size is not None and len(payload) > self._max_size:
            raise RecordRefused(
                f"message of {len(payload)} bytes exceeds RabbitMQ's max_message_size "
                f"({self._max_size} bytes); restart the bridge after you have raised it"
            )


async def _result(task: asyncio.Task[None]) -> None:
    """Wait for an attempt, which goes on if its caller leaves.

    `asyncio.shield` would hand on the cancellation of one that has not begun when its channel is
    lost. Nobody has cancelled the caller.
    """
    await asyncio.wait({task})
    if task.cancelled():
        raise BusUnavailable("RabbitMQ's channel was closed")
    task.result()
