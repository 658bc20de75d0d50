"""What the page of a user, or of another identity, shows; read from the broker in one go."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from wsgateway import presence
from wsgateway.admin.lookups import Answers, ask
from wsgateway.admin.payloads import PREVIEW, Shown, shown
from wsgateway.admin.standing import Standing, join, services_of, silence
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Stored
from wsgateway.protocol.subjects import Inbox

if TYPE_CHECKING:
    from wsgateway.broker.operations import Device, InboxState
    from wsgateway.presence import Connection, Connections

__all__ = ["PAGE", "Leaf", "Panels", "Place", "find_message", "read_panels"]

PAGE = 25
"""Messages on a page."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which messages of an inbox to show.

    Attributes:
        before: Only older ones than this offset.
        after: Only newer ones than this offset, the oldest of them first to be shown.
        since: Only those stored then, or later.
        until: Only those stored before.
    """

    before: int | None = None
    after: int | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A page of an inbox.

    Attributes:
        messages: The newest first.
        older: Offset before which the next page begins; None: there is none.
        newer: Offset after which the one before begins; None: there is none.
    """

    messages: Sequence[Shown] = ()
    older: int | None = None
    newer: int | None = None


@dataclass(slots=True)
class Panels:
    """What is known of a user. None: unknown.

    Attributes:
        services: Those that exist.
        inbox: The one that is shown in detail; None: there is no service.
        standing: How it stands with the user in all services together.
        connections: Of all services, the newest first; see `silent`.
        silent: Services in which the user may have sockets on a gateway that does not answer.
        states: What each service's inbox holds, for those that are known.
        devices: That have a cursor in `inbox`.
        leaf: Some messages of `inbox`.
        problems: Why something is unknown.
    """

    services: Sequence[str]
    inbox: Inbox | None
    standing: Standing
    connections: Sequence[Connection] | None
    silent: frozenset[str]
    states: Mapping[Inbox, InboxState] | None
    devices: Sequence[Device] | None
    leaf: Leaf | None
    problems: Sequence[str]

    @property
    def by_service(self) -> Sequence[tuple[str, int | None, InboxState | None]]:
        """Each service, with the number of its sockets, and what its inbox holds."""
        sockets = Counter(each.service for each in self.connections or ())
        states = {inbox.service: state for inbox, state in (self.states or {}).items()}
        unknown = self.silent if self.connections is not None else frozenset(self.services)
        return [
            (name, sockets[name] or (None if name in unknown else 0), states.get(name))
            for name in self.services
        ]

    @property
    def by_device(self) -> Sequence[tuple[Device, int | None]]:
        """Each device that has a cursor, with the number of its sockets."""
        sockets = Counter((each.service, each.device) for each in self.connections or ())
        service = self.inbox.service if self.inbox else ""
        none = None if self.connections is None or service in self.silent else 0
        return [(each, sockets[service, each.device] or none) for each in self.devices or ()]

    @property
    def state(self) -> InboxState | None:
        """What `inbox` holds."""
        return None if self.states is None or self.inbox is None else self.states.get(self.inbox)


def read_panels(
    name: str, services: Sequence[str] | None, selected: str | None, place: Place | None
) -> Panels:
    """Return what is known of the user called *name*.

    Args:
        name: Of the user, in their inboxes.
        services: Whose inboxes to look at; None: of all services.
        selected: Whose inbox to show; None: the first one.
        place: Which messages of it; None: none.
    """

    async def known(broker: Broker) -> Sequence[str]:
        return services if services is not None else await services_of(broker)

    async def inboxes(broker: Broker) -> list[Inbox]:
        return [Inbox(service, name) for service in await known(broker)]

    async def chosen(broker: Broker) -> Inbox | None:
        found = await known(broker)
        service = selected if selected in found else next(iter(found), None)
        return None if service is None else Inbox(service, name)

    async def connections(broker: Broker) -> Mapping[Inbox, Connections]:
        return await presence.aconnections_of(await inboxes(broker))

    async def states(broker: Broker) -> Mapping[Inbox, InboxState]:
        return await broker.operations.counts(await inboxes(broker))

    async def devices(broker: Broker) -> Sequence[Device]:
        inbox = await chosen(broker)
        return [] if inbox is None else await broker.operations.devices(inbox)

    async def messages(broker: Broker) -> Leaf:
        inbox = await chosen(broker)
        return Leaf() if inbox is None or place is None else await _read(broker, inbox, place)

    answers = ask(
        services=known,
        inbox=chosen,
        connections=connections,
        states=states,
        devices=devices,
        messages=messages,
    )
    return _panels(answers, name, services or ())


def _panels(answers: Answers, name: str, services: Sequence[str]) -> Panels:
    found: Mapping[Inbox, Connections] | None = answers["connections"]
    connections = None
    if found is not None:
        connections = [each for one in found.values() for each in one]
        connections.sort(key=lambda each: each.since, reverse=True)
    return Panels(
        answers["services"] or services,
        answers["inbox"],
        join([name], found, answers["states"])[name],
        connections,
        frozenset(inbox.service for inbox, one in (found or {}).items() if one.silent),
        answers["states"],
        answers["devices"],
        answers["messages"],
        [*answers.problems, *silence(found or {})],
    )


async def _read(broker: Broker, inbox: Inbox, place: Place) -> Leaf:
    """Return a page of *inbox*; asks for the two moments at the same time."""
    first, end = await asyncio.gather(
        _offset(broker, inbox, place.since), _offset(broker, inbox, place.until)
    )
    if place.since is not None and first is None:
        return Leaf()
    least = first or 0
    if place.after is not None:
        batch = await broker.inboxes.read_after(inbox, max(place.after, least - 1), limit=PAGE)
        found = [each for each in batch.messages if end is None or each.offset < end]
        more = batch.more and len(found) == len(batch.messages)
        older = found[0].offset if found else place.after + 1
        return _leaf(found, older if older > least else None, found[-1].offset if more else None)
    limits = [limit for limit in (place.before, end) if limit is not None]
    batch = await broker.inboxes.read_last(inbox, PAGE, before=min(limits, default=None))
    found = [each for each in batch.messages if each.offset >= least]
    more = batch.more and len(found) == len(batch.messages)
    newer = None
    if place.before is not None and (end is None or place.before < end):
        newer = found[-1].offset if found else place.before - 1
    return _leaf(found, found[0].offset if more else None, newer)


def _leaf(messages: Sequence[Stored], older: int | None, newer: int | None) -> Leaf:
    return Leaf([shown(each, PREVIEW) for each in reversed(messages)], older, newer)


async def _offset(broker: Broker, inbox: Inbox, time: dt.datetime | None) -> int | None:
    return None if time is None else await broker.inboxes.offset_at(inbox, time)


def find_message(inbox: Inbox, offset: int, limit: int) -> tuple[Shown | None, Sequence[str]]:
    """Return the message at *offset*, and what went wrong; None: unknown, or not kept any more."""
    answers = ask(message=partial(_find, inbox=inbox, offset=offset))
    found: Stored | None = answers["message"]
    return None if found is None else shown(found, limit), answers.problems


async def _find(broker: Broker, *, inbox: Inbox, offset: int) -> Stored | None:
    batch = await broker.inboxes.read_after(inbox, offset - 1, limit=1)
    return next((each for each in batch.messages if each.offset == offset), None)
