"""What an operator should look at: what is stuck, silent, full or different from the settings.

Pure: each function gets what is known, and the time; what is unknown gives no alert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from wsgateway.readable import duration, some

if TYPE_CHECKING:
    from wsgateway.broker.operations import Queue, Stream
    from wsgateway.presence import Gateways
    from wsgateway.services.status import Workers

__all__ = [
    "Alert",
    "of_gateways",
    "of_outbox",
    "of_queues",
    "of_streams",
    "of_workers",
]

LATE = 60.0
"""Seconds that a message may wait in a queue before it counts as stuck."""
UNTAKEN = 5.0
"""The same if nobody asks for messages."""
NEARLY_FULL, FULL = 0.8, 0.95
"""Parts of a stream's limit."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to look at.

    Attributes:
        text: What it is.
        page: The model whose pages show more, with its app.
        name: Of the service, gateway or stream; empty: several.
        level: ``error``, or ``warning`` for what may become one.
    """

    text: str
    page: str
    name: str = ""
    level: str = "error"


def of_gateways(gateways: Gateways) -> Iterator[Alert]:
    """Yield an alert for each gateway that does not answer, or if there is none at all."""
    for name in gateways.silent:
        text = f"Gateway {name} does not answer: frozen, or cut off from the broker"
        yield Alert(text, "wsgateway.gatewayentry", name)
    if not gateways and not gateways.silent:
        yield Alert("No gateway is running", "wsgateway.gatewayentry", level="warning")


def of_workers(workers: Workers) -> Iterator[Alert]:
    """Yield an alert for each worker that does not answer, and each bridge that has to wait."""
    for name in workers.silent:
        text = f"Worker {name} does not answer: frozen, or cut off from the broker"
        yield Alert(text, "wsgateway.serviceentry", level="warning")
    for worker in workers:
        for name, bridge in worker.bridges.items():
            if bridge.connected and not bridge.trouble:
                continue
            bus = bridge.bus or "Kafka or RabbitMQ"
            what = "waits" if bridge.connected else f"does not reach {bus}"
            why = bridge.trouble and f": {bridge.trouble}"
            text = f"Bridge {name} of worker {worker.id} {what}{why}"
            yield Alert(text, "wsgateway.serviceentry")


def of_queues(queues: Iterable[Queue], now: datetime) -> Iterator[Alert]:
    """Yield an alert for each queue that is paused or late, and for dead letters."""
    for queue in queues:
        waited = (now - queue.oldest).total_seconds() if queue.oldest else 0.0
        if queue.paused:
            text = f"{queue.service} is paused because its webhook answered 410; once that is "
            text += f'mended, run "manage.py gateway resume {queue.service}"'
            yield Alert(text, "wsgateway.serviceentry", queue.service)
        elif not queue.pulls and not queue.in_flight and waited >= UNTAKEN:
            text = f"{queue.service}: {_waiting(queue)} and no worker takes any"
            yield Alert(text, "wsgateway.serviceentry", queue.service)
        elif waited >= LATE:
            text = f"{queue.service}: {_waiting(queue)}, the oldest for "
            yield Alert(text + duration(waited), "wsgateway.serviceentry", queue.service)
        if queue.dead:
            text = f"{queue.service}: {some(queue.dead, 'dead letter')}"
            yield Alert(text, "wsgateway.deadletterentry", queue.service, "warning")


def _waiting(queue: Queue) -> str:
    return f"{some(queue.waiting, 'message')} {'waits' if queue.waiting == 1 else 'wait'}"


def of_streams(streams: Iterable[Stream]) -> Iterator[Alert]:
    """Yield an alert for each stream that is nearly full, in danger, or differs."""
    for stream in streams:
        name = stream.name
        if stream.level >= NEARLY_FULL:
            level = "error" if stream.level >= FULL else "warning"
            yield Alert(f"{name} is {stream.level:.0%} full", "wsgateway.streamentry", name, level)
        if stream.last_error:
            yield Alert(f"{name}: {stream.last_error}", "wsgateway.streamentry", name)
        if stream.differences:
            text = f"{name} differs from the settings: {'; '.join(stream.differences)}"
            yield Alert(text, "wsgateway.streamentry", name, "warning")


def of_outbox(failed: int, oldest: datetime | None, now: datetime) -> Iterator[Alert]:
    """Yield an alert if rows cannot be sent, or the oldest of the others waits for too long."""
    page = "wsgateway_outbox.outboxmessage"
    if failed:
        yield Alert(f"Outbox: {some(failed, 'row')} could not be sent", page, level="warning")
    waited = (now - oldest).total_seconds() if oldest else 0.0
    if waited >= LATE:
        text = f"Outbox: the oldest row has waited for {duration(waited)}; is a relay running?"
        yield Alert(text, page)
