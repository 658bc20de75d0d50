"""A worker process tells others what it does: in the roster, on its subject, to ``nats micro``."""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import wsgateway
from wsgateway import counters
from wsgateway.broker.discovery import Endpoint, Shown
from wsgateway.broker.inquiry import Fields, Request, Responder
from wsgateway.broker.roster import new_member_id
from wsgateway.exceptions import BrokerError, reason_of
from wsgateway.protocol.subjects import encode_token
from wsgateway.rates import Rates
from wsgateway.services.status import KIND, BridgeWork, Handled, ServiceWork
from wsgateway.services.status import Worker as Status
from wsgateway.supervision import start, supervise

if TYPE_CHECKING:
    import asyncio

    from wsgateway.broker.base import Broker
    from wsgateway.broker.bus import Closable
    from wsgateway.services.running import Run, Running
    from wsgateway.services.worker import Worker

__all__ = ["Report"]

logger = logging.getLogger("wsgateway.services")

MOST_SHOWN = 100
"""Running handlers in one answer."""
NAMES = {"handled": "done", "retried": "retried", "rejected": "rejected", "failed": "dead-lettered"}
"""What others read, and what `Worker.counts` says."""


class Report:
    """What one process that runs workers tells others, from `open` to `close`.

    Args:
        broker: Opened, in the running loop.
        workers: One for each service.
        running: Their handlers.
    """

    def __init__(self, broker: Broker, workers: list[Worker], running: Running) -> None:
        self.id = new_member_id()
        self._broker = broker
        self._workers = workers
        self._running = running
        self._started = dt.datetime.now(dt.UTC)
        self._rates = Rates(self._counts)
        self._responder = Responder(broker, {"info": self._info})
        self._open: list[Closable] = []
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Answer questions, and join the roster as soon as possible."""
        self._open = [self._responder.listen(self._subject), self._broker.show(self._shown())]
        self._tasks = [
            supervise(self._rates.run, "wsgateway-rates"),
            start(self._join(), "wsgateway-join"),
        ]

    def close(self) -> None:
        """Leave. Idempotent."""
        self._broker.roster.leave(KIND, self.id)
        for task in self._tasks:
            task.cancel()
        for each in self._open:
            each.close()

    async def _join(self) -> None:
        details = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": wsgateway.__version__,
            "started": self._started.isoformat(),
            "services": sorted(worker.service.name for worker in self._workers),
        }
        try:
            await self._broker.roster.join(KIND, self.id, details)
        except BrokerError as exc:  # each refresh tries again
            logger.warning(
                "this worker is not in the roster yet: %s",
                reason_of(exc),
                extra={"worker": self.id},
            )

    @property
    def _subject(self) -> str:
        return self._broker.subjects.member(KIND, self.id)

    # -- what others hear ----------------------------------------------------------------

    def _info(self, request: Request) -> Iterable[Fields]:
        return [self.status().fields()]

    def status(self) -> Status:
        """Return what this process does now."""
        runs = self._running.now
        found = [handled for run in runs if (handled := _handled(run)) is not None]
        found.sort(key=lambda each: each.since)
        rates = self._rates.per_second()
        return Status(
            id=self.id,
            version=wsgateway.__version__,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            services={worker.service.name: _work(worker, rates) for worker in self._workers},
            running=tuple(found[:MOST_SHOWN]),
            busy=len(runs),
            bridges={name: _bridge(counted) for name, counted in counters.bridges.items()},
        )

    def _counts(self) -> dict[str, int]:
        """Return how many messages there were, by service and what became of them."""
        return {
            f"{worker.service.name} {name}": worker.counts[counted]
            for worker in self._workers
            for name, counted in NAMES.items()
        }

    def _shown(self) -> Shown:
        services = " ".join(sorted(worker.service.name for worker in self._workers))
        return Shown(
            name="wsgateway-worker",
            id=self.id,
            version=wsgateway.__version__,
            description="Handles what websocket clients send to services.",
            started=self._started,
            metadata={
                "prefix": self._broker.subjects.prefix,
                "services": services,
                "host": socket.gethostname(),
                "pid": str(os.getpid()),
            },
            endpoints=self._endpoints,
        )

    def _endpoints(self) -> list[Endpoint]:
        """Return where it is asked, and, for each service, how its messages were handled."""
        return [
            self._responder.endpoint("worker", self._subject, {"busy": len(self._running.now)}),
            *(self._endpoint(worker) for worker in self._workers),
        ]

    def _endpoint(self, worker: Worker) -> Endpoint:
        service = worker.service.name
        counted = counters.service(service)
        return Endpoint(
            name=encode_token(service).replace("=", "_"),
            subject=self._broker.subjects.all_of("send", service),
            requests=counted.handler.count,
            errors=counted.outcomes.total() - counted.outcomes["done"],
            seconds=counted.handler.sum,
            data={"in_hand": worker.in_hand, **counted.outcomes},
        )


def _handled(run: Run) -> Handled | None:
    job = run.job
    if job is None:
        return None
    since = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=time.monotonic() - run.began)
    topic = None if job.inbox.service == job.service else str(job.topic)
    return Handled(job.service, job.inbox.user, job.sequence, job.attempt, since, topic)


def _bridge(counted: counters.BridgeCounters) -> BridgeWork:
    return BridgeWork(
        connected=counted.connected(),
        sent=counted.sent,
        refused=counted.refused,
        received=counted.received,
        set_aside=counted.set_aside,
        waiting=counted.sending + counted.receiving,
        trouble=counted.trouble(),
        bus=counted.bus,
    )


def _work(worker: Worker, rates: dict[str, float]) -> ServiceWork:
    name = worker.service.name
    counts = {each: worker.counts[counted] for each, counted in NAMES.items()}
    return ServiceWork(
        concurrency=worker.concurrency,
        in_hand=worker.in_hand,
        rates={each: rates[f"{name} {each}"] for each in NAMES},
        **counts,
    )
