"""From the outbox's table into JetStream: once, in order per user, several relays side by side.

A relay takes users, not rows: it locks the first row of each user whose first row no other relay
has locked (``FOR UPDATE SKIP LOCKED``). While that row exists, no other relay takes the user, so
this one can go on with the user's next rows. Stored rows are deleted in the same transaction, which
commits whatever happened to the others. If the relay dies before that, the next one publishes them
again with the same ``Nats-Msg-Id``, and JetStream drops them.

Only an error in the row itself sets it aside. After any other error the user's rows wait, and the
next turn begins behind that user, so that users who wait never keep others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import (
    InterfaceError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connections,
    router,
    transaction,
)
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from wsgateway import counters
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Receipt, check_published
from wsgateway.exceptions import BrokerUnavailable, WsGatewayError, reason_of
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.schema import naming_the_cure
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Address, Inbox, Topic

__all__ = ["AlreadyRelayed", "Relay"]

logger = logging.getLogger("wsgateway.outbox")

TURN_TIME = 10.0
"""Seconds after which a turn starts no other row: what it has stored must be deleted long before
JetStream forgets the rows' ids."""
TURN_BYTES = 16 * 1024 * 1024
"""Bytes of payload that a turn holds in memory."""
FETCH = 100
"""Rows that are read at once; `TURN_BYTES` is exceeded by at most this many."""
LONGEST_PAUSE = 5.0
"""Seconds between attempts while the database or the broker is away."""
LONGEST_ERROR = 2000
"""Characters of a row's error that are kept."""


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
        counters.outbox.databases.add(self.using)
        self._users = users
        self._rows = rows
        self.done = 0
        """Rows relayed or set aside so far."""
        self._after = 0  # id of the row behind which the next turn begins; 0: at the first
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

    def run(self, end: threading.Event, interval: float) -> None:
        """Relay until *end* is set.

        Args:
            end: Checked between transactions.
            interval: Seconds between looks for new rows.

        Raises:
            ImproperlyConfigured: The table is missing.
            ProgrammingError: The database refuses the statements; trying again cannot help.
        """
        pause = interval
        while not end.is_set():
            try:
                done = self.step()
            except (ImproperlyConfigured, ProgrammingError):
                raise
            except Exception as exc:  # whatever it is, it may pass
                counters.outbox.failures += 1
                expected = isinstance(exc, (WsGatewayError, OperationalError, InterfaceError))
                text = "the outbox waits %.1f s: %s"
                logger.warning(text, pause, reason_of(exc), exc_info=None if expected else exc)
                end.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = interval
            if not done:
                end.wait(interval)

    def run_once(
        self, end: threading.Event, progress: Callable[[int], object] = lambda done: None
    ) -> None:
        """Relay what is there, or until *end* is set.

        Args:
            end: Checked between transactions.
            progress: Called after each transaction with how many rows are done so far.

        Raises:
            BrokerError: Rows are left that cannot be stored now.
            ImproperlyConfigured: The table is missing.
        """
        while not end.is_set() and self.step():
            progress(self.done)

    def waiting(self) -> int:
        """Return how many rows are to be relayed.

        Raises:
            ImproperlyConfigured: The table is missing.
        """
        with naming_the_cure(self.using):
            return self._outbox.count()

    def step(self) -> int:
        """Relay what is there, up to the limits; return how many rows are done.

        Rows that are done are gone from the table, or set aside, whatever this raises.

        Raises:
            BrokerError: Nothing could be stored now; the rows stay.
            ImproperlyConfigured: The table is missing.
        """
        with naming_the_cure(self.using):
            done = self._step()
        self.done += done
        return done

    def _step(self) -> int:
        problem: Exception | None = None
        begun = self._after == 0
        while True:
            close_old_connections()
            turn = self._turn()
            if turn.done:
                return turn.done
            problem = problem or turn.problem
            if isinstance(problem, BrokerUnavailable):
                raise problem
            if self._after == 0:  # everybody behind has had a turn
                if begun:
                    break
                begun = True
        if problem is not None:
            raise problem
        return 0

    def _turn(self) -> _Turn:
        """Take the next users and relay what they have."""
        if not self._skip_locked:  # never hold SQLite's only write lock while NATS is asked
            return self._relay(self._claim(self._outbox))
        with transaction.atomic(using=self.using):
            return self._relay(self._claim(self._outbox.select_for_update(skip_locked=True)))

    @property
    def _outbox(self) -> QuerySet[OutboxMessage]:
        return OutboxMessage.objects.using(self.using).filter(failed_at=None)

    def _claim(self, rows: QuerySet[OutboxMessage]) -> list[OutboxMessage]:
        """Return the first rows of the next users, which are this relay's now."""
        earlier = self._outbox.filter(
            service=OuterRef("service"), user=OuterRef("user"), id__lt=OuterRef("id")
        )
        heads = rows.filter(~Exists(earlier), id__gt=self._after).defer("payload")
        return list(heads.order_by("id")[: self._users])

    def _rows_of(self, heads: list[OutboxMessage]) -> list[OutboxMessage]:
        """Return rows of the users that *heads* are the first of, oldest first."""
        theirs = Q()
        for head in heads:
            theirs |= Q(service=head.service, user=head.user)
        found = self._outbox.filter(theirs).order_by("id")[: self._rows]
        rows, size = [], 0
        for row in found.iterator(chunk_size=FETCH):
            rows.append(row)
            size += len(row.payload)
            if size >= TURN_BYTES:
                break
        return rows

    def _relay(self, heads: list[OutboxMessage]) -> _Turn:
        self._after = 0
        if not heads:
            return _Turn(0, None)
        rows = self._rows_of(heads)
        # Raises only before anything is sent: what is stored is deleted in any case
        outcomes = runtime.call_sync(lambda broker: _store(broker, rows))
        stored = [row for row in rows if isinstance(outcomes.get(row.pk), Receipt)]
        self._outbox.filter(pk__in=[row.pk for row in stored]).delete()
        _count(stored)
        done, problem = len(stored), None
        for row in rows:
            outcome = outcomes.get(row.pk)
            if isinstance(outcome, _Refused):
                self._set_aside(row, outcome.error)
                done += 1
            elif isinstance(outcome, Exception):
                problem = problem or outcome
        if problem is not None and len(heads) == self._users:
            self._after = heads[-1].pk
        return _Turn(done, problem)

    def _set_aside(self, row: OutboxMessage, error: Exception) -> None:
        """Mark a row that can never be stored, so that the user's others go on."""
        text = ascii(str(error))[1:-1][:LONGEST_ERROR]  # the table takes it, whatever it quotes
        logger.error(
            "set outbox message %s aside because it cannot be sent: %s",
            row.pk,
            text,
            extra=_log_fields(row),
        )
        self._outbox.filter(pk=row.pk).update(failed_at=timezone.now(), error=text)
        counters.outbox.set_aside += 1


