"""What a bridge needs on RabbitMQ: its exchanges and queues, and how they are bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractConnection

from wsgateway.bridges.amqp.connection import explain
from wsgateway.bridges.bus import Target
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.names import Names
from wsgateway.bridges.steps import Steps
from wsgateway.exceptions import BusMisconfigured

__all__ = ["Lane", "Topology"]

NEVER = 1_000_000_000
"""Deliveries of one record. From RabbitMQ 4.0 on, a queue drops what comes back the 20th time."""


SPREAD = "x-consistent-hash"
PLUGIN = "rabbitmq_consistent_hash_exchange"

LEFT = (
    "still holds records or has a consumer: run the bridge with 'queues': {} until the queue is "
    "empty, and then set it up with the smaller number again"
)

QUEUE = {"x-queue-type": "quorum", "x-delivery-limit": NEVER}
"""Replicated where there are several nodes, and on disk before RabbitMQ confirms."""


class Lane(NamedTuple):
    """A queue with what services produce.

    Attributes:
        name: Its name.
        target: Whether its records belong in inboxes or in topics. Exchanges of services may be
            bound to those of the bridge, so a delivery does not say.
    """

    name: str
    target: Target


class _Thing(NamedTuple):
    """An exchange or a queue, as it must be."""

    kind: str
    name: str
    type: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


class _Binding(NamedTuple):
    """What leads from an exchange to a queue, or to another exchange."""

    kind: str  # of the destination
    destination: str
    source: str
    key: str


class Topology:
    """The exchanges and queues of one bridge.

    Records of services go through two topic exchanges, for inboxes and for topics, into queues:
    into the only one directly, into several by an exchange that spreads them by their routing key.
    Of all bridges that read a queue, one gets its records: see `Consumer`.

    Args:
        bridge: Whose.

    Attributes:
        names: Of the exchanges.
        lanes: The queues with what services produce.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._number = bridge.queues if bridge.receives else 0
        self.names = Names(bridge.prefix)
        self._sources: dict[Target, str] = {"inbox": self.names.recv, "topic": self.names.topic}
        self.lanes = [self._lane(t, n) for t in self._sources for n in range(self._number)]

    def _lane(self, target: Target, number: int) -> Lane:
        return Lane(f"{self._bridge.group}.{target}.{number}", target)

    def _spread(self, target: Target) -> str:
        """Return the exchange that spreads records over several queues."""
        return f"{self._bridge.group}.{target}"

    def _things(self) -> Iterator[_Thing]:
        names, bridge = self.names, self._bridge
        if bridge.sends:
            yield _Thing("exchange", names.send, "topic", {})
        if not bridge.receives:
            return
        for name in (names.recv, names.topic, names.dead):
            yield _Thing("exchange", name, "topic", {})
        yield _Thing("queue", names.dead, "quorum", QUEUE)
        arguments = {"x-single-active-consumer": True, "x-dead-letter-exchange": names.dead}
        for lane in self.lanes:
            yield _Thing("queue", lane.name, "quorum", QUEUE | arguments)
        if self._number > 1:  # last: without their plugin, RabbitMQ closes the connection
            for target in self._sources:
                yield _Thing("exchange", self._spread(target), SPREAD, {})

    def _bindings(self) -> Iterator[_Binding]:
        names = self.names
        if not self._bridge.receives:
            return
        yield _Binding("queue", names.dead, names.dead, "#")
        for target, source in self._sources.items():
            if self._number > 1:
                yield _Binding("exchange", self._spread(target), source, "#")
            else:
                yield _Binding("queue", self._lane(target, 0).name, source, "#")
        for lane in self.lanes if self._number > 1 else ():
            yield _Binding("queue", lane.name, self._spread(lane.target), "1")  # its weight

    # -- checking ------------------------------------------------------------------------------

    async def check(self, connection: AbstractConnection) -> None:
        """See whether everything is there; not how it was made, which is the operator's choice.

        Raises:
            BusMisconfigured: Something is missing, or there is a queue that no bridge with these
                settings reads. The text names it.
        """
        missing = [
            str(thing) for thing in self._things() if await self._waiting(connection, thing) is None
        ]
        if missing:
            raise BusMisconfigured(
                f"RabbitMQ lacks {', '.join(missing)} in virtual host {self._bridge.vhost!r}; "
                f'run "manage.py setup_bridges {self._bridge.name}"'
            )
        for target in self._sources if self._bridge.receives else ():
            lane = _Thing("queue", self._lane(target, self._number).name, "quorum", {})
            if await self._waiting(connection, lane) is not None:
                raise BusMisconfigured(
                    f"nothing reads {lane} while 'queues' of bridge {self._bridge.name!r} is "
                    f'{self._number}; run "manage.py setup_bridges {self._bridge.name}", which '
                    "says what to do with its records, or set the previous number again"
                )

    async def _waiting(self, connection: AbstractConnection, thing: _Thing) -> int | None:
        """Return how many messages and readers something has; None if it does not exist."""
        try:
            async with connection.channel() as channel:  # its own: one that fails is closed
                if thing.kind == "exchange":
                    await channel.declare_exchange(thing.name, passive=True)
                    return 0
                found = (await channel.declare_queue(thing.name, passive=True)).declaration_result
                return (found.message_count or 0) + (found.consumer_count or 0)
        except amqp.ChannelNotFoundEntity:
            return None
        except amqp.CONNECTION_EXCEPTIONS as exc:
            raise explain(exc, self._bridge) from exc

    # -- setting up ----------------------------------------------------------------------------

    async def set_up(self, connection: AbstractConnection) -> list[str]:
        """Create what is missing, see whether the rest is as it must be, and bind it.

        Raises:
            BusMisconfigured: Something is of another kind, or the user may not bind it. The text
                says what differs. The other things are there then, and nothing is bound.
        """
        steps = Steps()
        for thing in self._things():
            with steps.step():
                is_new = await self._waiting(connection, thing) is None
                await self._declare(connection, thing)
                begin = f"created {thing}" if is_new else f"{thing} exists"
                steps.lines.append(f"{begin}: {thing.type}, durable")
            if steps.failed and isinstance(steps.failed[-1].__cause__, amqp.AMQPConnectionError):
                break  # the connection is lost
        if self._bridge.receives and not steps.failed:
            for binding in self._bindings():
                with steps.step():
                    await self._bind(connection, binding)
        if self._bridge.receives and not steps.failed:
            with steps.step():
                await self._unbind(connection)
                steps.lines += await self._remove_lanes(connection)
        return steps.result()

    async def _declare(self, connection: AbstractConnection, thing: _Thing) -> None:
        # A queue that sets aside what expires needs more: it will read itself, and write there
        rights = {"exchange": "configure", "queue": "configure"}
        if "x-dead-letter-exchange" in thing.arguments:
            rights = {"exchange": "write", "queue": "configure and read"}
        try:
            async with connection.channel() as channel:
                if thing.kind == "exchange":
                    await channel.declare_exchange(thing.name, thing.type, durable=True)
                else:
                    await channel.declare_queue(
                        thing.name, durable=True, arguments=dict(thing.arguments)
                    )
        except amqp.CONNECTION_EXCEPTIONS as exc:
            # RabbitMQ 3 closes the connection for it, RabbitMQ 4 the channel
            if f"exchange type {SPREAD!r}" in str(exc):
                raise BusMisconfigured(
                    f"RabbitMQ lacks plugin {PLUGIN}, which several queues need; run "
                    f"\"rabbitmq-plugins enable {PLUGIN}\", or remove 'queues' of bridge "
                    f"{self._bridge.name!r}"
                ) from exc
            if isinstance(exc, amqp.ChannelPreconditionFailed):
                cure = f"delete {thing}, or keep it as it is and do not run setup_bridges"
                raise BusMisconfigured(f"{explain(exc, self._bridge)}; {cure}") from exc
            raise explain(exc, self._bridge, rights=rights) from exc

    async def _bind(self, connection: AbstractConnection, binding: _Binding) -> None:
        kind, destination, source, key = binding
        try:
            async with connection.channel() as channel:
                under = await channel.get_underlay_channel()
                if kind == "exchange":
                    await under.exchange_bind(destination, source, key)
                else:
                    await under.queue_bind(destination, source, key)
        except amqp.CONNECTION_EXCEPTIONS as exc:
            rights = {"exchange": "read", destination if kind == "exchange" else "queue": "write"}
            raise explain(exc, self._bridge, rights=rights) from exc

    async def _unbind(self, connection: AbstractConnection) -> None:
        """Remove what another number of queues has left, once everything is bound.

        In between, a record may come twice; the other way round, one could be lost.
        """
        rights = {"queue": "write", "exchange": "read"}
        if self._number == 1:
            rights = {"exchange": "configure"}
        try:
            async with connection.channel() as channel:
                under = await channel.get_underlay_channel()
                for target, source in self._sources.items():
                    if self._number > 1:
                        await under.queue_unbind(self._lane(target, 0).name, source, "#")
                    else:
                        await under.exchange_delete(self._spread(target))
        except amqp.CONNECTION_EXCEPTIONS as exc:
            raise explain(exc, self._bridge, rights=rights) from exc

    async def _remove_lanes(self, connection: AbstractConnection) -> list[str]:
        """Unbind what a larger number of queues has left, and delete what is empty."""
        lines: list[str] = []
        for target in self._sources:
            for number in itertools.count(self._number):
                lane = _Thing("queue", self._lane(target, number).name, "quorum", {})
                if await self._waiting(connection, lane) is None:
                    break
                is_empty = await self._remove(connection, lane, self._spread(target))
                if is_empty:
                    lines.append(f"deleted {lane}: no longer used")
                else:
                    lines.append(f"{lane} is no longer bound, but {LEFT.format(number + 1)}")
        return lines

    async def _remove(self, connection: AbstractConnection, lane: _Thing, spread: str) -> bool:
        """Unbind a queue, delete it if it is empty, and return whether it was."""
        try:
            async with connection.channel() as channel:
                under = await channel.get_underlay_channel()
                if self._number > 1:
                    await under.queue_unbind(lane.name, spread, "1")
                is_empty = await self._waiting(connection, lane) == 0
                if is_empty:
                    await under.queue_delete(lane.name)
                return is_empty
        except amqp.CONNECTION_EXCEPTIONS as exc:
            rights = {"queue": "configure and write", "exchange": "read"}
            raise explain(exc, self._bridge, rights=rights) from exc
