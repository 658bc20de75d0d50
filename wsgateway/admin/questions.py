"""What pages ask: each function gets the broker, and is an argument of `lookups.ask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgateway import presence
from wsgateway.services import status

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.operations import Queue, Stream

__all__ = ["counts", "gateways", "queues", "streams", "workers"]


async def counts(broker: Broker) -> presence.Counts:
    """Return sockets and users by service."""
    return await presence.acounts()


async def gateways(broker: Broker) -> presence.Gateways:
    """Return the gateways that answer, and the names of those that do not."""
    return await presence.agateways()


async def workers(broker: Broker) -> status.Workers:
    """Return the workers that answer, and the names of those that do not."""
    return await status.aworkers()


async def queues(broker: Broker) -> list[Queue]:
    """Return the services' queues."""
    return await broker.operations.queues()


async def streams(broker: Broker) -> list[Stream]:
    """Return the installation's streams and buckets."""
    return await broker.operations.streams()
