"""What the workers are doing: `workers` asks each of them."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.inquiry import Fields, ask_members
from wsgateway.exceptions import reason_of
from wsgateway.presence.results import Found

__all__ = [
    "KIND",
    "BridgeWork",
    "Handled",
    "ServiceWork",
    "Worker",
    "Workers",
    "aworkers",
    "workers",
]

logger = logging.getLogger("wsgateway.services")

KIND = "worker"
"""What the roster calls the processes that run `runservice` or `runbridge`."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that a handler has now.

    Attributes:
        service: The service.
        user: Who sent it.
        offset: Its place in the service's queue.
        attempt: Which try this is; the first is 1.
        since: When the handler began.
        topic: Which topic of the service it was sent to; None: it was not sent to one.
    """

    service: str
    user: str
    offset: int
    attempt: int
    since: dt.datetime
    topic: str | None = None

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return what a worker says of a message; what it says besides is ignored."""
        return cls(
            str(fields["service"]),
            str(fields["user"]),
            int(fields["offset"]),
            int(fields["attempt"]),
            _time(fields["since"]),
            None if fields.get("topic") is None else str(fields["topic"]),
        )


@dataclass(frozen=True, slots=True)
class ServiceWork:
    """What one process does for one service, since it began.

    Attributes:
        concurrency: Users whose messages it handles at once.
        in_hand: Messages that it has taken and not answered yet.
        handled: Messages whose handler returned.
        retried: Messages that come again because their handler failed.
        rejected: Messages that the handler refused.
        failed: Messages that became dead letters.
        rates: How many of each of these four per second, over the last minute.
    """

    concurrency: int
    in_hand: int
    handled: int
    retried: int
    rejected: int
    failed: int
    rates: dict[str, float]

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return what a worker says of a service; what it says besides is ignored."""
        numbers = ("concurrency", "in_hand", "handled", "retried", "rejected", "failed")
        rates = {str(name): float(rate) for name, rate in fields["rates"].items()}
        return cls(**{name: int(fields[name]) for name in numbers}, rates=rates)


@dataclass(frozen=True, slots=True)
class BridgeWork:
    """What one process does for one bridge, since it began.

    Attributes:
        connected: Whether it reaches Kafka or RabbitMQ.
        sent: Clients' messages that are on the bus.
        refused: Those that the bus can never take; they are dead letters.
        received: Services' records that are stored in an inbox or a topic.
        set_aside: Those that cannot be delivered.
        waiting: Both kinds in hand.
        trouble: Why it waits, such as for a missing topic; "" if nothing keeps it from its work.
        bus: What it connects to, and where: ``Kafka at kafka://localhost:9092``; "" if unknown.
    """

    connected: bool
    sent: int
    refused: int
    received: int
    set_aside: int
    waiting: int
    trouble: str = ""
    bus: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return what a worker says of a bridge; what it says besides is ignored."""
        numbers = ("sent", "refused", "received", "set_aside", "waiting")
        counts = {name: int(fields[name]) for name in numbers}
        # One that is not upgraded yet does not say
        trouble, bus = (str(fields.get(name, "")) for name in ("trouble", "bus"))
        return cls(bool(fields["connected"]), **counts, trouble=trouble, bus=bus)


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that runs `runservice` or `runbridge`.

    Attributes:
        id: Names it, until it ends.
        version: Of wsgateway.
        host: The machine's name.
        pid: The process's id.
        started: When it began.
        services: What it does for each service.
        running: What its handlers have now, the oldest first; at most 100.
        busy: How many handlers run now.
        bridges: What it does for each bridge.
    """

    id: str
    version: str
    host: str
    pid: int
    started: dt.datetime
    services: dict[str, ServiceWork]
    running: tuple[Handled, ...]
    busy: int
    bridges: dict[str, BridgeWork] = field(default_factory=dict)

    @classmethod
    def parse(cls, id: str, fields: Fields) -> Self:
        """Return what a worker says of itself; the inverse of `fields`.

        Raises:
            ValueError: It is not what a worker of this version says.
        """
        try:
            return cls(
                id=id,
                version=str(fields["version"]),
                host=str(fields["host"]),
                pid=int(fields["pid"]),
                started=_time(fields["started"]),
                services={
                    str(name): ServiceWork.parse(work) for name, work in fields["services"].items()
                },
                running=tuple(Handled.parse(each) for each in fields["running"]),
                busy=int(fields["busy"]),
                bridges={
                    str(name): BridgeWork.parse(work)
                    for name, work in fields.get("bridges", {}).items()
                },
            )
        except (AttributeError, KeyError, OverflowError, TypeError) as exc:
            raise ValueError(f"not a worker's answer: {exc!r}") from exc

    def fields(self) -> dict[str, Any]:
        """Return what a worker answers, as JSON has it."""
        found = asdict(self)
        found["started"] = self.started.isoformat()
        for each in found["running"]:
            each["since"] = each["since"].isoformat()
        return found

    def _sum(self, name: str) -> Any:
        return sum(getattr(work, name) for work in self.services.values())

    @property
    def concurrency(self) -> int:
        """Users whose messages it handles at once, of all services."""
        return int(self._sum("concurrency"))

    @property
    def handled(self) -> int:
        """Messages whose handler returned, of all services."""
        return int(self._sum("handled"))

    @property
    def retried(self) -> int:
        """Messages that come again because their handler failed, of all services."""
        return int(self._sum("retried"))

    @property
    def rejected(self) -> int:
        """Messages that a handler refused, of all services."""
        return int(self._sum("rejected"))

    @property
    def failed(self) -> int:
        """Messages that became dead letters, of all services."""
        return int(self._sum("failed"))

    @property
    def rates(self) -> dict[str, float]:
        """How many per second over the last minute, of all services, by what became of them."""
        total: dict[str, float] = {}
        for work in self.services.values():
            for name, rate in work.rates.items():
                total[name] = round(total.get(name, 0.0) + rate, 3)
        return total


class Workers(Found[Worker]):
    """The workers that answered, by id."""


async def aworkers() -> Workers:
    """Ask every worker what it does; takes one round trip, or a second if one is silent.

    Raises:
        BrokerError: Nobody could be asked.
    """
    return await runtime.call(ask_workers)


def workers() -> Workers:
    """Do what `aworkers` does, from synchronous code.

    Raises:
        RuntimeError: In a running event loop; await `aworkers` there.
    """
    return runtime.call_sync(ask_workers, name="workers")


async def ask_workers(broker: Broker) -> Workers:
    """Ask every worker, with this broker; see `aworkers`."""
    answers = await ask_members(broker, KIND, {"ask": "info"})
    found, silent = [], list(answers.silent)
    for id, fields in sorted(answers.by_id.items()):
        try:
            found.append(Worker.parse(id, fields))
        except ValueError as exc:
            text = "cannot read the answer of worker %s: %s"
            logger.warning(text, id, reason_of(exc), extra={"worker": id})
            silent.append(id)
    return Workers(found, sorted(silent))


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
