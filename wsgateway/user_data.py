"""Everything that is stored about a user: found, and deleted for good.

Each function has a twin for asynchronous code, whose name begins with ``a``. Both raise
`BrokerUnavailable` if the broker cannot be reached. ``docs/how-to/delete-user-data.md`` says what
is deleted, and what no function can find.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import router

from wsgateway.broker import runtime
from wsgateway.broker.operations import Held
from wsgateway.conf import settings
from wsgateway.declared import ANY
from wsgateway.exceptions import MalformedMessage
from wsgateway.layer import durable, wire
from wsgateway.presence.overview import count
from wsgateway.presence.users import close_sockets
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox, encode_token
from wsgateway.readable import some

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from wsgateway.broker.base import Broker
    from wsgateway.outbox.models import OutboxMessage

__all__ = ["Held", "UserData", "adelete", "afind", "delete", "find"]

logger = logging.getLogger("wsgateway")

PAGE = 100
"""Messages that are read at once, to find what large ones have outside their inbox."""
ROUNDS = 5
"""Looks for what a socket or a worker stored while the rest was deleted."""
PAUSE = 0.1
"""Seconds between these looks."""


@dataclass(frozen=True, slots=True)
class UserData:
    """What is, or was, stored about a user.

    Attributes:
        services: By service; those that hold nothing are missing.
        outbox_rows: Messages for the user that wait in the outbox's table.
        sockets: How many open sockets were closed.
        silent: Gateways that did not answer. They may still have sockets of the user.
    """

    services: Mapping[str, Held]
    outbox_rows: int = 0
    sockets: int = 0
    silent: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Everything that is stored, sockets aside."""
        return self.outbox_rows + sum(held.total for held in self.services.values())


def find(user: str, *, service: str | None = None, using: str | None = None) -> UserData:
    """Return what is stored about a user. Changes nothing.

    Args:
        user: The user's name.
        service: In this service only; None: in all, those included that no longer exist.
        using: The outbox's database; None: as the router says.

    Raises:
        NameRefused: No user, or no service, can have this name.
    """
    _require_names(user, service)
    rows = _count_rows(user, service, using)
    found = runtime.call_sync(lambda broker: broker.operations.held(user, service), name="find")
    return UserData(found, rows)


async def afind(user: str, *, service: str | None = None, using: str | None = None) -> UserData:
    """Do what `find` does, from asynchronous code."""
    _require_names(user, service)
    rows = await sync_to_async(_count_rows)(user, service, using)
    found = await runtime.call(lambda broker: broker.operations.held(user, service))
    return UserData(found, rows)


def delete(user: str, *, service: str | None = None, using: str | None = None) -> UserData:
    """Delete what is stored about a user for good, and return what it was. Idempotent.

    Open sockets are closed with 4505 (raw: 1008). A user who can still log in, and does, begins to
    have data again; so do this after you have deleted or deactivated the Django user.

    Args:
        user: The user's name.
        service: In this service only; None: in all, those included that no longer exist.
        using: The outbox's database; None: as the router says.

    Raises:
        NameRefused: No user, or no service, can have this name.
    """
    _require_names(user, service)
    rows = _delete_rows(user, service, using)  # first: a relay would send them again
    return runtime.call_sync(partial(_delete, user=user, service=service, rows=rows), name="delete")


async def adelete(user: str, *, service: str | None = None, using: str | None = None) -> UserData:
    """Do what `delete` does, from asynchronous code."""
    _require_names(user, service)
    rows = await sync_to_async(_delete_rows)(user, service, using)
    return await runtime.call(partial(_delete, user=user, service=service, rows=rows))


def _require_names(user: str, service: str | None) -> None:
    encode_token(user)
    if service is not None:
        encode_token(service)


# -- the broker --------------------------------------------------------------------------


async def _delete(broker: Broker, *, user: str, service: str | None, rows: int) -> UserData:
    found = await broker.operations.held(user, service)
    services = {service} if service else {*found, *await _with_sockets(broker)}
    request = {"ask": "disconnect", "forget": 1}
    closed = await asyncio.gather(
        *(close_sockets(broker, Inbox(name, user), request) for name in sorted(services))
    )
    erased: dict[str, Held] = {}
    for round in range(ROUNDS):
        for name in found:
            await _erase(broker, Inbox(name, user), erased)
        if round:
            await asyncio.sleep(PAUSE)
        found = await broker.operations.held(user, service)
        if not found:
            break
    deleted = UserData(
        dict(sorted(erased.items())),
        rows,
        sum(each.sockets for each in closed),
        tuple(sorted({gateway for each in closed for gateway in each.silent})),
    )
    _log(deleted, user)
    return deleted


def _log(deleted: UserData, user: str) -> None:
    counts = some(deleted.total, "record"), some(deleted.sockets, "socket")
    logger.info("deleted a user's data: %s, %s closed", *counts, extra={"user": user})
    if deleted.silent:
        text = "a user's sockets may still be open, and save positions: no answer from %s"
        logger.warning(text, ", ".join(deleted.silent), extra={"user": user})


async def _with_sockets(broker: Broker) -> set[str]:
    """Return the services in which the user may have an open socket."""
    found = {name for name in broker.service_names if name is not GROUP_SERVICE}
    if ANY in (settings.SERVICES or ()):  # then clients may have named others
        found |= {*(await count(broker)).sockets}
    return found


async def _erase(broker: Broker, inbox: Inbox, erased: dict[str, Held]) -> None:
    await _remove_blobs(broker, inbox)
    held = await broker.operations.erase(inbox)
    before = erased.get(inbox.service, Held())
    erased[inbox.service] = Held(
        before.messages + held.messages,
        before.cursors + held.cursors,
        before.queued + held.queued,
        before.dead_letters + held.dead_letters,
    )


async def _remove_blobs(broker: Broker, inbox: Inbox) -> None:
    """Delete what large messages of an inbox have stored outside it."""
    offset, more = 0, True
    while more:
        batch = await broker.inboxes.read_after(inbox, offset, limit=PAGE)
        for stored in batch.messages:
            offset = stored.offset
            claim = durable.claim_of(stored)
            if claim is not None:
                try:
                    identity, _ = wire.claimed(claim)
                except MalformedMessage:  # somebody else wrote it: it stands for nothing
                    continue
                await broker.blobs.remove(identity)
        more = batch.more


# -- the outbox --------------------------------------------------------------------------


def _count_rows(user: str, service: str | None, using: str | None) -> int:
    return _on_rows(user, service, using, lambda rows: rows.count())


def _delete_rows(user: str, service: str | None, using: str | None) -> int:
    return _on_rows(user, service, using, lambda rows: rows.delete()[0])


def _on_rows(
    user: str,
    service: str | None,
    using: str | None,
    action: Callable[[QuerySet[OutboxMessage]], int],
) -> int:
    """Do something to a user's rows; 0 if the project has no outbox."""
    if not apps.is_installed("wsgateway.outbox"):
        return 0
    from wsgateway.outbox.models import OutboxMessage
    from wsgateway.outbox.schema import naming_the_cure

    using = using or router.db_for_write(OutboxMessage)
    rows = OutboxMessage.objects.using(using).filter(user=user).exclude(is_topic=True)
    with naming_the_cure(using):
        return action(rows if service is None else rows.filter(service=service))
