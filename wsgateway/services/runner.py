"""All workers of one process: they share a connection and stop together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wsgateway.broker import runtime
from wsgateway.conf import settings
from wsgateway.declared import declared_services
from wsgateway.services.registry import Service, find_services, get_service
from wsgateway.services.report import Report
from wsgateway.services.running import Running
from wsgateway.services.worker import Worker
from wsgateway.supervision import share

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker

__all__ = ["Companion", "Runner", "Say", "services_to_run"]


class Say(Protocol):
    """Tells the operator something, in words and as fields for programs."""

    def __call__(self, text: str, /, *, event: str, **fields: object) -> object: ...


class Companion(Protocol):
    """What runs beside the workers of a process, on the same connection."""

    async def open(self, broker: Broker) -> None:
        """Begin, and return at once."""

    async def ready(self) -> None:
        """Wait until it does what it is there for."""

    async def stop(self, timeout: float) -> None:
        """Finish what has begun, while the workers do so; take nothing more.

        Args:
            timeout: Seconds that it may take.
        """

    async def close(self) -> None:
        """Close its connections, once the workers have stopped."""


def services_to_run(names: list[str]) -> list[Service]:
    """Return the services with these *names*; without any, all that clients can reach.

    Raises:
        LookupError: There is none, or ``WSGATEWAY_SERVICES`` does not list one of *names*, or any.
    """
    declared = declared_services()
    found = [get_service(name) for name in dict.fromkeys(names or find_services())]
    listed = [
        each
        for each in found
        if declared.is_open or each.has_topics or each.name in declared.services
    ]
    unlisted = [each.name for each in found if each not in listed]
    if unlisted and (names or not listed):
        raise LookupError(
            f"WSGATEWAY_SERVICES does not list {unlisted[0]!r}, so no client can reach it; add it"
        )
    if not listed:
        raise LookupError(f"no app has a service in its {settings.SERVICES_MODULE}.py")
    return listed


class Runner:
    """Runs services until `end`.

    Args:
        services: What to run.
        concurrency: Users served at once by each; None: as each says.
        ready_file: Created once every service takes messages, removed at the end.
        say: Tells the operator.
        companions: Run beside them.
    """

    def __init__(
        self,
        services: list[Service],
        concurrency: int | None,
        ready_file: str | None,
        say: Say,
        companions: Sequence[Companion] = (),
    ) -> None:
        self._services = services
        self._concurrency = concurrency
        self._ready_file = Path(ready_file) if ready_file else None
        self._say = say
        self._companions = companions
        self._end = asyncio.Event()

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""
        return self._end.is_set()

    def end(self) -> None:
        """Let `run` return; from its loop."""
        self._end.set()

    async def run(self) -> None:
        """Run until `end`; then finish what is being handled, within ``CLOSE_TIMEOUT``.

        Raises:
            BrokerMisconfigured: The settings name no usable broker.
            OSError: The ready file cannot be made.
        """
        if self._ready_file is not None:  # of a process that was killed, in the same container
            self._ready_file.unlink(missing_ok=True)
        connection = runtime.own()
        connection.kept, broker = True, connection.broker
        await connection.open()
        running = Running(settings.ACK_WAIT)
        workers = [
            Worker(service, broker, concurrency=self._concurrency, running=running)
            for service in self._services
        ]
        report = Report(broker, workers, running)
        for companion in self._companions:
            await companion.open(broker)
        for worker in workers:
            worker.start()
        report.open()
        announcing = share(self._announce(workers), "wsgateway-announce")
        ending = share(self._end.wait(), "wsgateway-end")
        told = False
        try:
            # Whichever is first: a worker that NATS keeps from becoming ready can be told to end
            await asyncio.wait({announcing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if announcing.done():
                announcing.result()  # a file that cannot be made: nobody would ever see us ready
                await ending
            told = self._end.is_set()
        finally:
            announcing.cancel()
            ending.cancel()
            await self._stop(workers, in_order=told)
            report.close()
            await connection.close()
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
            for worker in workers:
                name, counts = worker.service.name, dict(sorted(worker.counts.items()))
                text = ", ".join(f"{count} {what}" for what, count in counts.items())
                text = f"{name}: ended ({text or 'no messages'})"
                self._say(text, event="ended", service=name, counts=counts)

    async def _stop(self, workers: list[Worker], *, in_order: bool) -> None:
        limit, companions = settings.CLOSE_TIMEOUT, self._companions
        await asyncio.gather(
            *(companion.stop(limit) for companion in companions),
            *(worker.stop(limit, in_order=in_order) for worker in workers),
        )
        await asyncio.gather(*(companion.close() for companion in companions))

    async def _announce(self, workers: list[Worker]) -> None:
        for worker in workers:
            with contextlib.suppress(asyncio.TimeoutError):
                await worker.ready()
            name = worker.service.name
            self._say(f"{name}: ready", event="ready", service=name)
        await asyncio.gather(*(companion.ready() for companion in self._companions))
        if self._ready_file is not None:
            self._ready_file.touch()