class _Turn(NamedTuple):
    """What became of some users' rows: how many are done, and why others wait."""

    done: int
    problem: Exception | None


class _Refused(NamedTuple):
    """A row that no other try can store."""

    error: Exception


def _count(stored: list[OutboxMessage]) -> None:
    now = timezone.now()
    counters.outbox.relayed += len(stored)
    for row in stored:
        counters.outbox.lag.observe((now - row.created_at).total_seconds())


async def _store(
    broker: Broker, rows: list[OutboxMessage]
) -> dict[int, Receipt | _Refused | Exception]:
    """Publish *rows*: users side by side, one user's one after the other.

    Returns:
        By primary key, what became of each row that was tried. After an error that may pass,
        and after `TURN_TIME`, the same user's later rows are not tried.
    """
    outcomes: dict[int, Receipt | _Refused | Exception] = {}
    by_user: dict[tuple[str, str], list[OutboxMessage]] = {}
    for row in rows:
        by_user.setdefault((row.service, row.user), []).append(row)
    clock = asyncio.get_running_loop().time
    end = clock() + TURN_TIME

    async def store_in_order(mine: list[OutboxMessage]) -> None:
        for row in mine:
            if clock() > end:
                return
            outcome = outcomes[row.pk] = await _publish(broker, row)
            if isinstance(outcome, Exception):
                return

    async with asyncio.TaskGroup() as group:
        for mine in by_user.values():
            group.create_task(store_in_order(mine))
    return outcomes


async def _publish(broker: Broker, row: OutboxMessage) -> Receipt | _Refused | Exception:
    try:
        frame = Frame.parse(bytes(row.payload), row.kind)
        check_published(row.headers, row.ttl)
    except (TypeError, ValueError) as exc:
        return _Refused(exc)
    try:
        return await broker.publish(
            await _address_of(broker, row),
            frame.payload,
            kind=frame.kind,
            msg_id=row.msg_id,
            ttl=row.ttl,
            headers=row.headers,
        )
    except ValueError as exc:  # `Broker.publish`: another try cannot change it
        return _Refused(exc)
    except WsGatewayError as exc:
        return exc
    except Exception as exc:
        logger.exception(
            "outbox message %s waits after an unexpected error", row.pk, extra=_log_fields(row)
        )
        return exc


async def _address_of(broker: Broker, row: OutboxMessage) -> Address:
    """Return whom a row is for. Those that `enqueue` did not write may leave it to the service."""
    if row.is_topic is None:
        return await broker.address_of(row.service, row.user)
    return (Topic if row.is_topic else Inbox)(row.service, row.user)


def _log_fields(row: OutboxMessage) -> dict[str, object]:
    return {"service": row.service, "user": row.user, "outbox_id": row.pk}


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
                f"another relay uses {database}; SQLite allows one relay, PostgreSQL several"
            ) from exc
        yield
