"""Who is connected, and where: asked of the gateways at the moment of the call.

There is no table that could be wrong. A gateway that holds a user's sockets listens on the user's
subject; if nobody does, NATS says so at once. A gateway that is there and does not answer is
*silent*: what it holds is unknown, and each result names it.

Each function has a twin for asynchronous code, whose name begins with ``a``. All of them raise
`BrokerUnavailable` if the broker cannot be reached. See ``docs/how-to/presence.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from wsgateway.broker import runtime
from wsgateway.exceptions import NameRefused
from wsgateway.presence import overview, users
from wsgateway.presence.paging import MAX_PAGE
from wsgateway.presence.results import (
    Connection,
    Connections,
    Counts,
    Disconnected,
    Gateway,
    Gateways,
    Page,
)
from wsgateway.protocol.subjects import Inbox, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.connection import Action

__all__ = [
    "Connection",
    "Connections",
    "Counts",
    "Disconnected",
    "Gateway",
    "Gateways",
    "Page",
    "aare_online",
    "aconnections",
    "aconnections_of",
    "acounts",
    "adisconnect",
    "adrain",
    "agateways",
    "ais_online",
    "aonline",
    "are_online",
    "arecheck_watches",
    "connections",
    "connections_of",
    "counts",
    "disconnect",
    "drain",
    "gateways",
    "is_online",
    "online",
    "recheck_watches",
]


# -- one user ----------------------------------------------------------------------------


async def ais_online(service: str, user: str) -> bool | None:
    """Say whether a user has an open socket.

    Args:
        service: The service.
        user: The user's name.

    Returns:
        None if that is unknown, because a gateway that may hold one is silent. `connections` says
        which.

    Raises:
        NameRefused: No user can have this name.
    """
    inbox = _inbox(service, user)
    return (await runtime.call(partial(users.find_online, inboxes=[inbox])))[inbox]


def is_online(service: str, user: str) -> bool | None:
    """Do what `ais_online` does, from synchronous code."""
    inbox = _inbox(service, user)
    return runtime.call_sync(partial(users.find_online, inboxes=[inbox]), name="is_online")[inbox]


async def aconnections(service: str, user: str) -> Connections:
    """Return a user's open sockets.

    Args:
        service: The service.
        user: The user's name.

    Raises:
        NameRefused: No user can have this name.
    """
    inbox = _inbox(service, user)
    return (await runtime.call(partial(users.find_connections, inboxes=[inbox])))[inbox]


def connections(service: str, user: str) -> Connections:
    """Do what `aconnections` does, from synchronous code."""
    inbox = _inbox(service, user)
    asking = partial(users.find_connections, inboxes=[inbox])
    return runtime.call_sync(asking, name="connections")[inbox]


def _closing(
    service: str,
    user: str,
    *,
    device: str | None = None,
    connection: str | None = None,
    reason: str = "",
) -> Action[Disconnected]:
    request: dict[str, Any] = {"ask": "disconnect"}
    for name, value in (("reason", reason), ("device", device), ("connection", connection)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be str or None, not {type(value).__name__}")
        request |= {} if value is None else {name: value}
    return partial(users.close_sockets, inbox=_inbox(service, user), request=request)


async def adisconnect(
    service: str,
    user: str,
    *,
    device: str | None = None,
    connection: str | None = None,
    reason: str = "",
) -> Disconnected:
    """Close a user's open sockets with 4505 (raw: 1008), after which our clients stay away.

    It does not end a right: a client that opens a socket again is let in. To prevent that, log the
    user out first.

    Args:
        service: The service.
        user: The user's name.
        device: Only sockets of this device.
        connection: Only the socket with this id.
        reason: What the clients are told, up to 123 bytes of UTF-8; empty: the code's own text.

    Raises:
        NameRefused: No user can have this name.
        TypeError: One of the others is not text.
    """
    return await runtime.call(
        _closing(service, user, device=device, connection=connection, reason=reason)
    )


def disconnect(service: str, user: str, **options: Any) -> Disconnected:
    """Do what `adisconnect` does, from synchronous code; it takes the same arguments."""
    return runtime.call_sync(_closing(service, user, **options), name="disconnect")


async def arecheck_watches(service: str, user: str) -> None:
    """Have ``WSGATEWAY_MAY_WATCH`` asked again about watches of a user and by that user.

    Call it when a right has ended, for example when users block each other. Clients that may not
    watch any more are told within a second; a gateway that is not connected to NATS at that
    moment does not hear of it.

    Args:
        service: The service.
        user: The user's name.

    Raises:
        NameRefused: No user can have this name.
    """
    await runtime.call(partial(users.recheck_watches, inbox=_inbox(service, user)))


def recheck_watches(service: str, user: str) -> None:
    """Do what `arecheck_watches` does, from synchronous code."""
    runtime.call_sync(
        partial(users.recheck_watches, inbox=_inbox(service, user)), name="recheck_watches"
    )


# -- many users --------------------------------------------------------------------------


async def aare_online(service: str, names: Iterable[str]) -> dict[str, bool | None]:
    """Say of each user what `ais_online` does; for all of them in a round trip.

    Args:
        service: The service.
        names: Users' names. One that no user can have, such as a very long one, is not online.
    """
    pairs = {name: Inbox(service, name) for name in names}
    found = await runtime.call(partial(users.find_online, inboxes=_possible(pairs.values())))
    return {name: found.get(inbox, False) for name, inbox in pairs.items()}


def are_online(service: str, names: Iterable[str]) -> dict[str, bool | None]:
    """Do what `aare_online` does, from synchronous code."""
    pairs = {name: Inbox(service, name) for name in names}
    found = runtime.call_sync(
        partial(users.find_online, inboxes=_possible(pairs.values())), name="are_online"
    )
    return {name: found.get(inbox, False) for name, inbox in pairs.items()}


async def aconnections_of(pairs: Iterable[tuple[str, str]]) -> dict[Inbox, Connections]:
    """Return the open sockets of many users; for all of them in a round trip.

    Args:
        pairs: Services and users' names. One that no user can have has no sockets.
    """
    inboxes = [Inbox(*pair) for pair in pairs]
    found = await runtime.call(partial(users.find_connections, inboxes=_possible(inboxes)))
    return {inbox: found.get(inbox, Connections()) for inbox in inboxes}


def connections_of(pairs: Iterable[tuple[str, str]]) -> dict[Inbox, Connections]:
    """Do what `aconnections_of` does, from synchronous code."""
    inboxes = [Inbox(*pair) for pair in pairs]
    found = runtime.call_sync(
        partial(users.find_connections, inboxes=_possible(inboxes)), name="connections_of"
    )
    return {inbox: found.get(inbox, Connections()) for inbox in inboxes}


def _listing(service: str, *, after: str | None = None, limit: int = MAX_PAGE) -> Action[Page]:
    encode_token(service)
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}, but must be 1 to {MAX_PAGE}")
    return partial(overview.list_users, service=service, after=after, limit=limit)


async def aonline(service: str, *, after: str | None = None, limit: int = MAX_PAGE) -> Page:
    """Return a page of the users who have an open socket, in the order of their names.

    Pass each page's ``after`` to get the next one. A user who stays connected is on exactly one of
    them.

    Args:
        service: The service.
        after: A name, which need not be online; None: begin with the first.
        limit: Users, 1 to 1000; a page may have fewer, although there are more pages.

    Raises:
        NameRefused: No service can have this name.
        ValueError: *limit* is out of range.
    """
    return await runtime.call(_listing(service, after=after, limit=limit))


def online(service: str, *, after: str | None = None, limit: int = MAX_PAGE) -> Page:
    """Do what `aonline` does, from synchronous code."""
    return runtime.call_sync(_listing(service, after=after, limit=limit), name="online")


async def acounts() -> Counts:
    """Return how many sockets are open, and how many users have one, by service."""
    return await runtime.call(overview.count)


def counts() -> Counts:
    """Do what `acounts` does, from synchronous code."""
    return runtime.call_sync(overview.count, name="counts")


# -- gateways ----------------------------------------------------------------------------


async def agateways() -> Gateways:
    """Return the gateways that there are, and what they do."""
    return await runtime.call(overview.find_gateways)


def gateways() -> Gateways:
    """Do what `agateways` does, from synchronous code."""
    return runtime.call_sync(overview.find_gateways, name="gateways")


async def adrain(gateway: str) -> bool:
    """Have a gateway let its sockets go, as at its end, at WSGATEWAY_DRAIN_RATE a second.

    It takes no new ones from now on, and its readiness probe answers 503; the process stays. Only
    a restart brings it back.

    Args:
        gateway: Its id.

    Returns:
        Whether there is such a gateway. It is asked to begin; `gateways` tells how far it is.

    Raises:
        BrokerUnavailable: It is silent.
        NameRefused: No gateway has such an id.
    """
    return await runtime.call(partial(overview.drain_gateway, id=gateway))


def drain(gateway: str) -> bool:
    """Do what `adrain` does, from synchronous code."""
    return runtime.call_sync(partial(overview.drain_gateway, id=gateway), name="drain")


def _inbox(service: str, user: str) -> Inbox:
    """Return a user's address.

    Raises:
        NameRefused: No user can have it.
    """
    encode_token(service)
    encode_token(user)
    return Inbox(service, user)


def _possible(inboxes: Iterable[Inbox]) -> list[Inbox]:
    """Return those of *inboxes* that a user can have."""
    found = []
    for inbox in inboxes:
        try:
            found.append(_inbox(*inbox))
        except NameRefused:
            continue
    return found
