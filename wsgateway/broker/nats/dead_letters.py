"""Dead letters in a stream of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.holdings import subject_pages
from wsgateway.broker.nats.jetstream import NOT_DELETED, ApiError
from wsgateway.broker.work import DeadEntry, DeadLetters, DeadPage
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, Subjects, encode_token, is_sent_by

if TYPE_CHECKING:
    from wsgateway.broker.bus import Reply
    from wsgateway.broker.nats.jetstream import JetStream

__all__ = ["NatsDeadLetters"]


class NatsDeadLetters(DeadLetters):
    """See `DeadLetters`.

    Args:
        jetstream: Where the stream is.
        subjects: Names below the installation's prefix.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        self._stream = subjects.stream("dead")

    @property
    def max_size(self) -> int:  # type: ignore[override]
        return self._jetstream.connection.max_payload

    async def add(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        subject = self._subjects.dead(inbox, service)
        await self._jetstream.publish(subject, payload, dict(headers), msg_id=msg_id)

    async def read(
        self, service: str | None, after: int, limit: int, user: str | None = None
    ) -> DeadPage:
        if user is None:
            return await self._read(self._subjects.all_of("dead", service), after, limit)
        subjects = await self._subjects_of(service, user)
        pages = await asyncio.gather(*(self._read(each, after, limit) for each in subjects))
        entries = sorted(entry for page in pages for entry in page.entries)
        more = len(entries) > limit or any(page.more for page in pages)
        return DeadPage(entries[:limit], more)

    async def _read(self, subject: str, after: int, limit: int) -> DeadPage:
        request = {"seq": after + 1, "next_by_subj": subject, "batch": limit}
        found = await self._jetstream.direct(self._stream, request)
        return DeadPage([self._entry(reply) for reply in found.replies], found.pending > 0)

    async def _subjects_of(self, service: str | None, user: str) -> list[str]:
        """Return the subjects of a user's dead letters: of messages to services, and to topics."""
        everyone = self._subjects.all_of("dead", service)
        own = everyone.removesuffix("*") + encode_token(user)
        found = [own]
        async for subjects in subject_pages(self._jetstream, self._stream, everyone):
            found += (each for each in subjects if is_sent_by(each, user))
        return found

    async def find(self, offset: int) -> DeadEntry | None:
        found = await self._jetstream.direct(self._stream, {"seq": offset})
        return self._entry(found.replies[0]) if found.replies else None

    async def remove(self, offset: int) -> None:
        request = {"seq": offset, "no_erase": True}
        try:
            await self._jetstream.api(f"STREAM.MSG.DELETE.{self._stream}", request)
        except ApiError as exc:
            if exc.err_code not in NOT_DELETED or await self.find(offset) is not None:
                raise

    async def requeue(
        self,
        inbox: Inbox,
        payload: bytes,
        headers: Mapping[str, str],
        msg_id: str,
        service: str | None = None,
    ) -> None:
        subject = self._subjects.send(inbox, service)
        await self._jetstream.publish(subject, payload, dict(headers), msg_id=msg_id)

    def _entry(self, reply: Reply) -> DeadEntry:
        headers = hdrs.decode(reply.headers)
        service, inbox = self._sender(headers["Nats-Subject"])
        return DeadEntry(
            int(headers["Nats-Sequence"]),
            inbox,
            service,
            reply.data,
            {name: value for name, value in headers.items() if not name.startswith("Nats-")},
            headers.get("Nats-Time-Stamp", ""),
        )

    def _sender(self, subject: str) -> tuple[str, Inbox]:
        try:
            return self._subjects.parse_sent(subject)
        except NameRefused:  # somebody else's, on a subject that is not ours
            *_, service, user = subject.split(".")
            return service, Inbox(service, user)
