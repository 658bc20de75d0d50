"""What `gateway status` shows, asked all at once."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from wsgateway import presence
from wsgateway.alerts import Alert, of_gateways, of_queues, of_streams, of_workers
from wsgateway.broker.base import Broker
from wsgateway.broker.operations import Queue, Stream
from wsgateway.presence import Counts, Gateways
from wsgateway.services.status import Workers, aworkers

__all__ = ["Overview", "ServiceLine", "look"]


@dataclass(frozen=True, slots=True)
class ServiceLine:
    """A service, as the broker, the gateways and the workers know it.

    Attributes:
        queue: What clients sent and nobody has acknowledged.
        users: Users online.
        sockets: Their open sockets.
        workers: Processes that handle its messages.
    """

    queue: Queue
    users: int
    sockets: int
    workers: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What there is, and how it is."""

    broker: str
    prefix: str
    gateways: Gateways
    counts: Counts
    workers: Workers
    queues: list[Queue]
    streams: list[Stream]

    @property
    def silent(self) -> list[str]:
        """Ids of gateways and workers that did not answer."""
        return sorted({*self.gateways.silent, *self.counts.silent, *self.workers.silent})

    @property
    def services(self) -> list[ServiceLine]:
        """The services, by name."""
        handling = Counter(name for worker in self.workers for name in worker.services)
        known = {queue.service: queue for queue in self.queues}
        names = sorted({*known, *self.counts.sockets, *handling})
        return [
            ServiceLine(
                queue=known.get(name) or Queue(name),
                users=self.counts.users.get(name, 0),
                sockets=self.counts.sockets.get(name, 0),
                workers=handling[name],
            )
            for name in names
        ]

    def alerts(self, now: dt.datetime) -> list[Alert]:
        """Return what is stuck, silent, full or different from the settings."""
        return [
            *of_gateways(self.gateways),
            *of_workers(self.workers),
            *of_queues(self.queues, now),
            *of_streams(self.streams),
        ]

    def as_fields(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "broker": self.broker,
            "prefix": self.prefix,
            "gateways": [asdict(each) for each in self.gateways],
            "services": [
                {
                    **asdict(each.queue),
                    "users": each.users,
                    "sockets": each.sockets,
                    "workers": each.workers,
                }
                for each in self.services
            ],
            "workers": [asdict(each) for each in self.workers],
            "streams": [asdict(each) for each in self.streams],
            "alerts": [
                {"level": each.level, "name": each.name, "text": each.text}
                for each in self.alerts(dt.datetime.now(dt.UTC))
            ],
            "silent": self.silent,
        }


async def look(broker: Broker) -> Overview:
    """Ask everybody at the same time."""
    gateways, counts, workers, queues, streams = await asyncio.gather(
        presence.agateways(),
        presence.acounts(),
        aworkers(),
        broker.operations.queues(),
        broker.operations.streams(),
    )
    return Overview(
        broker.where, broker.subjects.prefix, gateways, counts, workers, queues, streams
    )
