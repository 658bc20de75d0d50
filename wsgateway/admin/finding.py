"""Finds identities by service and name: those that are connected, or have messages or a device."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        return await broker.operations.names(name, prefix=prefix, after=after, limit=LIMIT + 1)

    async def online(broker: Broker) -> Page | None:
        name = await chosen(broker)
        if name is None:
            return None
        start = max(after or "", prefix) or None
        return await presence.aonline(name, after=start, limit=LIMIT + 1)

    answers = ask(services=services_of, service=chosen, stored=stored, online=online)
    exact = [prefix] if after is None and prefix else []  # `online` begins after it
    certain, more = _merge(answers, prefix)
    names = sorted({*certain, *exact})[:LIMIT]
    rows, problems = _rows(answers["service"], names, certain)
    return Found(
        answers["services"] or ([service] if service else []),
        answers["service"] or service or None,
        rows,
        names[-1] if more and names else None,
        _exact(answers["service"] or service, prefix),
        [*answers.problems, *(each for each in problems if each not in answers.problems)],
    )


def _merge(answers: Answers, prefix: str) -> tuple[list[str], bool]:
    """Return the names that were found, more than fit perhaps, and whether there may be others."""
    stored: Sequence[str] = answers["stored"] or ()
    page: Page | None = answers["online"]
    online = [name for name in (page.users if page else ()) if name.startswith(prefix)]
    names = sorted({*stored, *online})
    # Beyond the end of either, names of that one are missing
    ends = [stored[-1]] if len(stored) > LIMIT else []
    if page is not None and page.after is not None and page.after.startswith(prefix):
        ends.append(page.after)
    if ends:
        names = [name for name in names if name <= min(ends)]
    return names, bool(ends) or len(names) > LIMIT


def _rows(
    service: str | None, names: Sequence[str], certain: Collection[str]
) -> tuple[list[Row], Sequence[str]]:
    """Return rows; a name that is not certain to exist has one if it is connected."""
    if service is None:
        return [], []
    found, problems = standings([name for name in names if _is_usable(name)], [service])
    rows = [Row(Inbox(service, name), found.get(name, UNKNOWN)) for name in names]
    return [row for row in rows if row.inbox.user in certain or row.standing.sockets], problems


def _is_usable(name: str) -> bool:
    try:
        encode_token(name)
    except NameRefused:
        return False
    return True


def _exact(service: str | None, name: str) -> Inbox | None:
    if not service or not _is_usable(service) or not _is_usable(name):
        return None
    return Inbox(service, name)
