"""Which services exist: those that have a stream. The streams are the registry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TypeVar

from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError, JetStream
from wsgateway.declared import Declared, TopicKind
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable, NameRefused
from wsgateway.protocol.subjects import GROUP_SERVICE, Subjects
from wsgateway.supervision import share

__all__ = ["TOPIC", "Registry"]

TOPIC = "services"
"""Where those who have made a service's stream say so."""
ABSENT_VALID = 3.0
"""Seconds that a service without a stream counts as one that does not exist."""
_DECLARED = {
    TopicKind.NONE: "for users",
    TopicKind.DURABLE: "with durable topics",
    TopicKind.EPHEMERAL: "with ephemeral topics",
}
T = TypeVar("T")

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
        self._queues: frozenset[str] = frozenset()  # services with a queue of their own
        self._own: frozenset[str] = frozenset()  # of these, those of users
        self._shared: frozenset[str] = frozenset()  # of the others, those in the shared stream
        self._topics: Mapping[str, TopicKind] = {}  # services of topics, by their streams
        self._is_open = declared.is_open  # the shared stream takes any service
        self._valid_until = 0.0  # until then what is not found does not exist
        self._heard_all = False  # nobody has made a stream since the last look
        self._invalidations = 0  # how often somebody has made a stream
        self._refreshing: asyncio.Task[None] | None = None

    def known(self, service: str) -> bool | None:
        """Say whether *service* exists; None if that has to be asked."""
        if service in self._own or service in self.declared.services or service is GROUP_SERVICE:
            return True
        if self.known_topics(service):
            return False
        if self._is_open or service in self._shared:
            return True if self._heard_all else None
        return False if monotonic() < self._valid_until else None

    def known_topics(self, service: str) -> TopicKind | None:
        """Say what topics *service* has; None if that has to be asked."""
        kind = self.declared.topic_kind(service) or self._topics.get(service)
        if kind is not None:
            return kind
        if service in self._own or service in self.declared.services or service is GROUP_SERVICE:
            return TopicKind.NONE
        is_known = self._heard_all if self._is_open else monotonic() < self._valid_until
        return TopicKind.NONE if is_known else None

    @property
    def names(self) -> frozenset[str]:
        """The services of users that exist, as far as this process knows."""
        return self._own | self._shared | self.declared.services

    @property
    def queue_names(self) -> frozenset[str]:
        """The services that clients' messages wait for, as far as this process knows."""
        return self.names | self._queues

    @property
    def topic_names(self) -> frozenset[str]:
        """The services of topics that exist, as far as this process knows."""
        return self.declared.topics | self.declared.casts | self._topics.keys()

    async def exists(self, service: str) -> bool:
        """Say whether *service* exists; asks the broker if that is not known.

        Raises:
            BrokerUnavailable: No answer in time.
        """
        return bool(await self._ask(self.known, service))

    async def topics_of(self, service: str) -> TopicKind:
        """Say what topics *service* has; asks the broker if that is not known.

        Raises:
            BrokerUnavailable: No answer in time.
        """
        return await self._ask(self.known_topics, service) or TopicKind.NONE

    async def _ask(self, known: Callable[[str], T | None], service: str) -> T | None:
        """Return what *known* says of *service* once the broker has been asked, if necessary."""
        answer = known(service)
        if answer is None:
            try:
                self._subjects.require_service(service)
            except NameRefused:
                return None
            for _ in range(LOOKS):
                await self.refresh()
                answer = known(service)
                if answer is not None:
                    break
        return answer

    def require_one_kind(self) -> None:
        """Refuse a service that this process declares as another kind than its stream says.

        Raises:
            BrokerMisconfigured: There is one.
        """
        for service, kind in sorted(self._topics.items()):
            wanted = self.declared.topic_kind(service)
            if wanted is None and service in self.declared.services:
                wanted = TopicKind.NONE
            if wanted in (None, kind):
                continue
            is_durable = kind is TopicKind.DURABLE
            stream = (self._subjects.topic_stream if is_durable else self._subjects.cast_stream)(
                service
            )
            loss = ", with all its messages" if is_durable else ", which is empty"
            raise BrokerMisconfigured(
                f"service {service!r} is declared {_DECLARED[wanted]}, but the stream {stream!r} "
                f"says that it has {kind} topics; use another name, or delete that stream{loss}"
            )

    async def queue(self, service: str) -> str:
        """Return the stream that holds what clients send to *service* now.

        Raises:
            BrokerUnavailable: It has no stream yet.
        """
        await self.refresh()
        if service in self._queues:
            return self._subjects.queue(service)
        if self._is_open or service in self._shared:
            return self._subjects.stream("send")
        self._jetstream.on_missing()
        raise BrokerUnavailable(f"service {service!r} has no stream yet")

    def invalidate(self) -> None:
        """Ask the broker the next time that an unknown service is looked up."""
        self._valid_until = 0.0
        self._heard_all = False
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
        names, topics = await asyncio.gather(
            self.streams(), self.streams(f"{self._subjects.prefix}.topic.>")
        )
        services = (self._subjects.service_of(name) for name in names)
        shared = await self._shared_subjects() if self._subjects.stream("send") in names else []
        self._topics = self._kinds(topics)
        self._queues = frozenset(service for service in services if service is not None)
        # What clients send to a topic has a queue, too
        self._own = self._queues - (self.topic_names - self.declared.services)
        self._is_open = self.declared.is_open or self._subjects.all_of("send") in shared
        parsed = (self._subjects.parse(subject[:-1] + "x") for subject in shared)
        self._shared = frozenset() if self._is_open else frozenset(i.service for _, i in parsed)
        # Otherwise a stream may have been made since it was asked
        if invalidations == self._invalidations:
            self._valid_until = monotonic() + ABSENT_VALID
            self._heard_all = True

    def _kinds(self, streams: Iterable[str]) -> dict[str, TopicKind]:
        """Return the services of topics that *streams* belong to."""
        found: dict[str, TopicKind] = {}
        for stream in streams:
            durable = self._subjects.service_of_topics(stream)
            ephemeral = self._subjects.service_of_casts(stream)
            if ephemeral is not None:
                found.setdefault(ephemeral, TopicKind.EPHEMERAL)
            if durable is not None:
                found[durable] = TopicKind.DURABLE
        return found

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
