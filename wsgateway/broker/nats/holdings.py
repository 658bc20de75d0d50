"""Everything that the streams and buckets hold about one user, found by the user's token."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError, JetStream
from wsgateway.broker.operations import Held
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import (
    Inbox,
    decode_token,
    encode_token,
    is_sent_by,
    sender_token,
)

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["Holdings", "subject_pages"]


async def subject_pages(
    jetstream: JetStream, stream: str, subject: str
) -> AsyncIterator[Mapping[str, int]]:
    """Yield subjects and how many messages each has, 100,000 at a time: the server's own pages."""
    offset = 0
    while True:
        request = {"subjects_filter": subject, "offset": offset}
        try:
            info = await jetstream.api(f"STREAM.INFO.{stream}", request)
        except ApiError as exc:
            if exc.err_code == NOT_FOUND:
                return
            raise
        page = info["state"].get("subjects") or {}
        yield page
        offset += len(page)
        if not page or offset >= info.get("total", 0):
            return


class _Place(NamedTuple):
    """Where something of a user may be.

    Attributes:
        field: That of `Held` that counts it.
        stream: The stream or bucket.
        head: Subject tokens before the service.
        tail: Those behind the user.
    """

    field: str
    stream: str
    head: str
    tail: str = ""

    def subject(self, service: str, user: str) -> str:
        """Return the subject for two tokens, of which the first may be a wildcard."""
        return f"{self.head}.{service}.{user}{self.tail}"

    def service(self, subject: str) -> str | None:
        """Return the service that a subject names.

        None: a durable group, whose token is not the escaped form of any name, or foreign.
        """
        try:
            return decode_token(subject.split(".")[self.head.count(".") + 1])
        except NameRefused:
            return None


class Holdings:
    """See `Operations.held` and `Operations.erase`.

    Args:
        broker: Whose streams it is about.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._jetstream = broker.jetstream
        self._subjects = broker.subjects

    async def find(self, user: str, service: str | None) -> dict[str, Held]:
        """See `Operations.held`."""
        tokens = "*" if service is None else encode_token(service), encode_token(user)
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for place in await self._places(service):
            pages = subject_pages(self._jetstream, place.stream, place.subject(*tokens))
            async for subjects in pages:
                for subject, count in subjects.items():
                    owner = place.service(subject)
                    if owner is not None:
                        found[owner][place.field] += count
        for place in await self._sent_places():
            pages = subject_pages(self._jetstream, place.stream, place.subject("*", "*"))
            async for subjects in pages:
                for subject, count in subjects.items():
                    if is_sent_by(subject, user) and (owner := self._sender(subject)) is not None:
                        found[owner][place.field] += count * (service in (None, owner))
        found = {name: counts for name, counts in found.items() if counts.total()}
        return {name: Held(**counts) for name, counts in sorted(found.items())}

    async def erase(self, inbox: Inbox) -> Held:
        """See `Operations.erase`."""
        tokens = encode_token(inbox.service), encode_token(inbox.user)
        topics = sender_token(inbox, "")  # as it is in the queue of any other service
        targets = [
            *((place, place.subject(*tokens)) for place in await self._places(inbox.service)),
            *((place, place.subject("*", topics)) for place in await self._sent_places()),
        ]
        purges = (self._purge(place.stream, subject) for place, subject in targets)
        counts: Counter[str] = Counter()
        for (place, _), count in zip(targets, await asyncio.gather(*purges), strict=True):
            counts[place.field] += count
            if place.field == "queued" and count:
                # Workers that hold a later message of this user look again
                service = self._subjects.service_of(place.stream) or inbox.service
                token = sender_token(inbox, service)
                self._broker.connection.publish(self._subjects.turn(service), token.encode())
        return Held(**counts)

    def _sender(self, subject: str) -> str | None:
        """Return the service whose user has sent to a topic; None if the subject is foreign."""
        try:
            return self._subjects.parse_sent(subject)[1].service
        except NameRefused:
            return None

    async def _sent_places(self) -> list[_Place]:
        """Return where that may be which users have sent to topics."""
        prefix = self._subjects.prefix
        return [
            *(_Place("queued", n, f"{prefix}.send") for n in await self._broker.services.streams()),
            _Place("dead_letters", self._subjects.stream("dead"), f"{prefix}.dead"),
        ]

    async def _places(self, service: str | None) -> list[_Place]:
        """Return where something may be; of the queues, only those that may be *service*'s."""
        subjects, prefix = self._subjects, self._subjects.prefix
        bucket = subjects.bucket("cursors")
        queues = [
            name
            for name in await self._broker.services.streams()
            if service is None or subjects.service_of(name) in (None, service)
        ]
        return [
            _Place("messages", subjects.stream("recv"), f"{prefix}.recv"),
            _Place("cursors", bucket, f"$KV.{bucket.removeprefix('KV_')}", ".*"),
            *(_Place("queued", name, f"{prefix}.send") for name in queues),
            _Place("dead_letters", subjects.stream("dead"), f"{prefix}.dead"),
        ]

    async def _purge(self, stream: str, subject: str) -> int:
        try:
            answer = await self._jetstream.api(f"STREAM.PURGE.{stream}", {"filter": subject})
        except ApiError as exc:
            if exc.err_code == NOT_FOUND:
                return 0
            raise
        return int(answer["purged"])
