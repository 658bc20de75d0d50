"""What operators see of inboxes and devices on NATS, and do to them; see also `overview`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from wsgateway.broker.nats.backwards import MAX_OFFSET, look
from wsgateway.broker.nats.consumers import pause_consumer, resume_consumer
from wsgateway.broker.nats.cursors import Saved
from wsgateway.broker.nats.holdings import Holdings, subject_pages
from wsgateway.broker.nats.jetstream import NO_MESSAGE, NOT_DELETED, ApiError
from wsgateway.broker.nats.overview import Overview
from wsgateway.broker.operations import Device, Held, InboxState, Operations, Queue, Stream
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Address, Inbox, decode_token, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.messages import Position
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["NatsOperations"]

AT_ONCE = 128
"""Inboxes that are looked at together: a look brings a whole message, and those may be large."""


class NatsOperations(Operations):
    """See `Operations`.

    Args:
        broker: Whose streams it is about.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._jetstream = broker.jetstream
        self._subjects = broker.subjects
        self._stream = broker.subjects.stream("recv")
        self._overview = Overview(broker)
        self._holdings = Holdings(broker)

    # -- inboxes -------------------------------------------------------------------------

    async def counts(self, inboxes: Iterable[Inbox]) -> dict[Inbox, InboxState]:
        wanted = list(dict.fromkeys(inboxes))
        found = {inbox: InboxState() for inbox in wanted}
        for portion in _portions([inbox for inbox in wanted if self._can_be(inbox)]):
            position, last, saved = await asyncio.gather(
                self._broker.inboxes.position(),
                self._broker.inboxes.last_offsets(portion),
                asyncio.gather(*(self._broker.saved_cursors(inbox) for inbox in portion)),
            )
            pairs = zip(portion, saved, strict=True)
            looks = (self._state(inbox, last.get(inbox, 0), own, position) for inbox, own in pairs)
            found.update(zip(portion, await asyncio.gather(*looks), strict=True))
        return found

    def _can_be(self, inbox: Inbox) -> bool:
        """Say whether a user can have this name; Django's may be longer."""
        try:
            self._subjects.recv(inbox)
        except NameRefused:
            return False
        return True

    async def _state(
        self, inbox: Inbox, last: int, saved: list[Saved], position: Position
    ) -> InboxState:
        last_seen = max((cursor.time for cursor in saved), default=None)
        if not last:
            return InboxState(last_seen=last_seen)
        read_to = max((_read_to(cursor, position) for cursor in saved), default=0)
        first, waiting = await asyncio.gather(self._first(inbox), self._waiting(inbox, {read_to}))
        offset, messages = first
        return InboxState(messages, offset, last, waiting.get(read_to, messages), last_seen)

    async def _first(self, inbox: Inbox) -> tuple[int, int]:
        """Return the offset of the oldest message, and how many there are."""
        place = await look(self._jetstream, self._stream, self._subjects.recv(inbox))
        return (place.offset, place.rest) if place else (0, 0)

    async def _waiting(self, inbox: Inbox, offsets: set[int]) -> dict[int, int]:
        """Return how many messages there are after each of *offsets* but 0, which is all."""
        subject, wanted = self._subjects.recv(inbox), sorted(offsets - {0})
        looks = (look(self._jetstream, self._stream, subject, each + 1) for each in wanted)
        places = await asyncio.gather(*looks)
        return {
            each: place.rest if place else 0 for each, place in zip(wanted, places, strict=True)
        }

    async def devices(self, inbox: Inbox) -> list[Device]:
        if not self._can_be(inbox):
            return []
        position, saved, first = await asyncio.gather(
            self._broker.inboxes.position(), self._broker.saved_cursors(inbox), self._first(inbox)
        )
        read_to = [_read_to(cursor, position) for cursor in saved]
        waiting = {0: first[1], **await self._waiting(inbox, {*read_to})}
        return [
            Device(cursor.device, cursor.offset, cursor.epoch, cursor.time, waiting[offset])
            for cursor, offset in zip(saved, read_to, strict=True)
        ][::-1]

    async def delete(self, address: Address, offset: int) -> bool:
        if not 0 < offset <= MAX_OFFSET:
            return False
        stream = self._broker.log(address).name
        try:
            found = await self._jetstream.api(f"STREAM.MSG.GET.{stream}", {"seq": offset})
            if found["message"]["subject"] != self._subjects.stored(address):
                return False
            await self._jetstream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": offset})
        except ApiError as exc:
            if exc.err_code in (NO_MESSAGE, *NOT_DELETED):
                return False
            raise
        return True

    async def purge(self, address: Address) -> int:
        request = {"filter": self._subjects.stored(address)}
        stream = self._broker.log(address).name
        answer = await self._jetstream.api(f"STREAM.PURGE.{stream}", request)
        return int(answer["purged"])

    async def held(self, user: str, service: str | None = None) -> dict[str, Held]:
        return await self._holdings.find(user, service)

    async def erase(self, inbox: Inbox) -> Held:
        return await self._holdings.erase(inbox)

    # -- names ---------------------------------------------------------------------------

    async def names(
        self, service: str, *, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> list[str]:
        cursors = self._subjects.bucket("cursors")
        try:
            token, begin = encode_token(service), encode_token(prefix) if prefix else ""
        except NameRefused:  # nobody can have such a name
            return []
        inboxes = f"{self._subjects.prefix}.recv.{token}."
        keys = f"$KV.{cursors.removeprefix('KV_')}.{token}."
        found: set[str] = set()
        for stream, head, tail in ((self._stream, inboxes, "*"), (cursors, keys, "*.*")):
            async for subjects in subject_pages(self._jetstream, stream, head + tail):
                wanted = head + begin
                tokens = {
                    subject[len(head) :].partition(".")[0]
                    for subject in subjects
                    if subject.startswith(wanted)
                }
                names = (name for name in _names(tokens) if name > (after or ""))
                found = {*heapq.nsmallest(limit, found.union(names))}
        return sorted(found)

    # -- streams and queues --------------------------------------------------------------

    async def streams(self) -> list[Stream]:
        return await self._overview.streams()

    async def queues(self) -> list[Queue]:
        return await self._overview.queues()

    async def pause(self, service: str, age: float = 0.0) -> bool:
        return await pause_consumer(self._broker, service, age)

    async def resume(self, service: str) -> bool:
        return await resume_consumer(self._broker, service)


def _read_to(cursor: Saved, position: Position) -> int:
    """Return up to where a device has everything; 0 if its cursor means nothing any more."""
    valid = cursor.epoch == position.epoch and cursor.offset <= position.last
    return cursor.offset if valid else 0


def _portions(wanted: list[Inbox]) -> Iterator[list[Inbox]]:
    for begin in range(0, len(wanted), AT_ONCE):
        yield wanted[begin : begin + AT_ONCE]


def _names(tokens: Iterable[str]) -> Iterator[str]:
    for token in tokens:
        try:
            yield decode_token(token)
        except NameRefused:  # somebody else's, on a subject that is not ours
            continue
