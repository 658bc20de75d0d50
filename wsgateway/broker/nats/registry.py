"""Which services exist: those that have a stream. The streams are the registry."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic

from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError, JetStream
from wsgateway.declared import Declared
from wsgateway.exceptions import BrokerUnavailable, NameRefused
from wsgateway.protocol.subjects import GROUP_SERVICE, Subjects
from wsgateway.supervision import share

__all__ = ["TOPIC", "Registry"]

TOPIC = "services"
"""Where those who have made a service's stream say so."""
ABSENT_VALID = 3.0
"""Seconds that a service without a stream counts as one that does not exist."""
LOOKS = 3
"""Looks for one answer at most, while others make streams."""


class Registry:
    """The services that have a stream, as far as this process knows.

    A name that has no stream costs at most one request in `ABSENT_VALID` seconds, however many
    clients ask for however many names.

    Args:
        jetstream: Where the streams are.
        subjects: Names below the installation's prefix.
        declared: The services whose streams this process makes itself.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects, declared: Declared) -> None:
        self.declared = declared
        self._jetstream = jetstream
        self._subjects = subjects
        self._own: frozenset[str] = frozenset()  # services with a stream of their own
        self._shared: frozenset[str] = frozenset()  # of the others, those in the shared stream
        self._is_open = declared.is_open  # the shared stream takes any service
        self._valid_until = 0.0  # until then what is not found does not exist
        self._invalidations = 0  # how often somebody has made a stream
        self._refreshing: asyncio.Task[None] | None = None

    def known(self, service: str) -> bool | None:
        """Say whether *service* exists; None if that has to be asked."""
        if service in self._own or service in self.declared.services:
            return True
        if self._is_open or service is GROUP_SERVICE or service in self._shared:
            return True
        return False if monotonic() < self._valid_until else None

    @property
    def names(self) -> frozenset[str]:
        """The services that exist, as far as this process knows."""
        return self._own | self._shared | self.declared.services

    async def exists(self, service: str) -> bool:
        """Say whether *service* exists; asks the broker if that is not known.

        Raises:
            BrokerUnavailable: No answer in time.
        """
        known = self.known(service)
        if known is None:
            try:
                self._subjects.require_service(service)
            except NameRefused:
                return False
            for _ in range(LOOKS):
                await self.refresh()
                known = self.known(service)
                if known is not None:
                    break
        return bool(known)

    async def queue(self, service: str) -> str:
        """Return the stream that holds what clients send to *service* now.

        Raises:
            BrokerUnavailable: It has no stream yet.
        """
        await self.refresh()
        if service in self._own:
            return self._subjects.queue(service)
        if self._is_open or service in self._shared:
            return self._subjects.stream("send")
        self._jetstream.on_missing()
        raise BrokerUnavailable(f"service {service!r} has no stream yet")

    def invalidate(self) -> None:
        """Ask the broker the next time that an unknown service is looked up."""
        self._valid_until = 0.0
        self._invalidations += 1

    def announce(self) -> None:
        """Tell every process that there are new services."""
        with contextlib.suppress(BrokerUnavailable):
            self._jetstream.connection.publish(self._subjects.broadcast(TOPIC), b"")

    async def refresh(self) -> None:
        """Read from the broker which services exist. Concurrent calls share one read."""
        task = self._refreshing
        if task is None or task.done():
            task = self._refreshing = share(self._load(), "wsgateway-services")
        await asyncio.shield(task)

    async def _load(self) -> None:
        invalidations = self._invalidations
        names = await self.streams()
        services = (self._subjects.service_of(name) for name in names)
        shared = await self._shared_subjects() if self._subjects.stream("send") in names else []
        self._own = frozenset(service for service in services if service is not None)
        self._is_open = self.declared.is_open or self._subjects.all_of("send") in shared
        parsed = (self._subjects.parse(subject[:-1] + "x") for subject in shared)
        self._shared = frozenset() if self._is_open else frozenset(i.service for _, i in parsed)
        # Otherwise a stream may have been made since it was asked
        if invalidations == self._invalidations:
            self._valid_until = monotonic() + ABSENT_VALID

    async def streams(self, subject: str = "") -> list[str]:
        """Return the streams that take what clients send.

        Args:
            subject: Those that take what is published on this one, instead; may have wildcards.

        Raises:
            BrokerUnavailable: No answer in time.
        """
        found: list[str] = []
        subject = subject or self._subjects.all_of("send")
        while True:
            request = {"subject": subject, "offset": len(found)}
            answer = await self._jetstream.api("STREAM.NAMES", request)
            page = answer.get("streams") or []
            found += page
            if not page or len(found) >= answer["total"]:
                return found

    async def _shared_subjects(self) -> list[str]:
        """Return what the shared stream still takes while `setup_streams` moves it."""
        try:
            info = await self._jetstream.api(f"STREAM.INFO.{self._subjects.stream('send')}")
        except ApiError as exc:
            if exc.err_code == NOT_FOUND:
                return []
            raise
        prefix = f"{self._subjects.prefix}.send."
        return [name for name in info["config"]["subjects"] if name.startswith(prefix)]
