"""From the outbox' table into JetStream: once, in order per user, several relays side by side.

A relay takes users, not rows: it locks the first row of each user whose first row nobody else
has locked (``FOR UPDATE SKIP LOCKED``). As long as that row exists no other relay takes the
user, so the relay may go on with the user's next rows. What was stored is deleted in the same
transaction; if the relay dies before, the next one publishes it again with the same
``Nats-Msg-Id``, and JetStream drops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from django.db import close_old_connections, connections, router, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from wsgateway import portal
from wsgateway.broker.base import Broker, Receipt
from wsgateway.exceptions import BrokerUnavailable, QueueFull, WsGatewayError
from wsgateway.outbox.models import OutboxMessage
from wsgateway.subjects import Inbox

__all__ = ["AlreadyRelayed", "Relay"]

logger = logging.getLogger("wsgateway.outbox")

FOR_NOW = (BrokerUnavailable, QueueFull)


class AlreadyRelayed(WsGatewayError):
    """Another relay works on this SQLite database."""


class Relay:
    """Relays one database's outbox.

    Args:
        using: The database; None: where the router writes the outbox.
        users: Users at once.
        rows: Rows of one transaction at most.
    """

    def __init__(self, using: str | None = None, *, users: int = 100, rows: int = 1000) -> None:
        self.using = using or router.db_for_write(OutboxMessage)
        self._users = users
        self._rows = rows
        self._skip_locked = connections[self.using].features.has_select_for_update_skip_locked

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other relays away where the database cannot share rows among them.

        Raises:
            AlreadyRelayed: Another relay is at work.
        """
        if self._skip_locked:
            yield
            return
        with _only_one(str(connections[self.using].settings_dict["NAME"])):
            yield

    def step(self) -> int:
        """Relay what is there, up to the limits; return how many rows are done.

        Raises:
            BrokerError: The broker does not take them now; they stay.
        """
        close_old_connections()
        if not self._skip_locked:  # never hold SQLite's only write lock while NATS is asked
            return self._relay(self._claim(self._outbox))
        with transaction.atomic(using=self.using):
            return self._relay(self._claim(self._outbox.select_for_update(skip_locked=True)))

    @property
    def _outbox(self) -> QuerySet[OutboxMessage]:
        return OutboxMessage.objects.using(self.using).filter(failed_at=None)

    def _claim(self, rows: QuerySet[OutboxMessage]) -> list[OutboxMessage]:
        """Return rows of users that are this relay's now, oldest first."""
        earlier = self._outbox.filter(
            service=OuterRef("service"), user=OuterRef("user"), id__lt=OuterRef("id")
        )
        heads = list(rows.filter(~Exists(earlier)).order_by("id")[: self._users])
        if not heads:
            return []
        theirs = Q()
        for head in heads:
            theirs |= Q(service=head.service, user=head.user)
        return list(self._outbox.filter(theirs).order_by("id")[: self._rows])

    def _relay(self, rows: list[OutboxMessage]) -> int:
        if not rows:
            return 0
        outcomes = portal.call_sync(lambda broker: _store(broker, rows))
        stored = [row.pk for row, out in zip(rows, outcomes, strict=True) if _is_stored(out)]
        self._outbox.filter(pk__in=stored).delete()
        problem: WsGatewayError | None = None
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, FOR_NOW):
                problem = problem or outcome
            elif isinstance(outcome, Exception):
                self._fail(row, outcome)
        if problem is not None:
            raise problem
        return len(rows)

    def _fail(self, row: OutboxMessage, error: Exception) -> None:
        """Set a row aside that can never be stored, so that the user's others go on."""
        logger.error("outbox message %s cannot be sent and is set aside: %s", row.pk, error)
        self._outbox.filter(pk=row.pk).update(failed_at=timezone.now(), error=str(error))


Outcome = Receipt | Exception | None


def _is_stored(outcome: Outcome) -> bool:
    return isinstance(outcome, Receipt)


async def _store(broker: Broker, rows: list[OutboxMessage]) -> list[Outcome]:
    """Publish *rows*: users side by side, one user's one after the other.

    After a failure that may pass, the same user's later rows are not tried: None.
    """

    outcomes: dict[int, Outcome] = {}
    by_user: dict[Inbox, list[OutboxMessage]] = {}
    for row in rows:
        by_user.setdefault(Inbox(row.service, row.user), []).append(row)

    async def lane(inbox: Inbox, mine: list[OutboxMessage]) -> None:
        for row in mine:
            try:
                outcomes[row.pk] = await broker.publish(
                    inbox,
                    bytes(row.payload),
                    kind=row.kind,
                    msg_id=row.msg_id,
                    ttl=row.ttl,
                    headers=row.headers,
                )
            except FOR_NOW as exc:
                outcomes[row.pk] = exc
                return
            except (WsGatewayError, ValueError) as exc:
                outcomes[row.pk] = exc

    async with asyncio.TaskGroup() as group:
        for inbox, mine in by_user.items():
            group.create_task(lane(inbox, mine))
    return [outcomes.get(row.pk) for row in rows]


@contextlib.contextmanager
def _only_one(database: str) -> Iterator[None]:
    """Hold a lock file beside a SQLite database; a database in memory needs none."""
    path = Path(database)
    if not path.is_file():
        yield
        return
    import fcntl

    lock: IO[bytes]
    with path.with_name(f"{path.name}.outbox-lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise AlreadyRelayed(
                f"another relay works on {database}; SQLite takes one, PostgreSQL several"
            ) from exc
        yield
