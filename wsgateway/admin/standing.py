"""Who is online and what waits for them, for many users at once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from wsgateway import presence
from wsgateway.admin.lookups import ask
from wsgateway.broker.base import Broker
from wsgateway.conf import settings
from wsgateway.declared import ANY
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox

if TYPE_CHECKING:
    from wsgateway.broker.operations import InboxState
    from wsgateway.presence import Connections

__all__ = [
    "UNKNOWN",
    "Online",
    "Standing",
    "join",
    "online_users",
    "services_of",
    "silence",
    "standings",
]

MAX_ONLINE = 20_000
"""Names that the filter "online now" puts into its query."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a user, in all services together. None: unknown.

    Attributes:
        online: Whether they have an open socket.
        sockets: How many, as far as the gateways have answered; never 0 if `online` is None.
        waiting: Messages that none of their devices has.
        last_seen: When one of their devices confirmed something, or disconnected; None, too, if
            that never happened, or was forgotten.
    """

    online: bool | None = None
    sockets: int | None = None
    waiting: int | None = None
    last_seen: datetime | None = None


UNKNOWN = Standing()


@dataclass(frozen=True, slots=True)
class Online:
    """Who is online.

    Attributes:
        names: Their names; None: unknown.
        problems: Why somebody may be missing.
    """

    names: frozenset[str] | None
    problems: Sequence[str]


async def services_of(broker: Broker) -> list[str]:
    """Return the services that exist, in order; those with a socket where any may be named."""
    found = {name for name in broker.service_names if name is not GROUP_SERVICE}
    listed = settings.SERVICES or ()
    if ANY in listed:
        found |= {*(await presence.acounts()).sockets}
    return sorted(found | {name for name in listed if name != ANY})


def standings(
    names: Collection[str], services: Sequence[str] | None = None
) -> tuple[dict[str, Standing], list[str]]:
    """Return how it stands with each user, and what went wrong; one round trip for all.

    Args:
        names: The users' names.
        services: In which services; None: in all.
    """
    if not names:
        return {}, []

    async def inboxes(broker: Broker) -> list[Inbox]:
        known = await services_of(broker) if services is None else services
        return [Inbox(service, name) for service in known for name in names]

    async def connections(broker: Broker) -> Mapping[Inbox, Connections]:
        return await presence.aconnections_of(await inboxes(broker))

    async def states(broker: Broker) -> Mapping[Inbox, InboxState]:
        return await broker.operations.counts(await inboxes(broker))

    answers = ask(connections=connections, states=states)
    found = join(names, answers["connections"], answers["states"])
    return found, [*answers.problems, *silence(answers["connections"] or {})]


def silence(connections: Mapping[Inbox, Connections]) -> list[str]:
    """Return a line about each gateway that did not answer."""
    silent = sorted({each for found in connections.values() for each in found.silent})
    return [f"gateway {each} does not answer; its sockets are not counted" for each in silent]


def join(
    names: Iterable[str],
    connections: Mapping[Inbox, Connections] | None,
    states: Mapping[Inbox, InboxState] | None,
) -> dict[str, Standing]:
    """Return how it stands with each user, from what was found about their inboxes."""
    sockets = dict.fromkeys(names, 0)
    unsure: set[str] = set()
    for inbox, found in (connections or {}).items():
        sockets[inbox.user] += len(found)
        if found.silent:
            unsure.add(inbox.user)
    waiting = dict.fromkeys(sockets, 0)
    seen: dict[str, list[datetime]] = {name: [] for name in sockets}
    for inbox, state in (states or {}).items():
        waiting[inbox.user] += state.waiting
        seen[inbox.user] += [state.last_seen] if state.last_seen else []
    return {
        name: Standing(
            None if connections is None else _online(number, name in unsure),
            None if connections is None else _number(number, name in unsure),
            None if states is None else waiting[name],
            max(seen[name], default=None),
        )
        for name, number in sockets.items()
    }


def _online(sockets: int, unsure: bool) -> bool | None:
    return True if sockets else (None if unsure else False)


def _number(sockets: int, unsure: bool) -> int | None:
    return sockets if sockets or not unsure else None


def online_users() -> Online:
    """Return the names of all who have a socket, in whichever service."""

    async def online(broker: Broker) -> tuple[set[str], set[str]]:
        pages = await asyncio.gather(*map(_all_online, await services_of(broker)))
        return (
            {name for names, _ in pages for name in names},
            {gateway for _, silent in pages for gateway in silent},
        )

    answers = ask(online=online)
    if answers["online"] is None:
        return Online(None, answers.problems)
    names, silent = answers["online"]
    problems = [f"gateway {each} does not answer; its users are missing" for each in sorted(silent)]
    if len(names) > MAX_ONLINE:
        names = set(sorted(names)[:MAX_ONLINE])
        problems.append(f"more than {MAX_ONLINE:,} users are online; these are the first by name")
    return Online(frozenset(names), problems)


async def _all_online(service: str) -> tuple[set[str], set[str]]:
    names: set[str] = set()
    silent: set[str] = set()
    after: str | None = None
    while True:
        page = await presence.aonline(service, after=after)
        names |= page.users.keys()
        silent |= {*page.silent}
        after = page.after
        if after is None or len(names) > MAX_ONLINE:
            return names, silent
