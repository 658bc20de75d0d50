"""Finds identities by service and name: those that are connected, or have messages or a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsgateway import presence
from wsgateway.admin.lookups import Answers, ask
from wsgateway.admin.standing import UNKNOWN, Standing, services_of, standings
from wsgateway.broker.base import Broker
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, encode_token

if TYPE_CHECKING:
    from wsgateway.presence import Page

__all__ = ["Found", "Row", "find_identities"]

LIMIT = 100
"""Identities on a page."""


@dataclass(frozen=True, slots=True)
class Row:
    """An identity in the list."""

    inbox: Inbox
    standing: Standing


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        services: Those that exist.
        service: The one that was looked in; None: there is none.
        rows: In order of name.
        after: The name after which there may be more; None: there are none.
        exact: The address that was asked for, if it can be one, whether it is in `rows` or not.
        problems: Why something may be missing.
    """

    services: Sequence[str]
    service: str | None
    rows: Sequence[Row]
    after: str | None
    exact: Inbox | None
    problems: Sequence[str]


def find_identities(service: str, prefix: str, after: str | None) -> Found:
    """Return identities of *service* whose names begin with *prefix*, in order of name.

    Args:
        service: Whose; empty: the first one's.
        prefix: Empty: all of them.
        after: Only names after this one.
    """

    async def chosen(broker: Broker) -> str | None:
        return service or next(iter(await services_of(broker)), None)

    async def stored(broker: Broker) -> Sequence[str]:
        name = await chosen(broker)
        if name is None:
            return []
        return await broker.operations.names(name, prefix=prefix, after=after, limit=LIMIT)

    async def online(broker: Broker) -> Page | None:
        name = await chosen(broker)
        if name is None:
            return None
        return await presence.aonline(name, after=max(after or "", prefix) or None, limit=LIMIT)

    answers = ask(services=services_of, service=chosen, stored=stored, online=online)
    names, more = _merge(answers, prefix, first=after is None)
    rows, problems = _rows(answers["service"], names, {*(answers["stored"] or ())})
    return Found(
        answers["services"] or ([service] if service else []),
        answers["service"] or service or None,
        rows,
        names[-1] if more else None,
        _exact(answers["service"] or service, prefix),
        [*answers.problems, *(each for each in problems if each not in answers.problems)],
    )


def _merge(answers: Answers, prefix: str, *, first: bool) -> tuple[list[str], bool]:
    """Return the names of a page, and whether there may be more."""
    stored: Sequence[str] = answers["stored"] or ()
    page: Page | None = answers["online"]
    online = [name for name in (page.users if page else ()) if name.startswith(prefix)]
    exact = [prefix] if first and prefix else []  # `online` begins after it
    names = sorted({*stored, *online, *exact})
    # Beyond the end of either, names of that one are missing
    ends = [stored[-1]] if len(stored) == LIMIT else []
    if page is not None and page.after is not None and online:
        ends.append(page.after)
    if ends:
        names = [name for name in names if name <= min(ends)]
    return names[:LIMIT], bool(ends) or len(names) > LIMIT


def _rows(
    service: str | None, names: Sequence[str], stored: set[str]
) -> tuple[list[Row], Sequence[str]]:
    if service is None:
        return [], []
    found, problems = standings([name for name in names if _is_usable(name)], [service])
    rows = [Row(Inbox(service, name), found.get(name, UNKNOWN)) for name in names]
    return [row for row in rows if row.inbox.user in stored or row.standing.sockets], problems


def _is_usable(name: str) -> bool:
    try:
        encode_token(name)
    except NameRefused:
        return False
    return True


def _exact(service: str | None, name: str) -> Inbox | None:
    return Inbox(service, name) if service and name and _is_usable(name) else None
